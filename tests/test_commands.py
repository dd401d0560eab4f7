"""Every command's --help fits a screen and shows two uses, and every command ends with a code and, at a fault, a sentence."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest

from analysis import best_to_test, compare, curves, export, importance, replicate, report, runs, simulate
from minbert_core import convert, predict
from minbert_core.commands import INTERRUPTED, REFUSED, UNREAD, WRONG, Refused, run_command
from minbert_core.data import download
from minbert_core.train import __main__ as train_command
from search import papers, run
from search.space import __main__ as explain

WIDTH, HEIGHT = 80, 24  # of a screen
# what is typed, the function behind it, its arguments that no command may lack, the lines that its help may take
COMMANDS = [
    ("-m search.run", run.main, "", 45),  # two dozen options, a line each
    ("-m search.space", explain.main, "", HEIGHT),
    ("-m search.papers", papers.main, "", HEIGHT),
    ("-m minbert_core.train", train_command.main, "my.yaml", HEIGHT),
    ("-m minbert_core.predict", predict.main, "best sentence", HEIGHT),
    ("-m minbert_core.checkpoints", convert.main, "convert f.pt --to mine", HEIGHT),
    ("-m minbert_core.data.corpus", download.main, "", HEIGHT),
    ("-m minbert_core.data.corpus download", download.main, "", HEIGHT),
    ("analysis/runs.py", runs.main, "", HEIGHT),
    ("analysis/best_to_test.py", best_to_test.main, "", 32),
    ("analysis/importance.py", importance.main, "smart", HEIGHT),
    ("analysis/compare.py", compare.main, "smart", HEIGHT),
    ("analysis/curves.py", curves.main, "smart", HEIGHT),
    ("analysis/simulate.py", simulate.main, "smart", 32),
    ("analysis/report.py", report.main, "smart", HEIGHT),
    ("analysis/replicate.py", replicate.main, "--paper P1", HEIGHT),
    ("analysis/export.py", export.main, "runs/smart", 32),
]
Main = Callable[[list[str]], int]
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("typed", "main", "needed", "height"), COMMANDS, ids=[typed for typed, *_ in COMMANDS])
def test_a_help_fits_a_screen_and_shows_two_examples(
    typed: str, main: Main, needed: str, height: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    with pytest.raises(SystemExit, match="0"):
        main([*typed.split()[2:], "--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= height, text
    assert max(map(len, lines)) <= WIDTH, text
    assert lines[0].startswith(f"usage: python {typed} ")
    examples = lines[lines.index("examples:") + 1 :]
    assert len(examples) == 2, text
    assert all(line.startswith(f"  python {typed} ") for line in examples)


@pytest.mark.parametrize(("typed", "main", "needed", "height"), COMMANDS, ids=[typed for typed, *_ in COMMANDS])
def test_an_unknown_option_gets_a_usage_line_and_a_sentence(
    typed: str, main: Main, needed: str, height: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    with pytest.raises(SystemExit, match="2"):
        main([*typed.split()[2:], *needed.split(), "--no-such-option"])
    usage, sentence = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: python ")
    assert sentence.endswith("unrecognized arguments: --no-such-option")


@pytest.mark.parametrize(("typed", "main", "needed", "height"), COMMANDS, ids=[typed for typed, *_ in COMMANDS])
def test_a_stream_that_lacks_a_character_shows_a_question_mark(
    typed: str, main: Main, needed: str, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under PYTHONIOENCODING=ascii, or on a Latin-1 terminal."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit, match="2"):
        main([*typed.split()[2:], *needed.split(), "--ä…"])
    for stream in streams.values():
        stream.seek(0)
    assert "--??" in streams["stderr"].read()


# ------------------------------------------------------------------------------------------------------------- how they end


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (Refused("No GPU here."), REFUSED, "No GPU here.\n"),
        (ValueError("`lr` must be <= 1."), WRONG, "`lr` must be <= 1.\n"),
        (
            OSError(errno.EROFS, "", "/x/runs/a"),
            REFUSED,
            "Cannot write /x/runs/a: Read-only file system. Use --runs to give ",
        ),
        (KeyboardInterrupt(), INTERRUPTED, "Interrupted.\n"),
        (KeyboardInterrupt("Go on: again"), INTERRUPTED, "Go on: again\n"),
    ],
    ids=str,
)
def test_a_fault_becomes_its_exit_code_and_a_sentence(
    raised: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(options: argparse.Namespace) -> int:
        raise raised

    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path)
    assert run_command(parser, ["--runs", "/x/runs"], body, writes="runs", interrupted="Interrupted.") == code
    assert capsys.readouterr().err.startswith(sentence)


def test_a_bug_stays_a_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(argparse.ArgumentParser(), [], lambda options: 1 // 0)


PROGRAM = """\
import argparse, sys
from minbert_core.commands import run_command

def body(options):
    print("a line")
    return 7

sys.exit(run_command(argparse.ArgumentParser(), [], body))
"""


def run_unread(program: list[str], redirection: str = "", unbuffered: str = "") -> tuple[int, str]:
    """Exit code and stderr of a Python program whose output goes to a pipe that nobody reads, or where the shell sends it."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable, *program],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(theirs)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("redirection", "code", "sentence"),
    [
        ("", UNREAD, ""),
        (">&-", 7, ""),
        ("> /dev/full", REFUSED, "Cannot write the output: No space left on device.\n"),
    ],
)
def test_an_output_that_takes_nothing_is_no_traceback(redirection: str, code: int, sentence: str, unbuffered: str) -> None:
    assert run_unread(["-c", PROGRAM], redirection, unbuffered) == (code, sentence)


def test_the_reader_of_a_long_list_may_leave() -> None:
    """As of `python -m search.space | head`; it is printed by rich, which has a way of its own to leave."""
    assert run_unread(["-m", "search.space"]) == (UNREAD, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_imports_is_a_sentence(number: signal.Signals) -> None:
    code = "import time; from minbert_core.commands import end_when_interrupted as end; end('Interrupted.'); print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(60)"], stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.communicate(timeout=20)[1] == "Interrupted.\n"
        assert process.returncode == INTERRUPTED


HELPS = """\
import runpy, sys, time

for typed in sys.argv[1:]:
    sys.argv = [typed, "--help"]
    try:
        if typed.endswith(".py"):
            runpy.run_path(typed, run_name="__main__")
        else:
            runpy.run_module(typed, run_name="__main__", alter_sys=True)
    except SystemExit as leave:
        assert not leave.code, typed
assert "argparse" in sys.modules
print("imported", *sys.modules.keys() & {"torch", "ray", "mlflow", "optuna", "numpy", "pyarrow", "matplotlib"})
"""


def test_help_is_printed_before_the_imports_that_take_seconds() -> None:
    modules = list(dict.fromkeys(typed.split()[1] if typed.startswith("-m") else typed for typed, *_ in COMMANDS))
    done = subprocess.run([sys.executable, "-c", HELPS, *modules], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("usage: python ") == len(modules)
    assert done.stdout.splitlines()[-1] == "imported"
