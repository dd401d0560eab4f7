"""What a command shows while it works: lines, and on a terminal that a person looks at a picture below them, always renewed.

Elsewhere (a file, a pipe, a notebook, CI) there are only the lines. No other module knows an escape code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from minbert_core.commands import drop_output

REFRESH_PER_SECOND = 1
NOTEBOOKS = ("CI", "COLAB_RELEASE_TAG", "JPY_PARENT_PID")  # these have a terminal at times, but keep each frame as a line


def is_watched(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether a stream is a terminal that moves its cursor, with a person before it; not a file, a pipe, CI or a notebook."""
    return knows_codes(stream, environment) and not any(name in environment for name in NOTEBOOKS)


def knows_codes(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether a stream is a terminal that understands escape codes."""
    return stream.isatty() and environment.get("TERM", "").lower() not in ("", "dumb", "unknown")


def console(**options: Any) -> Console:
    """Build the console of stdout, with rich's `options`: no code reaches a file, and no colour a terminal under NO_COLOR.

    rich's own rule would send codes into a file wherever FORCE_COLOR or TTY_COMPATIBLE is set.
    """
    colours: Any = "auto" if knows_codes(sys.stdout, os.environ) else None
    return Console(force_terminal=sys.stdout.isatty(), color_system=colours, highlight=False, **options)


def show_progress(text: str) -> None:
    """Replace the progress line on stderr, empty text removes it; nothing where nobody watches."""
    if is_watched(sys.stderr, os.environ):
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


class Screen:
    """Prints lines; inside `with`, on a watched terminal, it keeps what `render` gives for the terminal's height below them."""

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
                transient=True,  # gone at the end, when the results come
            )
            live.start(refresh=True)
            stdout.show_cursor(True)  # Live hides it, and a process that is killed would leave it so
            self.live = live
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        live, self.live = self.live, None
        if live is not None:
            live.stop()

    def print(self, line: str) -> None:
        """A line above the picture, not cut and not broken; from any thread."""
        try:
            if (live := self.live) is None:
                print(line, flush=True)
            else:
                live.console.print(Text(line), soft_wrap=True)
        except BrokenPipeError:  # of `| tee log.txt`: Ctrl-C has ended tee, too
            drop_output()
