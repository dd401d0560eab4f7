"""Output of a running command: lines and, on a watched terminal, a picture below them that is redrawn every second.

A file, a pipe, a notebook and CI get only the lines. No other module uses escape codes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from minbert_core.commands import drop_output

REFRESH_PER_SECOND = 1
LOST = {errno.EPIPE, errno.EIO}  # a pipe without a reader, a terminal that was closed
NOTEBOOKS = ("CI", "COLAB_RELEASE_TAG", "JPY_PARENT_PID")  # these may have a terminal, but keep every frame


def is_watched(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return True for a terminal that a person watches and that can move its cursor; not for a file, pipe, CI or notebook."""
    return knows_codes(stream, environment) and not any(name in environment for name in NOTEBOOKS)


def knows_codes(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return True for a terminal that supports escape codes."""
    return stream.isatty() and environment.get("TERM", "").lower() not in ("", "dumb", "unknown")


def console(**options: Any) -> Console:
    """Build the console of stdout, with rich's `options`. It writes no codes to files, and no colours under NO_COLOR.

    rich's default would write codes to a file if FORCE_COLOR or TTY_COMPATIBLE is set.
    """
    colours: Any = "auto" if knows_codes(sys.stdout, os.environ) else None
    return Console(force_terminal=sys.stdout.isatty(), color_system=colours, highlight=False, **options)


def show_progress(text: str) -> None:
    """Replace the progress line on stderr (an empty text removes it), if stderr is a watched terminal."""
    if is_watched(sys.stderr, os.environ):
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


class Screen:
    """A printer of lines; inside `with`, on a watched terminal, it shows the result of `render(height)` below them."""

    def __init__(self, render: Callable[[int], RenderableType]) -> None:
        self.render = render
        self.live: Live | None = None

    def __enter__(self) -> Screen:
        if is_watched(sys.stdout, os.environ):
            stdout = console()
            live = Live(
                console=stdout,
                get_renderable=lambda: self.render(stdout.height),
                refresh_per_second=REFRESH_PER_SECOND,
                transient=True,  # removed at the end, before the results
            )
            live.start(refresh=True)
            stdout.show_cursor(True)  # Live hides it, and it would stay hidden if the process is killed
            self.live = live
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        live, self.live = self.live, None
        if live is not None:
            with _unless_lost():
                live.stop()

    def print(self, line: str, more: str | None = None) -> None:
        """Print a line above the picture, without truncation or wrapping; callable from any thread.

        more: what the picture shows anyhow; without a picture it is a part of the line. With it the line is cut to the width.
        """
        with _unless_lost():
            if (live := self.live) is None:
                print(line + (more or ""), flush=True)
            elif more is None:
                live.console.print(Text(line), soft_wrap=True)
            else:
                live.console.print(Text(line), no_wrap=True, overflow="ellipsis")

    def draw(self, drawing: Callable[[int], Iterable[RenderableType]], lines: Iterable[str]) -> None:
        """Print what `drawing` makes for the terminal's width; elsewhere than on a terminal, the lines."""
        with _unless_lost():
            if knows_codes(sys.stdout, os.environ):
                stdout = self.live.console if self.live else console()
                for each in drawing(stdout.width):
                    stdout.print(each, soft_wrap=isinstance(each, Text))
            else:
                for line in lines:
                    print(line, flush=True)


@contextlib.contextmanager
def _unless_lost() -> Iterator[None]:
    """Discard all further output if nobody reads it any more: Ctrl-C ends `| tee log.txt` too, or the terminal was closed."""
    try:
        yield
    except OSError as error:
        if error.errno not in LOST:
            raise
        drop_output()
