"""The command that trains one configuration: what it says and leaves, how it goes on, what it repeats, what it refuses."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.answers import open_model
from minbert_core import predict
from minbert_core.commands import Refused
from minbert_core.config import TrialConfig
from minbert_core.config_checks import read_config
from minbert_core.inputs import open_inputs
from minbert_core.model import load, load_model
from minbert_core.overrides import Override, parse_set
from minbert_core.settings.yaml import dump_yaml
from minbert_core.train.__main__ import DOMAIN_WORDS, SPACE_WORDS, default_name, main, read
from minbert_core.train.folder import read_records, state_file, write_records
from minbert_core.train.preview import plan_lines
from minbert_core.train.report import MOST_LINES, seconds_left
from minbert_core.train.trial import save_snapshot

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """data: toy
encoder: tiny
budget: {examples: 480}
optimizer: {lr: 1e-3}
machine: {threads: 1}
"""
CLOCK = ("time_ms", "seconds", "train/examples_per_second", "system/peak_memory_gb")
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(small_toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small config of the toy corpus, and the shell in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_toy_cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def typed(here: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """typed("mine.yaml --overfit"): exit code, stdout and stderr of the command."""

    def type_(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(shlex.split(line))
        except SystemExit as leave:  # argparse's own way out
            code = int(leave.code or 0)
        return code, *capsys.readouterr()

    return type_


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What must repeat to the digit: the records without their clocks."""
    records = read_records(folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "minbert_core.train", *arguments]


# ------------------------------------------------------------------------------------------------------------- the plan


def test_the_plan_reports_fields_that_may_have_been_misread_and_labels_that_are_all_the_same(
    tiny: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text('text,label\n"a\nfilm",1\n' + "".join(f"film {i},1\n" for i in range(39)))
    own = {"mine": {"kind": "binary", "files": {"train": str(tmp_path / "mine.csv")}, "text": "text"}}
    config = tiny(own_tasks=own, train_on=["mine"])
    lines = plan_lines(config, open_inputs(config), "mine.yaml")
    assert lines.count("data      1 field of mine.csv with a line end inside quotes: line 2") == 1
    warning = "warning   mine: all 36 train rows (mine.csv) have the label 1: a model learns only this label."
    assert lines.count(warning) == 1


# ------------------------------------------------------------------------------------------------------- a whole training


def test_it_says_what_it_will_do_then_how_it_goes_then_what_next(typed: Typed, here: Path) -> None:
    code, out, _ = typed("mine.yaml --set gradient=pcgrad")
    assert code == 0
    before, _, after = out.partition("best so far")
    for said in (
        "budget/examples=480 gradient=pcgrad optimizer/lr=0.001",
        "(train/dev rows: sst 120/40, para 120/40, sts 120/40)",
        "encoder   tiny",
        "machine   cpu, float32, 1 thread\n",
        "budget    480 examples, about 10 steps",
        "at 54, 160, 480 examples: sst accuracy, para accuracy, sts pearson",
        f"folder    {here / 'trained' / 'mine'}",
    ):
        assert said in before
    assert len(re.findall(r"dev at \d/9 .*sst 0\.\d{3}  para .*sts .*norm .*mean .*score ", out)) == 3
    assert re.search(r"10 %  step 1  48/480 examples  loss sst \d\.\d{3} para .* ex/s  \d+ s left", before)
    assert re.search(r"best      at \d/9: sst ", after)
    assert "python -m minbert_core.predict trained/mine/best 'a sentence'" in after
    assert "python -m search.run --space spaces/quickstart.yaml" in after


def test_it_leaves_a_whole_model_the_records_and_the_config_it_was(typed: Typed, here: Path) -> None:
    typed("mine.yaml --to there")
    folder = here / "there"
    assert {path.name for path in folder.iterdir()} == {"best", "config.yaml", "metrics.jsonl"}
    _, config = load_model(folder / "best")
    assert config == read_config(folder / "config.yaml")
    assert (config.machine.device, config.machine.threads) == ("cuda" if torch.cuda.is_available() else "cpu", 1)
    assert [record["rung"] for record in read_records(folder / "metrics.jsonl") if record["kind"] == "dev"] == [1, 3, 9]


def test_a_long_run_prints_few_lines_where_nobody_watches(typed: Typed) -> None:
    _, out, _ = typed("mine.yaml --set budget/examples=4800 --set tasks/all/batch_size=8")
    assert len(re.findall("left$", out, re.MULTILINE)) <= MOST_LINES + 1 <= 20


def test_on_a_terminal_one_line_lives_below_the_evaluations(here: Path) -> None:
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    for name in ("CI", "COLAB_RELEASE_TAG", "JPY_PARENT_PID"):
        environment.pop(name, None)
    ours, theirs = pty.openpty()
    with subprocess.Popen(command("mine.yaml"), stdout=theirs, stderr=theirs, cwd=here, env=environment) as process:
        os.close(theirs)
        seen = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                seen += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    text = seen.decode()
    assert process.returncode == 0, text
    assert text.count("dev at") == 3
    assert re.search(r"\x1b\[2K.*(begins …|left)", text, re.DOTALL), "a line is wiped and drawn again"
    assert not re.search(r"\[\d\d:\d\d:\d\d\] \d+ %", text), "progress has no lines of its own"


def test_pretraining_is_planned_told_and_afterwards_found(
    typed: Typed, here: Path, small_toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_toy_cache, tmp_path / "cache", ignore=shutil.ignore_patterns("pretrained"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (here / "mine.yaml").write_text(CONFIG + "stages: [{kind: mlm, epochs: 0.5}, multitask]\n")
    code, said, _ = typed("mine.yaml")
    assert code == 0
    assert re.search(r"^pretrain  mlm \w{8}: 0\.5 epochs of sst, para, sts; trained once, for all trials$", said, re.M)
    assert re.search(r"^\[.*\] mlm \d+ %  \d+ texts  loss \d\.\d{3}  \d+ texts/s  \d+ s left$", said, re.M)
    assert re.search(
        r"\] mlm \w{8} trained in \d+ s; on held-out texts loss 5\.\d+ -> \d\.\d+, accuracy 0\.\d+ -> 0\.\d+$", said, re.M
    )
    assert "] The checkpoint has no head over masked words (cls.predictions): a fresh one was drawn." in said
    assert re.search(r"^took      \d+ s, 480 examples", said, re.M)
    code, said, _ = typed("mine.yaml --to again --set seed=5")
    assert "; in the cache, took " in said
    assert re.search(r"\] mlm \w{8} found in the cache, trained in", said)
    assert said.count("texts/s") == 0


def test_the_time_left_counts_steps_and_evaluations_each_at_its_own_rate() -> None:
    assert seconds_left([], 100, 3, 60) is None
    train, dev = {"kind": "train"}, {"kind": "dev"}
    records = [train | {"seconds": 10.0, "examples": 20}, dev | {"seconds": 14.0, "examples": 20}]
    assert seconds_left(records[:1], 100, 3, 60) == pytest.approx(80 * 10 / 20 + 3 * 60 * (10 / 20) / 3)
    assert seconds_left(records, 100, 3, 60) == pytest.approx(80 * 10 / 20 + 2 * 4)
    before = {"kind": "pretrain", "seconds": 0.0, "examples": 0}
    assert seconds_left([before], 100, 3, 60) is None
    assert seconds_left([before, *records], 100, 3, 60) == seconds_left(records, 100, 3, 60)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("configs/mine.yaml", "mine"),
        ("runs/smart/trials/007/config.yaml", "smart-007"),
        ("runs/smart/trials/007/best/config.yaml", "smart-007"),
        ("trained/mine/best/config.yaml", "mine"),
        ("trained/mine/config.yaml", "mine"),
    ],
)
def test_a_folder_is_named_after_the_config_or_the_trial(path: str, name: str) -> None:
    assert default_name(Path(path)) == name


# ------------------------------------------------------------------------------------------------- repeating and going on


def test_a_trial_of_a_search_is_repeated_to_the_digit(typed: Typed, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.tune

    from search.study.trainable import run_trial

    trial = here / "runs" / "smart" / "trials" / "007"
    trial.mkdir(parents=True)
    machine = {"device": "cpu", "threads": 1, "precision": "float32"}  # a search writes all of it
    document = {"data": "toy", "encoder": "tiny", "budget": {"examples": 480}, "seed": 5, "machine": machine}
    (trial / "config.yaml").write_text(dump_yaml(document | {"gradient": "gradvac", "optimizer": {"lr": 1e-3}}))
    monkeypatch.setattr(ray.tune, "report", lambda metrics: None)
    run_trial({"number": 7, "folder": str(trial), "exempt": False, "relocated": {}})

    assert typed("runs/smart/trials/007/config.yaml")[0] == 0
    assert len(numbers(trial)) > 10
    assert numbers(here / "trained" / "smart-007") == numbers(trial)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_same_command_goes_on_where_it_was_broken_off_to_the_digit(typed: Typed, here: Path, number: int) -> None:
    line = "mine.yaml --set budget/examples=1440"
    with subprocess.Popen(
        [sys.executable, "-u", *command(*shlex.split(line))[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any("dev at 3/9" in told for told in process.stdout)
        process.send_signal(number)
        process.wait(60)
        said = process.stderr.read()
    folder = here / "trained" / "mine"
    assert state_file(folder).exists(), said
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert f"Interrupted. Resume from the last snapshot, if there is one:\n  python -m minbert_core.train {line}" in said

    code, out, _ = typed(line)
    assert code == 0
    assert "resumes   after 480 of 1,440 examples" in out
    assert "dev at 3/9" not in out, "it has been there"
    assert not (folder / "state").exists()
    typed(f"{line} --to whole")
    assert numbers(folder) == numbers(here / "whole")


def test_a_finished_training_is_told_and_not_done_again(typed: Typed, here: Path) -> None:
    typed("mine.yaml")
    before = (here / "trained" / "mine" / "metrics.jsonl").read_bytes()
    code, out, _ = typed("mine.yaml")
    assert code == 0
    assert "It is trained already" in out
    assert re.search(r"best      at \d/9: sst ", out)
    assert (here / "trained" / "mine" / "metrics.jsonl").read_bytes() == before


def test_a_snapshot_that_is_broken_is_as_none(typed: Typed, here: Path) -> None:
    typed("mine.yaml")
    folder = here / "trained" / "mine"
    whole = numbers(folder)
    write_records(folder / "metrics.jsonl", read_records(folder / "metrics.jsonl")[:3])
    state_file(folder).parent.mkdir()
    state_file(folder).write_bytes(b"cut short")
    code, out, _ = typed("mine.yaml")
    assert (code, "is not a complete snapshot" in out) == (0, True)
    assert numbers(folder) == whole


def test_a_training_keeps_the_threads_it_began_with(typed: Typed, here: Path) -> None:
    """What the config leaves open is chosen once: on a machine with other cores it goes on as it began."""
    (here / "mine.yaml").write_text(CONFIG.replace("machine: {threads: 1}\n", ""))
    typed("mine.yaml --set machine/threads=2")
    assert "It is trained already" in typed("mine.yaml")[1]


def test_the_tiny_encoder_takes_one_thread(typed: Typed, here: Path) -> None:
    (here / "mine.yaml").write_text(CONFIG.replace("machine: {threads: 1}\n", ""))
    typed("mine.yaml --set machine/device=cpu")
    assert read_config(here / "trained" / "mine" / "config.yaml").machine.threads == 1


def test_no_search_engine_is_imported(here: Path) -> None:
    """Not even tried: an import of one of these would raise."""
    absent = ["ray", "optuna", "mlflow", "transformers", "search", "analysis"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from minbert_core.train.__main__ import main\n"
        "sys.exit(main(['mine.yaml', '--set', 'budget/examples=96']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dev at 9/9" in done.stdout


# --------------------------------------------------------------------------------------------------------------- refusals


def test_another_configuration_is_not_trained_into_the_folder(typed: Typed, here: Path) -> None:
    typed("mine.yaml")
    before = numbers(here / "trained" / "mine")
    code, _, err = typed("mine.yaml --set optimizer/lr=2e-3 --set gradient=pcgrad")
    assert code == 3
    assert "trained/mine was begun with another configuration: " in err
    assert "`gradient` is 'sum' there and 'pcgrad' here" in err
    assert "`optimizer/lr` is 0.001 there and 0.002 here" in err
    assert "Give another folder with --to" in err
    assert numbers(here / "trained" / "mine") == before


def test_a_configuration_that_failed_before_its_first_step_does_not_block_the_folder(typed: Typed, here: Path) -> None:
    folder = here / "trained" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.replace("480", "960"))
    assert typed("mine.yaml")[0] == 0
    assert read_config(folder / "config.yaml").budget.examples == 480


PRETRAINED = {"kind": "pretrain", "step": 0, "examples": 0, "seconds": 0.0, "stage": "mlm", "key": "0", "made": True}


@pytest.mark.parametrize("records", [[], [PRETRAINED]])
def test_a_start_that_failed_after_it_opened_its_records_does_not_block_the_folder(
    typed: Typed, here: Path, records: list[dict[str, Any]]
) -> None:
    folder = here / "trained" / "mine"
    save_snapshot(state_file(folder), {"counters": {"step": 0}}, records)
    (folder / "config.yaml").write_text(CONFIG.replace("480", "960"))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert typed("mine.yaml")[0] == 0
    assert read_config(folder / "config.yaml").budget.examples == 480


def test_a_snapshot_alone_binds_a_folder_to_its_config(typed: Typed, here: Path) -> None:
    """As a power cut leaves it."""
    folder = here / "trained" / "mine"
    save_snapshot(state_file(folder), {}, [{"kind": "train", "step": 3}])
    (folder / "config.yaml").write_text(CONFIG.replace("480", "960"))
    assert typed("mine.yaml")[0] == 3
    assert state_file(folder).exists()


def test_a_training_that_diverges_ends_with_the_sentence(typed: Typed) -> None:
    code, _, err = typed("mine.yaml --set optimizer/head_lr_factor=1e30")
    assert code == 1
    assert re.match(r"The loss of .* became .* its learning rate was", err)


def test_a_folder_that_is_not_ours_is_left_alone(typed: Typed, here: Path) -> None:
    (here / "notes").mkdir()
    (here / "notes" / "a.txt").write_text("mine")
    (here / "runs" / "smart" / "trials" / "007").mkdir(parents=True)
    (here / "runs" / "smart" / "study.journal").touch()
    for folder, sentence in (
        ("notes", "notes contains other files, but no training."),
        ("mine.yaml", "mine.yaml is a file."),
        ("runs/smart/trials/007", "is inside a search's folder."),
    ):
        code, _, err = typed(f"mine.yaml --to {folder}")
        assert (code, sentence in err, "--to" in err) == (3, True, True)


def test_two_at_once_do_not_train_in_one_folder(typed: Typed, here: Path) -> None:
    (here / "there").mkdir()
    descriptor = os.open(here / "there", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    code, _, err = typed("mine.yaml --to there")
    os.close(descriptor)
    assert (code, "Another process is training in" in err) == (3, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_trial_of_a_gpu_is_refused_without_one_and_told_how_it_goes(typed: Typed) -> None:
    code, _, err = typed("mine.yaml --set machine/device=cuda")
    assert (code, "--set machine/device=cpu --set machine/precision=float32" in err) == (3, True)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("nowhere.yaml", r"Cannot read nowhere\.yaml: No such file or directory\."),
        ("mine.yaml --set optimizer/rate=1", r"--set optimizer/rate=1: Unknown key `optimizer/rate`"),
        ("mine.yaml --set optimiser/lr=1", r"--set optimiser/lr=1: Unknown key `optimiser`; did you mean 'optimizer'\?"),
        ("mine.yaml --set optimizer/lr", r"--set takes path=value, as in --set optimizer/lr=2e-5\. Got 'optimizer/lr'\."),
        (
            "mine.yaml --set optimizer/l\u200br=1",
            r"The path holds an invisible character \(U\+200B ZERO WIDTH SPACE\) after 'optimizer/l'",
        ),
        ("mine.yaml --set \u00a0seed=1", r"The path holds an invisible character \(U\+00A0 NO-BREAK SPACE\) at its start\."),
        ("mine.yaml --set optimizer/lr=2e\u200b-5", r"must be a number\. Got '2e\\u200b-5'\. It holds an invisible character"),
        ("mine.yaml --set optimizer.lr=7", r"--set optimizer\.lr=7: `optimizer/lr` must be <= 1\. Got 7\."),
        (
            "mine.yaml --set gradient=pcgrat",
            r"--set gradient=pcgrat: Unknown `gradient` kind 'pcgrat'; did you mean 'pcgrad'\?",
        ),
        (
            "mine.yaml --set gradient/gradvac/beta=.1",
            r"the config does not use 'gradvac' there\. Choose it first: gradient=gradvac\.",
        ),
        (
            "mine.yaml --set 'optimizer/lr={uniform: [0.1, 0.2]}'",
            r"--set .*: `optimizer/lr` is a domain, .*search\.run --space",
        ),
        ("mine.yaml --set trials=3", r"--set trials=3: `trials` belongs to a search space.*search\.run --space mine\.yaml"),
        ("mine.yaml --data nowhere --encoder .", r"The data folder /.*/nowhere does not exist\. With `--data DIR`"),
        ("mine.yaml --data . --encoder ./none", r"The encoder folder none does not exist\."),
        ("mine.yaml --overfit --to there", r"--overfit writes nothing, so it cannot be combined with --to\."),
        ("mine.yaml --overfit 1", r"--overfit: must be a whole number of examples from 2 to 512\. Got '1'\."),
        ("mine.yaml --overfit 500", r"--overfit 500: task sst has only 120 examples\."),
        ("", r"the following arguments are required: CONFIG\.yaml"),
    ],
)
def test_what_is_written_wrong_is_refused_in_a_sentence(typed: Typed, here: Path, line: str, sentence: str) -> None:
    code, _, err = typed(line)
    assert code == 2
    assert re.search(sentence, err), err
    assert not (here / "trained").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optimizer:\n  lrr: 1\n", "mine.yaml:2: Unknown key `optimizer/lrr`; did you mean 'lr'?"),
        ("seed: 1\ntrials: 8\nconfig: {}\n", "mine.yaml:2: `trials` belongs to a search space"),
        (
            "optimizer:\n  lr: {log_uniform: [1e-5, 1e-4]}\n",
            "mine.yaml:2: `optimizer/lr` is a domain, {log_uniform: [1e-05, 0.0001]}",
        ),
        ("stages:\n- kind: multitask\n  gradient: {choice: [sum]}\n", "mine.yaml:3: `stages/0/multitask/gradient` is a domain"),
        ("- a\n", "A config is a map of settings. Got ['a']."),
    ],
)
def test_a_fault_in_the_file_is_named_with_its_line(typed: Typed, here: Path, text: str, sentence: str) -> None:
    (here / "mine.yaml").write_text(text)
    code, _, err = typed("mine.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert sentence in err


def test_the_words_of_a_space_are_those_that_search_knows() -> None:
    from search.space.domains import DOMAINS
    from search.space.file import SPACE_KEYS

    assert set(DOMAIN_WORDS) == set(DOMAINS)
    assert set(SPACE_WORDS) == set(SPACE_KEYS) - set(TrialConfig.model_fields)


# ------------------------------------------------------------------------------------------------------------------ --set


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("optimizer/lr=2e-5", "optimizer/lr", 2e-5),
        ("optimizer.lr = 2e-5", "optimizer/lr", 2e-5),
        ("gradient={kind: gradvac, beta: 0.5}", "gradient", {"kind": "gradvac", "beta": 0.5}),
        ("smoothness/smart/radius=0.2", "smoothness", {"kind": "smart", "radius": 0.2}),
        ("tasks/sts/batch_size=4", "tasks/sts/batch_size", 4),
        ("tasks/all/head/mlp/hidden=[8]", "tasks/all/head", {"kind": "mlp", "hidden": [8]}),
        ("stages/1/multitask/share=0.5", "stages/1", {"kind": "multitask", "share": 0.5}),
        ("loss_weights/static/weights={sst: 2}", "loss_weights", {"kind": "static", "weights": {"sst": 2}}),
        ("encoder/hidden_dropout=0.2", "encoder", {"checkpoint": "some-bert", "hidden_dropout": 0.2}),
        ("data=a=b", "data", "a=b"),
    ],
)
def test_a_set_puts_its_value_at_its_path(text: str, path: str, value: object) -> None:
    document: Any = {
        "encoder": "some-bert",
        "smoothness": "smart",
        "tasks": {"all": {"head": "mlp"}},
        "stages": ["linear_probe", "multitask"],
    }
    parts, written, source = parse_set(text)
    Override(written, source).put(document, parts)
    for key in path.split("/"):
        document = document[int(key) if isinstance(document, list) else key]
    assert document == value


def test_options_lie_over_sets_and_sets_over_the_file_in_order(here: Path) -> None:
    config = read(Path("mine.yaml"), ["optimizer/lr=1e-4", "data=elsewhere", "optimizer/lr=1e-5"], "toy", None)
    assert (config.optimizer.lr, config.data, config.encoder.checkpoint) == (1e-5, "toy", "tiny")


def test_print_writes_the_composed_config_as_a_file_that_runs(here: Path, typed: Typed) -> None:
    code, printed, _ = typed("mine.yaml --set optimizer/lr=2e-5 --print")
    assert code == 0
    (here / "again.yaml").write_text(printed)
    assert read(here / "again.yaml", []) == read(here / "mine.yaml", ["optimizer/lr=2e-5"])
    assert not (here / "trained").exists()


def test_on_train_and_dev_all_rows_are_trained_on_and_no_score_is_shown(here: Path, typed: Typed) -> None:
    code, out, _ = typed("mine.yaml --on train+dev")
    assert code == 0
    assert "rows of train and dev together: sst 160, para 160, sts 160" in out
    assert "dev       is trained on, too, so no dev score can be shown" in out
    assert "best      at 9/9: trained on train and dev, so there is no dev score" in out
    folder = here / "trained" / "mine-all"
    records = read_records(folder / "metrics.jsonl")
    assert [record["rung"] for record in records if record["kind"] == "rung"] == [1, 3, 9]
    assert not [key for record in records for key in record if key.startswith("dev/")]
    assert "It is trained already" in typed("mine.yaml --on train+dev")[1]
    assert load(folder / "best", "cpu").config.rows == "train+dev"
    assert predict.main([str(folder), "a film"]) == 0
    with pytest.raises(Refused, match=r"was trained on its dev rows, too .*say nothing\."):
        open_model(folder)


def test_on_train_and_dev_the_rows_are_those_of_both_files(here: Path) -> None:
    config = read(here / "mine.yaml", [])
    alone, whole = (open_inputs(config.model_copy(update={"rows": rows})) for rows in ("train", "train+dev"))
    assert whole.dev == {}
    for name, split in whole.train.items():
        assert split.ids == [*alone.train[name].ids, *alone.dev[name].ids]
        assert split.labels is not None
        assert split.labels.tolist() == np.concatenate([of[name].labels for of in (alone.train, alone.dev)]).tolist()
        assert split.sentences()[0][-1].tolist() == alone.dev[name].sentences()[0][-1].tolist()
