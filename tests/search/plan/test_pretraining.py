"""Further pretraining before the trials: which is known by then, and its making with Ray: heard, stopped, refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from minbert_core.commands import Refused
from minbert_core.files import cache_folder
from minbert_core.train.pretraining import Record
from search.plan.plan import baseline_samples, branch_samples
from search.plan.pretraining import Chain, known_chains, make_chains
from search.plan.resources import Resources
from search.space.space import make_space
from search.study.engine import start_ray

CPUS = Resources(cpus=2, gpus=0, cpus_per_trial=1, gpus_per_trial=0)
MLM = {"kind": "mlm", "epochs": 0.1, "texts": ["sst"]}
TOY = {"data": "toy", "encoder": "tiny", "machine": {"device": "cpu", "precision": "float32"}}


def known(*recipes: list[Any], config: dict[str, Any] | None = None, **document: Any) -> list[Chain]:
    """The chains known beforehand of a space that chooses between `recipes` and the plain one."""
    branches = [{"name": "plain", "set": {"stages": ["multitask"]}}]
    branches += [{"name": f"recipe-{i}", "set": {"stages": [*stages, "multitask"]}} for i, stages in enumerate(recipes)]
    together = {"recipe": branches} if recipes else {}
    space = make_space("quick", {"config": TOY | (config or {}), "together": together, **document})
    return known_chains(branch_samples(space), baseline_samples(space), space, {})


def kinds(chains: list[Chain]) -> list[list[str]]:
    return [[one.stage.kind for one in chain.ones] for chain in chains]


@pytest.fixture(autouse=True)
def nothing_made(cache: Path) -> Iterator[None]:
    shutil.rmtree(cache_folder() / "pretrained", ignore_errors=True)
    yield
    shutil.rmtree(cache_folder() / "pretrained", ignore_errors=True)


# ------------------------------------------------------------------------------------------------------- which are known


def test_each_branch_and_baseline_that_pretrains_has_its_chain_known_once() -> None:
    assert kinds(known()) == []
    assert kinds(known([MLM], [MLM], [{**MLM, "seed": 1}])) == [["mlm"], ["mlm"]]
    assert kinds(known(config={"stages": [MLM, "multitask"]})) == [["mlm"]]
    assert kinds(known(baselines=[{"stages": [MLM, "multitask"]}])) == [["mlm"]]


def test_a_chain_that_another_begins_with_is_cached_with_that_one() -> None:
    assert kinds(known([MLM], [MLM, "nsp"])) == [["mlm", "nsp"]]


def test_a_choice_elsewhere_that_the_weights_follow_from_is_enumerated() -> None:
    chains = known([MLM], config={"max_length": {"choice": [32, 64]}})
    assert sorted(chain.config.max_length for chain in chains) == [32, 64]


@pytest.mark.parametrize(
    ("stage", "config"),
    [
        ({**MLM, "mask_share": {"uniform": [0.1, 0.3]}}, {}),
        ({**MLM, "epochs": {"choice": [0.1, 0.2]}}, {}),
        ({**MLM, "optimizer": {"lr": {"log_uniform": [1e-5, 1e-4]}}}, {}),
        (MLM, {"encoder": {"checkpoint": "tiny", "hidden_dropout": {"uniform": [0, 0.1]}}}),
        (MLM, {"max_length": {"int": [32, 64]}}),
    ],
    ids=["mask_share", "epochs", "lr", "dropout", "max_length"],
)
def test_a_pretraining_whose_values_are_searched_is_not_known_beforehand(stage: dict[str, Any], config: dict[str, Any]) -> None:
    assert known([stage], config=config) == []


def test_a_domain_that_changes_no_pretrained_weight_hides_none() -> None:
    assert kinds(known([MLM], config={"optimizer": {"lr": {"log_uniform": [1e-5, 1e-4]}}})) == [["mlm"]]


# -------------------------------------------------------------------------------------------------------------- with Ray


@pytest.fixture(scope="module")
def cluster(cache: Path) -> Iterator[None]:
    start_ray(CPUS, "local")
    yield
    ray.shutdown()


Heard = list[Record]


@pytest.fixture
def heard() -> Heard:
    return []


@pytest.mark.usefixtures("cluster")
def test_what_is_not_made_is_cached_and_heard_and_then_takes_no_process(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    [chain] = known([MLM, {**MLM, "seed": 1}])
    assert make_chains([chain], CPUS, heard.append, lambda: False)
    assert [record["key"] for record in heard if record.get("made")] == [one.key for one in chain.ones]
    assert all(one.is_cached for one in chain.ones)
    assert all(record["seconds_left"] >= 0 for record in heard if "made" not in record)
    monkeypatch.setattr(ray, "wait", None)
    assert make_chains([chain], CPUS, heard.append, lambda: False)


@pytest.mark.usefixtures("cluster")
def test_a_stopped_one_has_saved_its_state_and_no_trial_may_begin(heard: Heard) -> None:
    [chain] = known([{**MLM, "epochs": 20}])
    assert not make_chains([chain], CPUS, heard.append, lambda: bool(heard))
    assert chain.ones[0].folder.with_suffix(".state").exists()
    assert not chain.ones[0].is_cached


@pytest.mark.usefixtures("cluster")
def test_one_that_fails_is_refused_in_a_sentence_that_names_it(heard: Heard, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a film\na plot\n")
    [chain] = known([{**MLM, "texts": [str(texts)]}])
    texts.unlink()
    name = chain.ones[0].name
    refused = (
        rf"^The further pretraining {name} failed, so no trial was started: CorpusError: The folder .* has no file texts\.txt"
    )
    with pytest.raises(Refused, match=refused):
        make_chains([chain], CPUS, heard.append, lambda: False)
