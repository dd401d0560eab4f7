"""Lines and a picture below them on a terminal that somebody watches, lines alone elsewhere; and how a time is said."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from minbert_core.terminal import NOTEBOOKS, Screen, console, is_watched, show_progress
from minbert_core.words import duration

ROOT = Path(__file__).resolve().parents[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "watched"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "dumb"}, False),
        ({}, False),
        ({"TERM": "xterm-color", "JPY_PARENT_PID": "7"}, False),
        ({"TERM": "xterm", "COLAB_RELEASE_TAG": "x"}, False),
        ({"TERM": "xterm", "CI": "true"}, False),
    ],
)
def test_a_picture_is_for_a_terminal_with_a_person_before_it(environment: dict[str, str], watched: bool) -> None:
    assert is_watched(Terminal(), environment) == watched
    assert not is_watched(io.StringIO(), environment)


FORCED = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}


def printed(stream: io.StringIO, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a console of `stream` makes of a bold red word."""
    monkeypatch.setattr(sys, "stdout", stream)
    for name in ("NO_COLOR", *FORCED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console().print("[red bold]word[/]")
    return stream.getvalue()


def test_no_escape_code_reaches_a_file_whatever_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(io.StringIO(), FORCED, monkeypatch) == "word\n"


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "dumb", "FORCE_COLOR": "1"}, {}])
def test_no_escape_code_reaches_a_terminal_that_knows_none(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(Terminal(), environment, monkeypatch) == "word\n"


@pytest.mark.parametrize(("value", "coloured"), [("1", False), ("0", False), ("", True)])
def test_no_color_with_any_value_but_an_empty_one_removes_colours(
    value: str, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed(Terminal(), {"TERM": "xterm-256color", "NO_COLOR": value}, monkeypatch)
    assert ("\x1b[1;31m" in text) is coloured
    assert "31m" in text or text == "\x1b[1mword\x1b[0m\n"  # bold is no colour


@pytest.mark.parametrize(("terminal", "shown"), [("xterm", "\r\x1b[Khalf"), ("dumb", "")])
def test_progress_is_for_a_terminal_that_can_wipe_a_line(terminal: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NOTEBOOKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setattr(sys, "stderr", Terminal())
    show_progress("half")
    assert sys.stderr.getvalue() == shown


def test_only_the_terminals_module_knows_escape_codes() -> None:
    for package in ("minbert_core", "search", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            found = re.findall(r"\\033|\\x1b|\bConsole\(", path.read_text(encoding="utf-8"))
            assert not found or path.name == "terminal.py", f"{path} writes {found}; use `console` or `show_progress`"


SEARCH = """\
import sys, time
from rich.text import Text
from minbert_core.terminal import Screen

try:
    with Screen(lambda height: Text("THE BEST\\nTHE PROGRESS")) as screen:
        screen.print("an event " + "longer than the terminal " * 5)
        time.sleep(1.2)
        if "fail" in sys.argv:
            raise KeyboardInterrupt
finally:
    print("the table", flush=True)
"""


def on_terminal(*arguments: str) -> str:
    """What SEARCH sends to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in NOTEBOOKS}
    process = subprocess.Popen(
        [sys.executable, "-c", SEARCH, *arguments],
        cwd=ROOT,
        env=environment | {"TERM": "xterm-256color", "COLUMNS": "80"},
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    sent = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            sent += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    process.wait(60)
    return sent.decode()


@pytest.mark.parametrize("arguments", [(), ("fail",)])
def test_the_terminal_is_left_as_it_was_and_lines_are_whole(arguments: tuple[str, ...]) -> None:
    sent = on_terminal(*arguments)
    assert sent.count("THE PROGRESS") >= 2  # renewed
    assert "an event " + "longer than the terminal " * 5 in sent.replace("\r\n", "")
    assert sent.rindex("\x1b[?25h") > sent.rindex("\x1b[?25l"), "the cursor is hidden"
    assert sent.index("\x1b[?25h") < sent.rindex("THE PROGRESS"), "a search that is killed leaves the cursor hidden"
    after = sent[sent.rindex("THE PROGRESS") :]
    assert "\x1b[1A\x1b[2K" in after, "the picture stays behind"
    assert after.endswith("the table\r\n")


def test_elsewhere_there_are_plain_lines_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SEARCH], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "an event " + "longer than the terminal " * 5 + "\nthe table\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1 s"), (45.4, "45 s"), (89, "89 s"), (91, "2 min"), (720, "12 min"), (5400, "1 h 30 min"), (11100, "3 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_go_nowhere_once_the_reader_of_a_pipe_has_left() -> None:
    """As of `search 2>&1 | tee log.txt`, where Ctrl-C ends tee, too, and the states are still to be saved."""
    program = SEARCH + 'screen.print("more")\nprint("a warning", file=sys.stderr)\nsys.exit(130)\n'
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=theirs, stderr=theirs, check=False)
    os.close(theirs)
    assert done.returncode == 130


def test_lines_go_nowhere_once_the_terminal_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    person, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setenv("TERM", "dumb")
        os.close(person)
        with Screen(lambda height: "") as screen:
            screen.print("an event")
            screen.print("another")
