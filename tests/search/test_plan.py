"""What is settled before a process starts: resources, names, the lock, plan.json."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minbert_core.data.corpus import CorpusError, fingerprint
from minbert_core.settings import SettingsError
from search import plan as plan_module
from search.domains import Choice
from search.plan import (
    FORMAT,
    Plan,
    Refused,
    Resources,
    find_resources,
    lock,
    machine_settings,
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


def planned(
    num_trials: int = 9, baselines: Any = ({}, {}), rungs: Any = (1, 3, 9), trial_scheduler: Any = "asha", **config: Any
) -> Plan:
    own = {"baselines": list(baselines), "rungs": list(rungs), "trial_scheduler": trial_scheduler}
    return make_plan("quick", make_space("quick", {"config": CONFIG | config, **own}), 0, num_trials, CPUS)


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
def test_the_plan_of_top_k_says_whom_it_lets_go_on_and_what_that_costs() -> None:
    plan = planned(9, trial_scheduler={"kind": "top_k", "k": 3})  # 2 baselines and 3 of the others to the end, 4 to 1/9
    assert plan.full_trials == pytest.approx(5 + 4 / 9)
    cost = "expected cost: 5.4 full trials, 4,900 examples"
    assert line(plan, "trials").endswith(f", of which 2 baselines run to the end; the best 3 at 1/9 go on to the end; {cost}")
    assert plan.warnings() == []
    assert planned(5, trial_scheduler="top_k").warnings() == ["top_k lets 3 of 3 trials go on, so it stops none."]


@pytest.mark.usefixtures("cache")
def test_a_single_rung_is_not_warned_of() -> None:
    assert planned(2, rungs=[1]).warnings() == []


@pytest.mark.usefixtures("cache")
def test_rows_that_max_length_cuts_are_warned_of_from_one_in_a_hundred_on() -> None:
    [warning] = planned(max_length=24, train_on=["sst", "cfimdb"]).warnings()
    assert re.fullmatch(r"cfimdb: (9\d|100) % of the rows are longer than max_length 24 and are cut\.", warning)
    assert f"warning   {warning}" in planned(max_length=24, train_on=["sst", "cfimdb"]).lines()
    plan = planned(max_length=72, train_on=["cfimdb"])
    assert 0 < plan.inputs.train["cfimdb"].num_longer("cross", 72) < 20  # of 2,000
    assert plan.warnings() == []
    assert plan.inputs.sizes == {"cfimdb": 2000}


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


# ------------------------------------------------------------------------------------------------------------ encoders


@pytest.fixture
def two(data: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Here, the folders data, encoder and other, an encoder with one word more."""
    other = shutil.copytree(encoder, encoder.with_name("other"))
    vocabulary = (other / "vocab.txt").read_text().removesuffix("\n").split("\n")
    [unused, *_] = [i for i, word in enumerate(vocabulary) if word not in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
    vocabulary[unused] = "wordofother"
    (other / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    monkeypatch.chdir(data.parent)
    return data.parent


def searched(**document: Any) -> Plan:
    document["config"] = CONFIG | {"data": "data"} | document["config"]
    return make_plan("quick", make_space("quick", document), 0, 9, CPUS)


def checkpoint_of(plan: Plan, label: str) -> str:
    """The checkpoint of the trials that choose `label`."""
    return (
        plan.space.sample(lambda name, domain: label if isinstance(domain, Choice) else domain.middle(None))
        .config()
        .encoder.checkpoint
    )


NAMED = [{"name": "small", "checkpoint": "encoder"}, {"name": "large", "checkpoint": "other", "hidden_dropout": 0.2}]


@pytest.mark.parametrize(
    ("document", "labels"),
    [
        ({"config": {"encoder": {"choice": NAMED}}}, ("small", "large")),
        ({"config": {"encoder": {"choice": ["encoder", "other"]}}}, ("encoder", "other")),
        ({"config": {"encoder": {"checkpoint": {"choice": ["./encoder", "./other"]}}}}, ("./encoder", "./other")),
        (
            {
                "config": {},
                "together": {
                    "size": [
                        {"name": "s", "set": {"encoder": "encoder"}},
                        {"name": "l", "set": {"encoder/checkpoint": "other"}},
                    ]
                },
            },
            ("s", "l"),
        ),
    ],
    ids=["named", "bare", "checkpoint", "together"],
)
def test_trials_find_the_folder_of_a_searched_encoder_under_its_short_label(
    two: Path, document: dict[str, Any], labels: tuple[str, str]
) -> None:
    plan = searched(**document)
    assert [checkpoint_of(plan, label) for label in labels] == [str(two / "encoder"), str(two / "other")]
    [choice] = [domain for domain, _ in plan.space.domains().values() if isinstance(domain, Choice)]
    assert choice.labels == labels
    assert line(plan, "encoder") == f"encoder   {two / 'encoder'}, {two / 'other'}"


def test_a_baselines_own_encoder_is_found_too(two: Path) -> None:
    plan = searched(config={"encoder": "encoder"}, baselines=[{"encoder": {"checkpoint": "other"}}])
    assert plan.space.baseline(0).config().encoder.checkpoint == str(two / "other")
    assert plan.config.encoder.checkpoint == str(two / "encoder")


def test_the_driver_tokenises_for_every_searched_encoder(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(two / "cache"))
    searched(config={"encoder": {"choice": NAMED}})
    assert len(list((two / "cache" / "minbert" / "tokens").glob("*.arrow"))) == 2 * 3 * 2  # encoders, tasks, train and dev


def test_a_fault_in_any_searched_encoder_shows_before_the_search_starts(two: Path) -> None:
    weights = two / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"Cannot read .*/other/model\.safetensors: .* it may be truncated"):
        searched(config={"encoder": {"choice": NAMED}})
    weights.unlink()
    with pytest.raises(ValueError, match=r"/other has no model\.safetensors"):
        searched(config={"encoder": {"choice": NAMED}})
    with pytest.raises(ValueError, match=r"There is no encoder folder nowhere"):
        searched(config={"encoder": {"choice": [NAMED[0], {"name": "large", "checkpoint": "./nowhere"}]}})


def test_a_resumed_search_finds_its_encoders_from_anywhere(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = searched(config={"encoder": {"choice": NAMED}})
    monkeypatch.chdir("/")
    known = json.loads(json.dumps(plan.document([])))["encoders"]
    again = make_plan("quick", replace(make_space("quick", plan.space.document), encoders=known), 0, 9, CPUS)
    assert checkpoint_of(again, "large") == str(two / "other")


# --------------------------------------------------------------------------------------------------------------- a GPU


def test_a_share_of_a_gpu_is_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    on_gpu = {"device": "cuda", "threads": 2, "precision": "bfloat16"}
    assert machine_settings(Resources(8, 1, 2, 0.25)) == {**on_gpu, "gpu_share": 0.25}
    assert machine_settings(Resources(8, 2, 2, 1)) == machine_settings(Resources(8, 2, 2, 2)) == on_gpu
    assert machine_settings(Resources(8, 0, 2, 0)) == {"device": "cpu", "threads": 2, "precision": "float32"}


@pytest.mark.usefixtures("cache")
def test_the_plan_says_what_a_share_of_a_gpu_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80e9))
    on_gpu = {"device": "cuda", "precision": "bfloat16"}
    assert line(planned(machine={**on_gpu, "gpu_share": 0.25}), "machine").endswith("; at most 20.0 GB of GPU memory each")
    assert line(planned(machine=on_gpu), "machine").endswith("cuda, bfloat16")
    assert line(planned(), "machine").endswith("cpu, float32")


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
