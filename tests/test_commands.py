"""Every command's --help fits a screen and shows two uses; what is written wrong gets a usage line and a sentence."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from analysis import best_to_test, replicate, runs
from minbert_core import predict, train_command
from minbert_core.data import download
from search import explain, run

WIDTH, HEIGHT = 80, 24  # of a screen
# what is typed, the function behind it, its arguments that no command may lack, the lines that its help may take
COMMANDS = [
    ("-m search.run", run.main, "", 40),  # two dozen options, a line each
    ("-m search.space", explain.main, "", HEIGHT),
    ("-m minbert_core.train", train_command.main, "my.yaml", HEIGHT),
    ("-m minbert_core.predict", predict.main, "best sentence", HEIGHT),
    ("-m minbert_core.data.corpus", download.main, "", HEIGHT),
    ("-m minbert_core.data.corpus download", download.main, "", HEIGHT),
    ("analysis/runs.py", runs.main, "", HEIGHT),
    ("analysis/best_to_test.py", best_to_test.main, "", HEIGHT),
    ("analysis/replicate.py", replicate.main, "--paper P1", HEIGHT),
]
Main = Callable[[list[str]], int]


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
