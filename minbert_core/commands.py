"""Exit codes of all commands, and a sentence instead of a traceback for each fault that a user can fix.

    def main(arguments=None) -> int:
        return run_command(_parser(), arguments, _main, writes="runs")

Exit codes: 0 done, 1 nothing could be trained, 2 invalid input, 3 valid but impossible here or now, 4 done but MLflow lacks
something, 130 interrupted, 141 the reader of the output has ended (`| head`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from minbert_core.files import explain_fault, user_path

DONE, FAILED, WRONG, REFUSED, NOT_RECORDED, INTERRUPTED, UNREAD = 0, 1, 2, 3, 4, 130, 141  # the last two: 128 + the signal

ROOT = Path(__file__).resolve().parents[1]


class Refused(ValueError):
    """A valid request that is impossible here or now: too few GPUs, a used name, a locked folder. Exit code 3."""


def run_command(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    body: Callable[[argparse.Namespace], int],
    *,
    writes: str = "",
    interrupted: str = "",
) -> int:
    """Parse the arguments (None: sys.argv) and run `body`; print faults that a user can fix as sentences; return the exit code.

    writes: the option, without `--`, that names the folder where `body` writes; the sentence recommends it if writing fails.
    interrupted: the text that Ctrl-C prints, unless the KeyboardInterrupt already has one.
    """
    _open_closed_streams()
    print_anywhere()
    options = argparse.Namespace()
    try:
        try:
            options = expand_paths(parser.parse_args(arguments))
            return body(options)
        finally:
            sys.stdout.flush()  # so that a fault of the output is raised here and not when the interpreter exits
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # rich exits this way
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


def check_command_line(parser: argparse.ArgumentParser) -> None:
    """Parse the command line once before the imports that take seconds, so that --help and mistyped options end at once."""
    if code := run_command(parser, None, lambda _: DONE):
        sys.exit(code)


def analysis_command(name: str, *words: str) -> str:
    """Return a command of analysis/ as the user types it: its file in a checkout, its module where the project is installed."""
    is_checkout = (ROOT / "pyproject.toml").exists()
    return shlex.join(["python", *([f"analysis/{name}.py"] if is_checkout else ["-m", f"analysis.{name}"]), *words])


def not_empty(value: object) -> str:
    """Return an option's text.  Raises ArgumentTypeError if it is empty, as an unset variable of a shell makes it."""
    if not (text := str(value)).strip():
        raise argparse.ArgumentTypeError("must not be empty.")
    return text


def end_when_interrupted(sentence: str) -> None:
    """Let Ctrl-C and SIGTERM end the process with a sentence at once, for the time of its imports, until a handler is set."""

    def end(*_: object) -> None:
        _end(sentence, INTERRUPTED)
        os._exit(INTERRUPTED)  # raised inside an import, KeyboardInterrupt may be lost in C code or become an ImportError

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def expand_paths(options: argparse.Namespace) -> argparse.Namespace:
    """Expand a leading `~` in every option that is a Path."""
    for name, value in vars(options).items():
        if isinstance(value, Path):
            setattr(options, name, user_path(value))
    return options


def print_anywhere() -> None:
    """Let stdout and stderr print `?` for a character that their encoding lacks, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not so in a notebook
            stream.reconfigure(errors="replace")


def drop_output() -> None:
    """Discard all further output, because its reader has ended (`| head`)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    out, err = sys.stdout.fileno(), sys.stderr.fileno()
    if os.path.sameopenfile(out, err):  # 2>&1
        os.dup2(nowhere, err)
    os.dup2(nowhere, out)
    os.close(nowhere)


def _open_closed_streams() -> None:
    """Replace streams that the shell has closed (`>&-`); otherwise the next opened file would get their numbers."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open until the process ends


def _output_fault() -> OSError | None:
    """Write an empty line to the output; if this fails, discard further output and return the error, else None."""
    try:
        print(flush=True)
    except OSError as error:
        drop_output()
        return error
    return None


def _end(sentence: str, code: int) -> int:
    with contextlib.suppress(OSError):  # stderr has no reader either
        if sentence:
            print(sentence, file=sys.stderr)
    return code
