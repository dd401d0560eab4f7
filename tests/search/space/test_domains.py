"""The four domains: each one's law, its ends and middle, the labels of a choice, and what counts as one of its branches."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest

from minbert_core.settings.knobs import NO_DEFAULT
from search.space.domains import Choice, Domain, Range, is_domain, parse_domain


def parse(node: dict[str, Any]) -> Domain:
    domain, faults = parse_domain(node, "p")
    assert domain is not None, faults
    return domain


def fault(node: dict[str, Any]) -> str:
    domain, faults = parse_domain(node, "p")
    assert domain is None
    (only,) = faults
    return only


def choice(*branches: Any) -> Choice:
    domain = parse({"choice": list(branches)})
    assert isinstance(domain, Choice)
    return domain


# ---------------------------------------------------------------------------------------------------------------- laws

TWO = "takes [low, high], two numbers."
TEN = "`p`: the branches of a choice must differ in the first ten characters of their names."
UNNAMED = "Choose them through `together`, where each has a name."


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ({"uniform": 3}, f"`p`: `uniform` {TWO} Got 3."),
        ({"uniform": [1]}, f"`p`: `uniform` {TWO} Got [1]."),
        ({"uniform": [1, 2, 3]}, f"`p`: `uniform` {TWO} Got [1, 2, 3]."),
        ({"uniform": ["a", 2]}, f"`p`: `uniform` {TWO} Got ['a', 2]."),
        ({"uniform": [False, 1]}, f"`p`: `uniform` {TWO} Got [false, 1]."),
        ({"uniform": [None, 1]}, f"`p`: `uniform` {TWO} Got [null, 1]."),
        ({"uniform": {"low": 0}}, f"`p`: `uniform` {TWO} Got {{low: 0}}."),
        ({"log_uniform": None}, f"`p`: `log_uniform` {TWO} Got null."),
        ({"int": [1, 2.5]}, "`p`: `int` takes [low, high], two whole numbers. Got [1, 2.5]."),
        ({"int": [1.0, 2]}, "`p`: `int` takes [low, high], two whole numbers. Got [1.0, 2]."),
        ({"int": [True, 2]}, "`p`: `int` takes [low, high], two whole numbers. Got [true, 2]."),
        ({"uniform": [2, 1]}, "`p`: `uniform` needs low < high, both finite. Got [2, 1]."),
        ({"int": [2, 2]}, "`p`: `int` needs low < high, both finite. Got [2, 2]."),
        ({"uniform": [0, math.inf]}, "`p`: `uniform` needs low < high, both finite. Got [0, inf]."),
        ({"uniform": [-math.inf, 0]}, "`p`: `uniform` needs low < high, both finite. Got [-inf, 0]."),
        ({"uniform": [math.nan, 1]}, "`p`: `uniform` needs low < high, both finite. Got [nan, 1]."),
        (
            {"log_uniform": [0, 0.1]},
            "`p`: the bounds of `log_uniform` are the values themselves and must be > 0. Got [0, 0.1]. "
            "To include zero, write choice: [0, {log_uniform: [1e-6, 0.1]}].",
        ),
        (
            {"log_uniform": [-5, -1]},
            "`p`: the bounds of `log_uniform` are the values themselves and must be > 0. Got [-5, -1]. "
            "To include zero, write choice: [0, {log_uniform: [1e-6, 1]}].",
        ),
        ({"choice": "sum"}, "`p`: `choice` takes a list of two or more. Got 'sum'."),
        ({"choice": []}, "`p`: `choice` takes a list of two or more. Got []."),
        ({"choice": ["sum"]}, "`p`: `choice` takes a list of two or more. Got ['sum']."),
        ({"choice": {"a": 1}}, "`p`: `choice` takes a list of two or more. Got {a: 1}."),
        ({"uniform": [0, 1], "kind": "x"}, "`p`: the domain `uniform` must be the only key. Got also `kind`."),
        ({"choice": [1, 2], "int": [1, 2]}, "`p`: the domain `int` must be the only key. Got also `choice`."),
    ],
)
def test_a_domain_that_makes_no_sense_is_refused_in_one_sentence(node: dict[str, Any], sentence: str) -> None:
    assert fault(node) == sentence


@pytest.mark.parametrize(
    ("branches", "sentence"),
    [
        (["sum", "sum"], f"{TEN} Got sum, sum. {UNNAMED}"),
        (["bert-base-cased", "bert-base-uncased"], f"{TEN} Got bert-base-cased, bert-base-uncased. {UNNAMED}"),
        ([1, 1.0], f"{TEN} Got 1, 1.0. {UNNAMED}"),
        ([1, True], f"{TEN} Got 1, True. {UNNAMED}"),
        ([None, "none"], f"{TEN} Got none, none. {UNNAMED}"),
        ([[1024, 1024, 8], [1024, 1024, 9]], f"{TEN} Got 1024-1024-8, 1024-1024-9. {UNNAMED}"),
        ([{"uniform": [0, 1]}, {"uniform": [2, 3]}], f"{TEN} Got uniform, uniform. {UNNAMED}"),
        ([{"kind": "mlp", "hidden": [8]}, {"kind": "mlp", "hidden": [9]}], f"{TEN} Got mlp, mlp. Give them a `name`."),
        (["mlp", {"kind": "mlp"}], f"{TEN} Got mlp, mlp. {UNNAMED}"),
        ([{"name": "very_large_one", "a": 1}, {"name": "very_large_two", "a": 2}],
         f"{TEN} Got very_large_one, very_large_two. Give them a `name`."),
    ],
)  # fmt: skip
def test_branches_that_a_chart_would_merge_are_refused(branches: list[Any], sentence: str) -> None:
    assert fault({"choice": branches}) == sentence


@pytest.mark.parametrize(
    ("branch", "got"),
    [({"hidden": [8]}, "{hidden: [8]}"), ({"kind": 5}, "{kind: 5}"),
     ({"name": "Big", "kind": "mlp"}, "{name: 'Big', kind: 'mlp'}"), ({"name": True}, "{name: true}"), ({}, "{}")],
)  # fmt: skip
def test_a_branch_that_is_a_map_needs_a_kind_or_a_good_name(branch: dict[str, Any], got: str) -> None:
    law = "a branch that is a map needs a `kind` or a `name`; names may contain a-z, 0-9, _ and -."
    assert fault({"choice": ["a", branch]}) == f"`p`: {law} Got {got}."


def test_names_are_lower_case_but_files_and_hub_names_may_stand() -> None:
    assert fault({"choice": ["a", "Big One"]}) == "`p`: names may contain a-z, 0-9, _ and -. Got 'Big One'."
    assert choice("microsoft/MiniLM", "../Local").labels == ("microsoft/MiniLM", "../Local")


def test_a_list_of_maps_is_no_branch() -> None:
    assert fault({"choice": ["a", [{"kind": "multitask"}]]}) == (
        "`p`: a list of maps cannot be a branch. Choose it through `together`."
    )


def test_all_faults_of_a_choice_are_told() -> None:
    _, faults = parse_domain({"choice": [{"a": 1}, "B!"]}, "p")
    assert len(faults) == 2


def test_a_map_is_a_domain_by_a_domains_name_among_its_keys() -> None:
    assert is_domain({"choice": []})
    assert is_domain({"int": 1, "other": 2})
    assert not is_domain({"kind": "mlp"})
    assert not is_domain("choice")
    assert not is_domain(["int"])


# -------------------------------------------------------------------------------------------------------------- labels


def test_a_branch_is_labelled_by_its_name_else_its_kind_else_itself() -> None:
    domain = choice(None, "sum", 16, 0.5, False, [768], [8, 4], [], {"kind": "smart", "radius": 1},
                    {"name": "big", "kind": "mlp"}, {"uniform": [1, 2]})  # fmt: skip
    assert domain.labels == ("none", "sum", 16, 0.5, False, "768", "8-4", "empty", "smart", "big", "uniform")


def test_a_name_is_no_part_of_the_branch() -> None:
    assert choice("a", {"name": "big", "kind": "mlp"}).branch("big") == {"kind": "mlp"}


# ------------------------------------------------------------------------------------------------ middle, ends, membership


@pytest.mark.parametrize(
    ("node", "default", "middle"),
    [
        ({"uniform": [0, 4]}, NO_DEFAULT, 2),
        ({"uniform": [0, 4]}, None, 2),
        ({"uniform": [0, 4]}, 1.5, 1.5),
        ({"uniform": [0, 4]}, 4, 4),
        ({"uniform": [0, 4]}, 4.1, 2),
        ({"uniform": [0, 4]}, "x", 2),
        ({"uniform": [0, 4]}, True, 2),
        ({"log_uniform": [1e-4, 1e-2]}, NO_DEFAULT, 1e-3),
        ({"log_uniform": [1e-4, 1e-2]}, 2e-4, 2e-4),
        ({"int": [1, 4]}, NO_DEFAULT, 2),
        ({"int": [1, 4]}, 3, 3),
        ({"int": [1, 4]}, 2.5, 2),
        ({"choice": ["sum", "pcgrad"]}, NO_DEFAULT, "sum"),
        ({"choice": ["sum", "pcgrad"]}, "pcgrad", "pcgrad"),
        ({"choice": ["sum", "pcgrad"]}, "gradvac", "sum"),
        ({"choice": [1, None]}, None, "none"),
        ({"choice": [1, None]}, NO_DEFAULT, 1),
        ({"choice": [1, 16]}, True, 1),
        ({"choice": [0, {"log_uniform": [0.1, 10]}]}, 1.0, "log_uniform"),
        ({"choice": [0, {"log_uniform": [0.1, 10]}]}, 99, 0),
        ({"choice": [[8], [768]]}, [768], "768"),
        ({"choice": ["none", {"kind": "smart", "radius": 1}]}, "smart", "smart"),
    ],
)
def test_the_middle_is_the_default_if_it_lies_inside_else_the_middle_or_the_first(
    node: dict[str, Any], default: object, middle: object
) -> None:
    found = parse(node).middle(default)
    assert found == pytest.approx(middle) if isinstance(middle, float) else found == middle
    assert parse(node).contains(found)


def test_the_middle_is_never_a_draw() -> None:
    for node in ({"uniform": [0, 1]}, {"log_uniform": [1, 9]}, {"int": [0, 99]}, {"choice": list("abcdef")}):
        assert len({parse(node).middle(NO_DEFAULT) for _ in range(20)}) == 1


def test_a_check_tries_both_ends_and_where_fractions_may_come_one_of_them() -> None:
    assert choice("a", 1).values() == ("a", 1)
    assert Range("uniform", 8, 32).values() == (8, 32)
    assert 8 < Range("uniform", 8, 32).fraction < 32
    assert not Range("uniform", 8, 32).fraction.is_integer()
    assert Range("int", 8, 32).fraction == 8


def test_both_ends_lie_in_a_range_and_booleans_in_none() -> None:
    for kind in ("uniform", "log_uniform", "int"):
        domain = Range(kind, 1, 2)
        assert domain.contains(1)
        assert domain.contains(2)
        assert not domain.contains(True)
        assert not domain.contains(3)
        assert not domain.contains("1")
    assert not Range("int", 1, 2).contains(1.5)


def test_a_branch_is_meant_by_its_label_by_itself_by_its_only_kind_or_by_what_lies_in_it() -> None:
    domain = choice(
        None, {"name": "small", "kind": "mlp", "hidden": [8]}, {"kind": "linear", "dropout": 0.2}, {"uniform": [1, 2]}, "sbert"
    )
    for value, label in [
        ("none", "none"), (None, "none"), ("small", "small"), ({"kind": "mlp", "hidden": [8]}, "small"), ("mlp", "small"),
        ({"kind": "linear", "dropout": 0.9}, "linear"), (1.5, "uniform"), ("uniform", "uniform"), ({"kind": "sbert"}, "sbert"),
    ]:  # fmt: skip
        assert domain.label_of(value) == label
    for value in ("cosine", 3, True, {"hidden": [8]}, [8], {}):
        assert not domain.contains(value)


def test_a_kind_that_two_branches_share_means_neither() -> None:
    domain = choice({"name": "small", "kind": "mlp", "hidden": [8]}, {"name": "big", "kind": "mlp", "hidden": [9]})
    assert not domain.contains("mlp")
    assert not domain.contains({"kind": "mlp", "hidden": [7]})
    assert domain.label_of({"kind": "mlp", "hidden": [9]}) == "big"
    assert domain.middle("mlp") == "small"


def test_true_is_no_one_and_one_is_not_true() -> None:
    assert not choice(1, 2).contains(True)
    assert not choice(True, "x").contains(1)


def test_domains_are_equal_if_they_are_written_alike() -> None:
    assert parse({"uniform": [1, 2]}) == parse({"uniform": [1, 2]}) != parse({"log_uniform": [1, 2]})
    assert choice("a", {"kind": "b", "x": 1}) == choice("a", {"kind": "b", "x": 1}) != choice("a", {"kind": "b", "x": 2})
    assert choice("a", "b") != choice("b", "a")


# -------------------------------------------------------------------------------------------------------------- Optuna


def test_optuna_draws_from_the_domain_as_it_is_written() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        for kind, low, high in (("uniform", 0, 1), ("log_uniform", 1e-6, 1e-4), ("int", 2, 9)):
            assert Range(kind, low, high).contains(Range(kind, low, high).suggest(trial, kind))
        assert choice("a", 1, None).suggest(trial, "c") in ("a", 1, "none")
    distributions = study.trials[-1].distributions
    assert distributions["log_uniform"] == optuna.distributions.FloatDistribution(1e-6, 1e-4, log=True)
    assert distributions["c"] == optuna.distributions.CategoricalDistribution(("a", 1, "none"))


def test_domains_and_the_labels_of_choices_read_well() -> None:
    assert str(parse({"log_uniform": [5e-6, 5e-5]})) == "log_uniform [5e-06, 5e-05]"
    assert str(choice(None, "sum", 16)) == "choice of none, sum, 16"
