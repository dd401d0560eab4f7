"""`search.run.run`: it does what the command does, raises what the command prints, and hands back the table."""

from __future__ import annotations

import contextlib
import shlex
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minbert_core.commands import DONE, FAILED, INTERRUPTED, NOT_RECORDED, Refused
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.yaml import parse_yaml
from search import run as command
from search.options import Keywords, SearchOptions, from_arguments, from_keywords, parser
from search.plan.folder import read_plan
from search.results import COLUMNS
from search.run import run
from search.space.space import read_space

QUICK = """\
trials: 3
config:
  data: toy
  encoder: tiny
  budget: {examples: 600}
  optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}
"""
SPACE = parse_yaml(QUICK)[0]


@pytest.fixture
def here(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the call is made: a folder with quick.yaml, on a machine without GPUs."""
    (tmp_path / "quick.yaml").write_text(QUICK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """ends(code): searches are written down, and end at once with that code."""
    return lambda code: monkeypatch.setattr(command, "run_search", lambda *_, **__: code)


def test_the_keywords_are_the_options_that_say_what_a_search_is() -> None:
    flags = {action.dest for action in parser()._actions}
    of_the_command = {"space", "dry_run", "print", "prepare", "price", "status", "env", "version", "help"}
    assert flags - set(Keywords.__annotations__) == of_the_command
    assert set(Keywords.__annotations__) < flags


def test_typed_and_called_are_the_same_options() -> None:
    typed = ["--space", "quick.yaml", "--set", "a=1", "--set", "b=2", "--trials", "4", "--from", "old:2", "--runs", "elsewhere"]
    called = from_keywords("quick.yaml", {"set": ["a=1", "b=2"], "trials": 4, "from_": "old:2", "runs": "elsewhere"})
    assert replace(from_arguments(parser().parse_args(typed), typed), typed=()) == called
    assert from_arguments(parser().parse_args(called.arguments), called.arguments) == replace(
        called, typed=tuple(called.arguments)
    )
    assert SearchOptions(space={}, dry_run=True).arguments == ["--space=FILE", "--dry-run"]


@pytest.mark.parametrize(
    ("typed", "called", "kind"),
    [
        ("--space nowhere.yaml", {"space": "nowhere.yaml"}, SettingsError),
        ("--space quick.yaml --set optimizer/rate=1", {"space": "quick.yaml", "set": "optimizer/rate=1"}, SettingsError),
        ("--space quick.yaml --set a --set b", {"space": Path("quick.yaml"), "set": ["a", "b"]}, SettingsError),
        ("--space quick.yaml --trials 0", {"space": "quick.yaml", "trials": 0}, ValueError),
        ("--space quick.yaml --trials True", {"space": "quick.yaml", "trials": True}, ValueError),
        ("--space quick.yaml --seed=-1", {"space": "quick.yaml", "seed": -1}, ValueError),
        ("--space quick.yaml --retries=-1", {"space": "quick.yaml", "retries": -1}, ValueError),
        ("--space quick.yaml --hours inf", {"space": "quick.yaml", "hours": float("inf")}, ValueError),
        ("--space quick.yaml --cpus-per-trial 5000", {"space": "quick.yaml", "cpus_per_trial": 5000}, Refused),
        ("--space quick.yaml --from smart", {"space": "quick.yaml", "from_": "smart"}, ValueError),
        ("--space quick.yaml --from smart:0", {"space": "quick.yaml", "from_": "smart:0"}, ValueError),
        ("--space quick.yaml --from nobody:2", {"space": "quick.yaml", "from_": "nobody:2"}, ValueError),
        ("--resume nobody", {"resume": "nobody"}, ValueError),
        ("--resume nobody --runs .", {"resume": "nobody", "runs": Path()}, ValueError),
        ("", {}, ValueError),
    ],
)
def test_what_the_command_refuses_is_raised_with_its_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], typed: str, called: dict[str, Any], kind: type[ValueError]
) -> None:
    with contextlib.suppress(SystemExit):  # argparse's own way out, which test_run.py looks at
        assert command.main(shlex.split(typed)) == (3 if kind is Refused else 2)
    printed = capsys.readouterr().err
    with pytest.raises(ValueError) as caught:
        run(**called)
    assert type(caught.value) is kind
    assert printed.endswith(f"{caught.value}\n")
    assert not (here / "runs").exists()


def test_an_unknown_keyword_is_an_error_and_none_is_an_option_not_given(here: Path, ends: Callable[[int], None]) -> None:
    with pytest.raises(ValueError, match=r"Unknown option `trails`; did you mean 'trials'\? Known: address, "):
        run("quick.yaml", trails=3)  # type: ignore[call-arg]
    ends(DONE)
    run("quick.yaml", trials=None, set=None, gpus=0)  # type: ignore[arg-type]
    assert read_plan(here / "runs" / "quick").command == ["--space=quick.yaml", "--gpus=0"]


def test_a_space_given_as_a_dict_is_the_one_that_its_file_would_be(here: Path, ends: Callable[[int], None]) -> None:
    ends(DONE)
    run("quick.yaml", name="file")
    run(SPACE, name="dict")
    spaces = [(here / "runs" / name / "space.yaml").read_text() for name in ("file", "dict")]
    assert spaces[0] == spaces[1]
    assert read_plan(here / "runs" / "dict").space_name == "dict"
    run(SPACE)
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["dict", "file", "search"]


def test_a_space_given_as_a_dict_is_not_changed_and_may_extend_a_file(here: Path) -> None:
    space = {"extends": "quick.yaml", "config": {"optimizer": {"lr": 1e-3, "warmup": {"uniform": (0.0, 0.2)}}}}
    found = read_space(space, ["seed=3"], "mine")
    assert (found.name, list(found.domains())) == ("mine", ["optimizer/warmup"])
    assert space == {"extends": "quick.yaml", "config": {"optimizer": {"lr": 1e-3, "warmup": {"uniform": (0.0, 0.2)}}}}


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"trails": 3}, r"^Unknown key `trails` in a space; did you mean 'trials'\?"),
        ({"config": {"optimizer": {"lr": "fast"}}}, r"^`optimizer/lr` must be a number\. Got 'fast'\."),
        ([1, 2], r"^A space must be a map with keys such as `config` and `trials`\. Got \[1, 2\]\."),
        ({"config": {"data": Path("x")}}, r"^A space may only hold values that YAML has: .*\. Got PosixPath\('x'\)\."),
        ({"config": {1: 2}}, r"^Unknown key `1`"),
        ({"extends": "nowhere.yaml"}, r"^`extends` names 'nowhere\.yaml', but there is no file nowhere\.yaml\."),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_fault_of_a_dict_is_a_sentence(space: Any, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        run(space)


def test_a_dict_that_needs_too_many_gpus_is_refused_with_what_works_here(here: Path) -> None:
    with pytest.raises(Refused, match=r"--space=FILE --trials=4 --gpus 0"):
        run(SPACE, gpus=4, trials=4)


def test_how_a_search_ended_is_raised_warned_of_or_handed_back(here: Path, ends: Callable[[int], None]) -> None:
    ends(DONE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = run(SPACE, name="one")
    assert (table.num_rows, table.column_names) == (0, list(COLUMNS))
    ends(NOT_RECORDED)
    with pytest.warns(UserWarning, match=r"^MLflow lacks some records of one\. run\(resume='one'\) logs them again\."):
        assert run(resume="one").num_rows == 0
    ends(FAILED)
    with pytest.raises(RuntimeError, match=r"^No trial of one finished\. The reasons are in /.*/one/trials/\*/log\.txt\.$"):
        run(resume="one")
    ends(INTERRUPTED)
    with pytest.raises(KeyboardInterrupt, match=r"^The trials' states are saved\. run\(resume='one'\) resumes the search\.$"):
        run(resume="one")
    with pytest.raises(KeyboardInterrupt, match=r"run\(resume='two', runs='/.*/elsewhere'\) resumes the search\.$"):
        run(SPACE, name="two", runs="elsewhere")


def test_another_thread_is_refused(here: Path) -> None:
    raised: list[Exception] = []

    def call() -> None:
        try:
            run("quick.yaml")
        except Refused as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "Only the main thread of a process receives Ctrl-C" in str(raised[0])
    assert not (here / "runs").exists()
