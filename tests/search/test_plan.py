"""What is settled before a process starts: resources, names, the lock, plan.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from minbert_core.data.corpus import CorpusError, fingerprint
from minbert_core.settings import SettingsError
from search import plan as plan_module
from search.plan import (
    FORMAT,
    Plan,
    Refused,
    Resources,
    find_resources,
    lock,
    make_plan,
    make_search_folder,
    new_search_folder,
    read_plan,
    wait_for_workers,
)
from search.space import make_space

CPUS = Resources(cpus=2, gpus=0, cpus_per_trial=1, gpus_per_trial=0)
CONFIG: dict[str, Any] = {
    "data": "toy",
    "encoder": "tiny",
    "budget": {"examples": 900},
    "optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}},
}


def planned(num_trials: int = 9, baselines: Any = ({}, {}), rungs: Any = None, **config: Any) -> Plan:
    document = {"config": CONFIG | config, "baselines": list(baselines)} | ({"rungs": rungs} if rungs else {})
    return make_plan("quick", make_space("quick", document), 0, num_trials, CPUS)


def line(plan: Plan, word: str) -> str:
    return next(text for text in plan.lines() if text.startswith(word))


# ------------------------------------------------------------------------------------------------------------ resources


@pytest.mark.parametrize(
    ("cpus", "gpus", "cpus_per_trial", "gpus_per_trial", "slots"),
    [
        (2, 0, 1, 0, 2),
        (5, 0, 2, 0, 2),
        (8, 2, 1, 0.5, 4),
        (16, 1, 1, 0.1, 10),
        (128, 7, 1, 0.07, 100),  # in floats 7 / 0.07 is a little less
        (4, 4, 2, 1, 2),  # the cores are what is short
        (8, 3, 1, 2, 1),
    ],
)
def test_slots_are_what_both_cores_and_gpus_allow(
    cpus: int, gpus: float, cpus_per_trial: int, gpus_per_trial: float, slots: int
) -> None:
    assert Resources(cpus, gpus, cpus_per_trial, gpus_per_trial).slots == slots


@pytest.mark.parametrize(("present", "have", "line"), [(0, "no GPU", "run --gpus 0"), (1, "1 GPU", "run --gpus 1")])
def test_too_many_gpus_are_refused_with_the_line_that_works(
    monkeypatch: pytest.MonkeyPatch, present: int, have: str, line: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    with pytest.raises(Refused, match=f"--gpus 4 asks for more than this machine has \\({have}\\)") as refusal:
        find_resources("4", None, 1, "run")
    last = str(refusal.value).splitlines()[-1].strip()
    assert last == line
    assert find_resources(last.split()[-1], None, 1, "run").gpus == present


def test_auto_takes_the_gpus_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = find_resources("auto", None, 1, "run")
    assert (found.gpus, found.gpus_per_trial) == (2, 1.0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = find_resources("auto", 0.5, 1, "run")
    assert (found.gpus, found.gpus_per_trial) == (0, 0)


def test_a_trial_larger_than_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="--cpus-per-trial 100000 asks for more than this machine's"):
        find_resources("0", None, 100_000, "run")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Refused, match=r"--gpus-per-trial 2 asks for more than the 1 GPU of this search"):
        find_resources("1", 2, 1, "run")


# -------------------------------------------------------------------------------------------------------------- folders


def test_default_names_count_up_and_a_used_explicit_name_is_refused(tmp_path: Path) -> None:
    assert [make_search_folder(tmp_path, None, "smart").name for _ in range(3)] == ["smart", "smart-2", "smart-3"]
    assert make_search_folder(tmp_path, "mine", "smart").name == "mine"
    with pytest.raises(Refused, match=r"The name 'mine' is used .* --resume mine; or give another --name"):
        new_search_folder(tmp_path, "mine", "smart")


def test_two_searches_that_start_at_once_get_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smart").mkdir()
    answers = iter([tmp_path / "smart", tmp_path / "smart-2"])  # the first was free when it was looked for
    monkeypatch.setattr(plan_module, "new_search_folder", lambda *_: next(answers))
    assert make_search_folder(tmp_path, None, "smart").name == "smart-2"


HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_searchs_lock_is_for_one_and_free_when_its_process_dies(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(Refused, match=r"is running already \(pid \d+ on .*\)"):
        lock(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(Refused, match="is running already"):
            lock(tmp_path)
        process.kill()
        process.wait()
        lock(tmp_path).close()


def test_a_resumed_search_waits_for_the_workers_of_the_killed_one(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "003"
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, folder / "log.txt"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(Refused, match="A worker of the interrupted search still runs trial 003"):
            wait_for_workers(tmp_path, timeout_seconds=0.1)
        process.kill()
        wait_for_workers(tmp_path)


# ----------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.usefixtures("cache")
def test_plan_json_holds_all_that_a_resume_and_a_reader_need() -> None:
    plan = planned()
    document = json.loads(json.dumps(plan.document(["--space", "quick.yaml"])))
    assert document["format"] == FORMAT
    assert (document["name"], document["space_name"], document["seed"], document["trials"]) == ("quick", "quick", 0, 9)
    assert (document["gpus"], document["gpus_per_trial"], document["cpus_per_trial"]) == (0, 0, 1)
    assert (document["data"], document["encoder"], document["objective"]) == ("toy", "tiny", "norm")
    assert document["command"] == ["--space", "quick.yaml"]
    assert set(document["versions"]) == {"torch", "ray", "optuna", "mlflow", "pyarrow", "tokenizers"}
    assert [baseline["optimizer/lr"] for baseline in document["baselines"]] == [pytest.approx(1e-3)] * 2
    assert {"created", "git_commit", "python", "examples", "expected_full_trials", "train_on"} <= set(document)


@pytest.mark.usefixtures("cache")
def test_fingerprints_are_of_train_and_dev_only() -> None:
    plan = planned()
    fingerprints = plan.fingerprints()
    assert sorted(fingerprints) == ["para-dev", "para-train", "sst-dev", "sst-train", "sts-dev", "sts-train"]
    assert fingerprints["sts-dev"] == fingerprint(plan.inputs.data_folder / "sts-dev.csv")


@pytest.mark.usefixtures("cache")
def test_the_plan_says_its_budget_in_steps_and_examples() -> None:
    assert "about 19 steps of 48 (a batch of each task)" in line(planned(), "budget")
    tasks = {"all": {"batch_size": 8}, "sst": {"batch_size": 32}}
    single = line(planned(task_schedule="proportional", tasks=tasks), "budget")
    assert "about 57 steps of 16 (a batch of one task)" in single  # (32 + 8 + 8) / 3 examples a step on average
    assert "at 100, 300, 900 examples" in line(planned(), "objective")


@pytest.mark.usefixtures("cache")
def test_the_plan_counts_its_baselines_in_words() -> None:
    assert ", of which 2 baselines run to the end; the best 1/3 go on" in line(planned(), "trials")
    assert ", of which 1 baseline runs to the end; " in line(planned(baselines=[{}]), "trials")
    assert line(planned(baselines=[]), "trials").startswith("trials    9; the best 1/3")
    assert line(planned(4, baselines=[], rungs=[1]), "trials") == "trials    4; expected cost: 4.0 full trials, 3,600 examples"


@pytest.mark.usefixtures("cache")
def test_few_trials_are_warned_of() -> None:
    assert planned(6).warnings() == []
    [warning] = planned(5).warnings()
    assert "6 trials or more would let halving work" in warning


@pytest.mark.usefixtures("cache")
def test_no_room_for_the_baselines_is_an_error() -> None:
    with pytest.raises(ValueError, match="--trials 1 leaves no room for the space's 2 baselines"):
        planned(1)


def test_dropped_rows_are_counted_and_named(data: Path, encoder: Path) -> None:
    path = data / "sts-train.csv"
    rows = path.read_text().splitlines()
    for number in range(1, 8):
        rows[number] = "\t".join([*rows[number].split("\t")[:-1], ""])
    path.write_text("\n".join(rows) + "\n")
    identity = rows[1].split("\t")[1]

    plan = planned(data=str(data), encoder=str(encoder))
    [sentence] = plan.left_out()
    assert sentence.startswith(f"7 rows of sts-train.csv left out: line 2 ({identity[:8]}…, empty: similarity); line 3 (")
    assert sentence.count("; line ") == 6
    [short] = [text for text in plan.lines() if "left out" in text]
    assert short.endswith("; 2 more, which the search's log.txt names")
    assert "sts 1,993/400" in line(plan, "data")


def test_folders_are_absolute_in_a_plan(data: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    plan = planned(data="data", encoder="encoder")
    assert (plan.config.data, plan.config.encoder.checkpoint) == (str(data), str(encoder))
    assert plan.config.machine.threads == 1


@pytest.mark.usefixtures("cache")
def test_a_missing_data_folder_says_what_to_do(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(CorpusError, match=r"There is no data folder .*/nowhere\. Give .* `--data DIR`, or try .* embedded"):
        planned(data=str(tmp_path / "nowhere"), encoder=str(encoder))


@pytest.mark.usefixtures("cache")
def test_what_a_user_set_of_the_machine_stays() -> None:
    assert planned(machine={"threads": 2}).config.machine.threads == 2
    with pytest.raises(SettingsError, match="threads"):
        planned(machine={"threads": 0})


# ------------------------------------------------------------------------------------------------------------ read_plan


def test_an_unknown_search_names_the_known_ones(tmp_path: Path) -> None:
    for name in ("smart", "heads"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"There is no search 'smrt' in .*; did you mean 'smart'\? Known: heads, smart\."):
        read_plan(tmp_path / "smrt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"format": FORMAT + 1}), f"has format {FORMAT + 1}; this version reads up to {FORMAT}"),
        ('{"format": ', "is broken"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_plan(tmp_path)
