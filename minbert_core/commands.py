"""How every command ends: its exit code, and a sentence instead of a traceback for whatever a user can mend.

    def main(arguments=None) -> int:
        return run_command(_parser(), arguments, _main, writes="runs")

0 done, 1 nothing could be trained, 2 what was written is wrong, 3 valid but impossible here or now, 4 done but MLflow lacks
something, 130 interrupted, 141 the reader of the output has left (`| head`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from minbert_core.files import explain_fault, user_path

DONE, FAILED, WRONG, REFUSED, NOT_RECORDED, INTERRUPTED, UNREAD = 0, 1, 2, 3, 4, 130, 141  # the last two: 128 + the signal


class Refused(ValueError):
    """Valid, but impossible here or now: too few GPUs, a used name, a locked folder. The message is a sentence; exit code 3."""


def run_command(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    body: Callable[[argparse.Namespace], int],
    *,
    writes: str = "",
    interrupted: str = "",
) -> int:
    """Parse the arguments (None: those typed) and run `body`; print what a user can mend as a sentence; return the exit code.

    writes: the option, without `--`, that names the place where `body` writes; the sentence recommends it if that fails.
    interrupted: what Ctrl-C prints, unless the KeyboardInterrupt has a text of its own.
    """
    _open_closed_streams()
    print_anywhere()
    options = argparse.Namespace()
    try:
        try:
            options = expand_paths(parser.parse_args(arguments))
            return body(options)
        finally:
            sys.stdout.flush()  # a fault of the output is found here, not at interpreter exit
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # rich leaves so
            return UNREAD
        raise
    except OSError as error:
        if error.filename is not None or (fault := _output_fault()) is None:
            place = getattr(options, writes, None)
            return _end(explain_fault(error, f"--{writes}", place and place.absolute()), REFUSED)
        if isinstance(fault, BrokenPipeError):
            return UNREAD
        return _end(f"Cannot write the output: {fault.strerror}.", REFUSED)
    except Refused as error:
        return _end(str(error), REFUSED)
    except ValueError as error:
        return _end(str(error), WRONG)
    except KeyboardInterrupt as error:
        return _end(str(error) or interrupted, INTERRUPTED)


def expand_paths(options: argparse.Namespace) -> argparse.Namespace:
    """The options, with a leading `~` expanded in every value that is a Path."""
    for name, value in vars(options).items():
        if isinstance(value, Path):
            setattr(options, name, user_path(value))
    return options


def print_anywhere() -> None:
    """Let stdout and stderr print `?` for a character that their encoding lacks; they would raise UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has others
            stream.reconfigure(errors="replace")


def drop_output() -> None:
    """Discard all further output, because its reader has left (`| head` has enough)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    out, err = sys.stdout.fileno(), sys.stderr.fileno()
    if os.path.sameopenfile(out, err):  # 2>&1
        os.dup2(nowhere, err)
    os.dup2(nowhere, out)
    os.close(nowhere)


def _open_closed_streams() -> None:
    """Replace streams that the shell has closed (`>&-`): the next file to be opened would take their numbers."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open until the process ends


def _output_fault() -> OSError | None:
    """Why the output refuses an empty line, None where it does not; a broken output is discarded."""
    try:
        print(flush=True)
    except OSError as error:
        drop_output()
        return error
    return None


def _end(sentence: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody reads stderr either
        if sentence:
            print(sentence, file=sys.stderr)
    return code
