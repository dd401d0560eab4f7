"""What is settled before a process starts: resources, names, the lock, plan.json."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minbert_core.checkpoints import load_encoder, save_encoder
from minbert_core.commands import Refused
from minbert_core.config import FORMAT
from minbert_core.data.corpus import fingerprint
from minbert_core.data.tables import CorpusError
from minbert_core.data.tasks import TASKS
from minbert_core.encoder import new_encoder
from minbert_core.settings.faults import SettingsError
from minbert_core.train.preview import dropped_rows
from search.cluster.gpus import Gpu
from search.plan.plan import Plan, make_plan
from search.plan.resources import Resources
from search.plan.summary import plan_lines, plan_record, warnings
from search.space.domains import Choice
from search.space.space import make_space

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
    return next(text for text in plan_lines(plan) if text.startswith(word))


# ----------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.usefixtures("cache")
def test_plan_json_holds_all_that_a_resume_and_a_reader_need() -> None:
    plan = planned()
    document = json.loads(json.dumps(asdict(plan_record(plan, ["--space", "quick.yaml"]))))
    assert document["format"] == FORMAT
    assert (document["name"], document["space_name"], document["seed"], document["trials"]) == ("quick", "quick", 0, 9)
    assert (document["gpus"], document["gpus_per_trial"], document["cpus_per_trial"]) == (0, 0, 1)
    assert (document["data"], document["encoder"], document["objective"]) == ("toy", "tiny", "norm")
    assert document["command"] == ["--space", "quick.yaml"]
    assert set(document["versions"]) == {"torch", "ray", "optuna", "mlflow", "pyarrow", "tokenizers"}
    assert [baseline["optimizer/lr"] for baseline in document["baselines"]] == [pytest.approx(1e-3)] * 2
    assert {"created", "git_commit", "python", "examples", "expected_full_trials", "train_on"} <= set(document)


@pytest.mark.parametrize(
    ("shape", "config", "sentence"),
    [
        ({"type_vocab_size": 1}, {}, r"`tasks/sts/pair_encoding/cross` puts two sentences into one sequence, .* has 1"),
        (
            {"type_vocab_size": 1},
            {"tasks": {"pairs": {"pair_encoding": {"choice": ["bi", "cross"]}}}},
            r"`tasks/para/pair_encoding/cross` puts two sentences into one sequence, .* has 1",
        ),
        ({"max_position_embeddings": 64}, {"max_length": {"int": [16, 65]}}, r"the encoder's 64 positions\. Got 65\."),
        ({"vocab_size": 100}, {}, r"tokens, but its encoder has word embeddings for 100"),
    ],
)
def test_an_encoder_too_small_for_any_branch_or_end_of_a_range_is_refused(
    data: Path, encoder: Path, shape: dict[str, int], config: dict[str, Any], sentence: str
) -> None:
    own = replace(load_encoder(encoder, 0, 0).shape, **shape)
    save_encoder(new_encoder(own, 0, 0, 0), encoder)
    with pytest.raises(ValueError, match=sentence):
        planned(data=str(data), encoder=str(encoder), **config)


@pytest.mark.usefixtures("cache")
def test_fingerprints_are_of_train_and_dev_only() -> None:
    plan = planned()
    fingerprints = plan.fingerprints()
    assert sorted(fingerprints) == ["para-dev", "para-train", "sst-dev", "sst-train", "sts-dev", "sts-train"]
    assert fingerprints["sts-dev"] == fingerprint(plan.inputs.data_folder / "sts-dev.csv", TASKS["sts"])


@pytest.mark.usefixtures("cache")
def test_the_plan_says_its_budget_in_steps_and_examples() -> None:
    assert "about 19 steps of 48 (a batch of each task)" in line(planned(), "budget")
    tasks = {"all": {"batch_size": 8}, "sst": {"batch_size": 32}}
    single = line(planned(task_schedule="proportional", tasks=tasks), "budget")
    # as many examples of each task: its steps are in proportion to 1/32, 1/8 and 1/8
    assert "about 85 steps of 10.6667 (a batch of one task)" in single
    assert "at 100, 300, 900 examples" in line(planned(), "objective")


@pytest.mark.usefixtures("cache")
def test_the_plan_counts_its_baselines_in_words() -> None:
    assert ", of which 2 baselines run to the end; the best 1/3 continue at each rung" in line(planned(), "trials")
    assert ", of which 1 baseline runs to the end; " in line(planned(baselines=[{}]), "trials")
    assert line(planned(baselines=[]), "trials").startswith("trials    9; the best 1/3")
    assert line(planned(4, baselines=[], rungs=[1]), "trials") == "trials    4; expected cost: 4.0 full trials, 3,600 examples"


@pytest.mark.usefixtures("cache")
def test_turns_that_the_data_make_shorter_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`task_schedule/sequential/rounds` must give each task turns of at least a batch"):
        planned(task_schedule={"kind": "sequential", "rounds": {"choice": [9, 90]}})


@pytest.mark.usefixtures("cache")
def test_each_further_pretraining_is_planned_once_and_its_texts_are_looked_at(tmp_path: Path) -> None:
    recipes = [
        {"name": "one", "set": {"stages": [{"kind": "mlm", "epochs": 2, "texts": ["sst"]}, "multitask"]}},
        {"name": "two", "set": {"stages": [{"kind": "mlm", "epochs": 2, "texts": ["sst"]}, "nsp", "multitask"]}},
    ]
    document = {"config": CONFIG, "together": {"recipe": recipes}}
    plan = make_plan("quick", make_space("quick", document), 0, 2, CPUS)
    told = [line for line in plan_lines(plan) if line.startswith("pretrain")]
    assert [re.sub(r"\w{8}:", "KEY:", line) for line in told] == [
        "pretrain  mlm KEY: 2 epochs of sst; runs once, before the first trial",
        "pretrain  nsp KEY: 20 epochs of para, sts; runs once, before the first trial",
    ]
    assert plan.recipes == ("mlm+multitask", "mlm+nsp+multitask")
    (tmp_path / "short.txt").write_text("one line\n")
    with pytest.raises(ValueError, match=r"short\.txt must have at least two lines with text"):
        planned(stages=[{"kind": "mlm", "texts": [str(tmp_path / "short.txt")]}, "multitask"])


def test_few_trials_are_warned_of() -> None:
    assert warnings(planned(6)) == []
    [warning] = warnings(planned(5))
    assert "6 trials or more" in warning


@pytest.mark.usefixtures("cache")
def test_the_plan_of_top_k_says_whom_it_lets_go_on_and_what_that_costs() -> None:
    plan = planned(9, trial_scheduler={"kind": "top_k", "k": 3})  # 2 baselines and 3 of the others to the end, 4 to 1/9
    assert plan.full_trials == pytest.approx(5 + 4 / 9)
    cost = "expected cost: 5.4 full trials, 4,900 examples"
    assert line(plan, "trials").endswith(
        f", of which 2 baselines run to the end; the best 3 at 1/9 continue to the end; {cost}"
    )
    assert warnings(plan) == []
    assert warnings(planned(5, trial_scheduler="top_k")) == ["top_k continues 3 of 3 trials, so it stops none."]


@pytest.mark.usefixtures("cache")
def test_a_single_rung_is_not_warned_of() -> None:
    assert warnings(planned(2, rungs=[1])) == []


@pytest.mark.usefixtures("cache")
def test_a_task_that_is_declared_or_set_and_not_trained_is_told() -> None:
    own = {"files": {"train": "r.csv", "dev": "d.csv"}, "kind": "regression", "text": ["a"], "label": "b", "range": [0, 1]}
    told = warnings(planned(6, own_tasks={"reviews": own}, tasks={"all": {"batch_size": 8}, "cfimdb": {"head": "mlp"}}))
    assert told == [
        "`own_tasks/reviews` is declared, but `train_on` does not name it, so no trial uses it.",
        "`tasks/cfimdb` has settings, but `train_on` does not name cfimdb, so no trial uses them.",
    ]


@pytest.mark.usefixtures("cache")
def test_rows_that_max_length_cuts_are_warned_of_from_one_in_a_hundred_on() -> None:
    [warning] = warnings(planned(max_length=24, train_on=["sst", "cfimdb"]))
    assert re.fullmatch(r"cfimdb: (9\d|100) % of the rows are longer than max_length 24 and are cut\.", warning)
    assert f"warning   {warning}" in plan_lines(planned(max_length=24, train_on=["sst", "cfimdb"]))
    plan = planned(max_length=72, train_on=["cfimdb"])
    assert 0 < plan.inputs.train["cfimdb"].num_longer("cross", 72) < 20  # of 2,000
    assert warnings(plan) == []
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
    [sentence] = dropped_rows(plan.config, plan.inputs)
    assert sentence.startswith(f"7 rows of sts-train.csv left out: line 2 ({identity[:8]}…, empty: similarity); line 3 (")
    assert sentence.count("; line ") == 6
    [short] = [text for text in plan_lines(plan) if "left out" in text]
    assert short.endswith("; 2 more, which the search's log.txt names")
    assert "sts 1,993/400" in line(plan, "data")


@pytest.mark.usefixtures("cache")
def test_a_dropped_row_of_a_file_without_ids_is_named_by_its_line_alone(data: Path, encoder: Path) -> None:
    (data / "mine.csv").write_text("text,label\n" + "a film,1\n,1\nno film,0\n" * 20)
    own = {"mine": {"kind": "binary", "files": {"train": "mine.csv"}, "text": "text"}}
    plan = planned(data=str(data), encoder=str(encoder), own_tasks=own, train_on=["mine"])
    [sentence] = dropped_rows(plan.config, plan.inputs)
    assert sentence.startswith("20 rows of mine.csv left out: line 3 (empty: text); line 6 (empty: text); ")


def test_fields_that_may_have_been_misread_are_in_the_plan(data: Path, encoder: Path) -> None:
    (data / "mine.csv").write_text("text,label\n" + 'a film,1\n"no\nfilm",0\n' * 20)
    own = {"mine": {"kind": "binary", "files": {"train": "mine.csv"}, "text": "text"}}
    plan = planned(data=str(data), encoder=str(encoder), own_tasks=own, train_on=["mine"])
    note = "data      20 fields of mine.csv with a line end inside quotes: lines 3, 6, 9, 12, 15 and 15 more"
    assert plan_lines(plan).count(note) == 1


def test_labels_that_are_all_the_same_are_a_warning(data: Path, encoder: Path) -> None:
    (data / "mine.csv").write_text("text,label\n" + "".join(f"film {i},1\n" for i in range(40)))
    (data / "rating.csv").write_text("text,label\n" + "a film,2.5\nno film,2\n" * 20)
    (data / "rating-dev.csv").write_text("text,label\n" + "a film,2.5\n" * 4)
    own = {
        "mine": {"kind": "binary", "files": {"train": "mine.csv"}, "text": "text", "labels": ["0", "1"]},
        "rating": {
            "kind": "regression",
            "files": {"train": "rating.csv", "dev": "rating-dev.csv"},
            "text": "text",
            "range": [0, 5],
        },
    }
    plan = planned(data=str(data), encoder=str(encoder), own_tasks=own, train_on=["mine", "rating", "sst"])
    expected = [
        "mine: all 36 train rows (mine.csv) have the label 1: a model learns only this label.",
        "mine: all 4 dev rows (mine.csv) have the label 1: its accuracy cannot compare models.",
        "rating: all 4 dev rows (rating-dev.csv) have the label 2.5: its pearson cannot compare models.",
    ]
    assert [text for text in warnings(plan) if "have the label" in text] == expected
    assert f"warning   {expected[0]}" in plan_lines(plan)


def test_a_test_file_that_is_not_there_is_told_before_the_search(data: Path, encoder: Path) -> None:
    (data / "mine.csv").write_text("text,label\n" + "a film,1\nno film,0\n" * 20)
    own = {"mine": {"kind": "binary", "files": {"train": "mine.csv", "test": "mine-tset.csv"}, "text": "text"}}
    said = "no mine-tset.csv in the data folder: the search does not need it, but best_to_test will."
    plan = planned(data=str(data), encoder=str(encoder), own_tasks=own, train_on=["mine"])
    assert said in warnings(plan)
    (data / "mine-tset.csv").mkdir()  # looked for, never opened
    assert said not in warnings(plan)


def test_folders_are_absolute_in_a_plan(data: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    plan = planned(data="data", encoder="encoder")
    assert (plan.config.data, plan.config.encoder.checkpoint) == (str(data), str(encoder))
    assert plan.config.machine.threads == 1


@pytest.mark.usefixtures("cache")
def test_a_missing_data_folder_says_what_to_do(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"The data folder .*/nowhere does not exist\. With `--data DIR`, .* or use the embedded"
    ):
        planned(data=str(tmp_path / "nowhere"), encoder=str(encoder))


@pytest.mark.usefixtures("cache")
def test_what_a_user_set_of_the_machine_stays() -> None:
    assert planned(machine={"precision": "bfloat16"}).config.machine.precision == "bfloat16"
    with pytest.raises(SettingsError, match="threads"):
        planned(machine={"threads": 0})


def on(resources: Resources, num_trials: int = 9, **document: Any) -> Plan:
    document["config"] = CONFIG | document.get("config", {})
    return make_plan("quick", make_space("quick", document), 0, num_trials, resources)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "document",
    [
        {"config": {"machine": {"threads": 2}}},
        {"config": {"machine": {"threads": {"choice": [1, 2]}}}},
        {"config": {"machine": {"threads": {"int": [1, 2]}}}},
        {"baselines": [{"machine/threads": 2}]},
    ],
    ids=["constant", "choice", "range", "baseline"],
)
def test_more_threads_than_cores_are_refused_with_what_cures_it(document: dict[str, Any]) -> None:
    said = (
        "`machine/threads` 2 for each of 2 trials at a time is more than this machine's 2 cores, so the trials would slow each "
        "other down. Run fewer trials at a time: --cpus-per-trial 2. Or use fewer threads: --set machine/threads=1."
    )
    with pytest.raises(Refused, match=f"^{re.escape(said)}$"):
        on(CPUS, **document)
    assert on(Resources(2, 0, 2, 0), **document).resources.slots == 1


@pytest.mark.usefixtures("cache")
def test_threads_for_which_there_are_cores_are_the_users_own_affair() -> None:
    threads = {"config": {"machine": {"threads": 4}}}
    with pytest.raises(
        Refused, match=r"this machine's 2 cores, so the trials would slow each other down\. Use fewer threads: .*=1\.$"
    ):
        on(CPUS, **threads)
    assert on(Resources(4, 0, 1, 0), num_trials=1, **threads).config.machine.threads == 4
    assert on(Resources(8, 2, 1, 1), **threads).config.machine.threads == 4


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


@pytest.mark.parametrize("over", [{"data": "elsewhere", "encoder": "other"}, {"own_tasks": {"mine": {"dev_seed": 1}}}])
def test_no_baseline_and_no_branch_sets_what_the_data_is(over: dict[str, Any]) -> None:
    own = {"mine": {"kind": "binary", "files": {"train": "mine.csv"}, "text": "text"}}
    together = {"set": [{"name": "one", "set": {}}, {"name": "other", "set": over}]}
    for document in ({"baselines": [{}, over]}, {"together": together}):
        space = make_space("quick", {"config": CONFIG | {"own_tasks": own}, **document})
        with pytest.raises(ValueError, match=f"`{next(iter(over))}` must be the same for all trials"):
            make_plan("quick", space, 0, 9, CPUS)


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
    assert len(list((two / "cache" / "minbert" / "tokens").glob("*.tokens"))) == 2 * 3 * 2  # encoders, tasks, train and dev


def test_a_fault_in_any_searched_encoder_shows_before_the_search_starts(two: Path) -> None:
    weights = two / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"Cannot read .*/other/model\.safetensors: .* It may be truncated"):
        searched(config={"encoder": {"choice": NAMED}})
    weights.unlink()
    with pytest.raises(ValueError, match=r"/other has no model\.safetensors"):
        searched(config={"encoder": {"choice": NAMED}})
    with pytest.raises(ValueError, match=r"The encoder folder nowhere does not exist"):
        searched(config={"encoder": {"choice": [NAMED[0], {"name": "large", "checkpoint": "./nowhere"}]}})


def test_a_resumed_search_finds_its_encoders_from_anywhere(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = searched(config={"encoder": {"choice": NAMED}})
    monkeypatch.chdir("/")
    known = plan_record(plan).encoders
    again = make_plan("quick", replace(make_space("quick", plan.space.document), encoders=known), 0, 9, CPUS)
    assert checkpoint_of(again, "large") == str(two / "other")


# --------------------------------------------------------------------------------------------------------------- a GPU


@pytest.mark.usefixtures("cache")
def test_the_plan_says_what_a_share_of_a_gpu_holds() -> None:
    def of(*gpus: Gpu, **machine: Any) -> str:
        plan = planned(machine={"device": "cuda", "precision": "bfloat16", **machine})
        return line(replace(plan, resources=replace(CPUS, taken=gpus)), "machine")

    large, small, unknown = Gpu("3", 0.5, 80.0), Gpu("4", 0.5, 40.0), Gpu("5")
    assert "; at most 20.0 GB of GPU memory each" in of(large, gpu_share=0.25)
    assert "; at most 10.0 GB of GPU memory each" in of(large, small, gpu_share=0.25)
    assert "memory" not in of(large) + of(unknown, gpu_share=0.25)
    assert line(planned(), "machine").endswith("cpu, float32")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("has_bfloat16", "precision", "is_told"), [(False, "float32", True), (True, "float32", False)])
def test_the_plan_warns_of_a_gpu_without_bfloat16(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, precision: str, is_told: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    plan = planned(machine={"device": "cuda", "precision": precision})
    assert any(text.startswith("Tesla T4 has no bfloat16") for text in warnings(plan)) is is_told
