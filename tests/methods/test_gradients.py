"""Gradient methods: by hand, against TorchJD (an independent implementation), and the bugs of public copies.

Legend: G parameter groups, T tasks, P parameters of a group. Here gradients are written out, `gradients_GTP`, in float64; a
method sees their Gramians only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchjd import aggregation
from torchjd.aggregation import GradVacWeighting, PCGradWeighting

from minbert_core.config_checks import load_config
from minbert_core.methods import gradients as module
from minbert_core.methods.gradients import (
    AGGREGATORS,
    CAGrad,
    GradientMethod,
    GradVac,
    PCGrad,
    Sum,
    TorchJD,
    merging_weights,
    parties_of,
    random_orders,
)
from minbert_core.settings.faults import SettingsError

TASKS = ("sst", "para", "sts")
SWAP = torch.tensor([[1], [0]])  # the only orders of two tasks
IN_ORDER = torch.tensor([[1, 2], [0, 2], [0, 1]])


def gramian(gradients_GTP: Tensor) -> Tensor:
    return gradients_GTP @ gradients_GTP.mT


def merge(
    method: GradientMethod, gradients_GTP: Tensor, orders: Tensor = SWAP, state: dict[str, Tensor] | None = None
) -> Tensor:
    """The merged gradient, shape (G, P)."""
    tasks = TASKS[: gradients_GTP.shape[1]]
    weights_GT = method.weights(gramian(gradients_GTP), tasks, orders, {} if state is None else state)
    return (weights_GT[:, None, :] @ gradients_GTP)[:, 0, :]


def pair_at(cosine: float, num_groups: int = 1) -> Tensor:
    """Two unit gradients at the given cosine, shape (G, 2, 2)."""
    return torch.tensor([[[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]]], dtype=torch.float64).repeat(num_groups, 1, 1)


def conflicting(num_groups: int = 1, num_tasks: int = 3, seed: int = 0) -> Tensor:
    """Random gradients in few dimensions, so that some pairs conflict; float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_groups, num_tasks, 3, generator=generator, dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------------- sum


def test_sum_is_the_sum_not_the_mean() -> None:
    """A mean would make the encoder's gradient a third of what the heads' belongs to (a public bug)."""
    gradients = conflicting(num_groups=2)
    assert torch.equal(merge(Sum(), gradients, IN_ORDER), gradients.sum(dim=1))


# -------------------------------------------------------------------------------------------------------------- pcgrad


def test_pcgrad_projects_both_ways_on_the_original_and_sums() -> None:
    """g1 = (1, 0) loses its part along g2 = (-1, 1): (.5, .5); g2 its part along the *original* g1: (0, 1).

    On the projected g1 nothing would be left to project, and the sum would be (-.5, 1.5); the mean is (.25, .75).
    """
    assert merge(PCGrad(), torch.tensor([[[1.0, 0.0], [-1.0, 1.0]]], dtype=torch.float64)).tolist() == [[0.5, 1.5]]


def test_pcgrad_projects_what_is_already_projected_further() -> None:
    """g1 = (1, 1), first off g2 = (-2, 0): (0, 1), which then conflicts no more with g3 = (-2, 1)."""
    gradients = torch.tensor([[[1.0, 1.0], [-2.0, 0.0], [-2.0, 1.0]]], dtype=torch.float64)
    first_g2 = merge(PCGrad(), gradients, torch.tensor([[1, 2], [2, 0], [1, 0]]))
    first_g3 = merge(PCGrad(), gradients, torch.tensor([[2, 1], [2, 0], [1, 0]]))
    # off g3 first: (1, 1) + 1/5 (-2, 1) = (.6, 1.2), and then off g2: (0, 1.2)
    assert (first_g3 - first_g2)[0].tolist() == pytest.approx([0.0, 0.2], abs=1e-6)


def test_pcgrad_leaves_no_component_against_another_task_at_two_tasks() -> None:
    gradients = conflicting(num_tasks=2, seed=1)
    if (gradients[0, 0] @ gradients[0, 1]) > 0:
        gradients[0, 1] *= -1
    assert (gradients[0] @ merge(PCGrad(), gradients)[0] >= 0).all()


def test_pcgrad_looks_at_the_whole_shared_vector() -> None:
    """A conflict in one group that another group outweighs is none."""
    gradients = torch.stack([pair_at(-0.5)[0], 3 * pair_at(0.9)[0]])
    assert torch.equal(merge(PCGrad(), gradients), gradients.sum(dim=1))


@pytest.mark.parametrize("method", [PCGrad(), GradVac(beta=0.5), GradVac(beta=0.5, per="model")])
def test_without_conflict_the_result_is_the_sum(method: PCGrad | GradVac) -> None:
    gradients = conflicting().abs()
    assert torch.allclose(merge(method, gradients, IN_ORDER), gradients.sum(dim=1))


def test_the_order_is_part_of_the_result() -> None:
    gradients = torch.tensor([[[1.0, 1.0], [-2.0, 0.0], [-2.0, 1.0]]], dtype=torch.float64)
    other = torch.tensor([[2, 1], [2, 0], [1, 0]])
    assert not torch.allclose(merge(PCGrad(), gradients, IN_ORDER), merge(PCGrad(), gradients, other))


# ------------------------------------------------------------------------------------------------------------- gradvac


def test_gradvac_turns_a_gradient_exactly_to_its_target() -> None:
    """cos -.489, target .30: the corrected cosine is .3000; the formula printed in one report gives .0436."""
    gradients = pair_at(-0.489)
    gradients[0, 0] *= 7  # the law holds for any norms
    state = {"sst>para": torch.tensor([0.3], dtype=torch.float64), "para>sst": torch.tensor([-0.9], dtype=torch.float64)}
    weights = GradVac().weights(gramian(gradients), TASKS[:2], SWAP, state)
    corrected = gradients[0, 0] + (weights[0, 1] - 1) * gradients[0, 1]
    assert torch.cosine_similarity(corrected, gradients[0, 1], dim=0).item() == pytest.approx(0.3, abs=1e-6)
    assert weights[0, 0] == 1  # para stands above its own target of -.9


def test_targets_move_whether_or_not_there_is_a_correction() -> None:
    """Updated inside the `if` only, a target could but fall, and GradVac would be weaker than PCGrad."""
    state: dict[str, Tensor] = {}
    for expected in (0.075, 0.1125, 0.13125):
        merge(GradVac(beta=0.5), pair_at(0.15), state=state)
        assert state["sst>para"].item() == pytest.approx(expected)


def test_targets_approach_the_mean_cosine() -> None:
    state: dict[str, Tensor] = {}
    for cosine in np.random.default_rng(0).uniform(-0.35, 0.65, size=2000):
        merge(GradVac(beta=0.01), pair_at(float(cosine)), state=state)
    assert state["sst>para"].item() == pytest.approx(0.15, abs=0.06)


def test_targets_take_the_cosine_before_the_correction() -> None:
    """After it the cosine equals the target, and a target could never fall."""
    state = {"sst>para": torch.tensor([0.4], dtype=torch.float64), "para>sst": torch.tensor([0.4], dtype=torch.float64)}
    merge(GradVac(beta=0.5), pair_at(-0.2), state=state)
    assert state["sst>para"].item() == pytest.approx(0.1)


def test_targets_are_kept_by_ordered_pair() -> None:
    state: dict[str, Tensor] = {}
    merge(GradVac(beta=0.5), conflicting(), IN_ORDER, state)
    assert sorted(state) == ["para>sst", "para>sts", "sst>para", "sst>sts", "sts>para", "sts>sst"]
    assert state["sts>sst"].shape == (1,)


def test_a_target_is_kept_while_its_task_is_absent() -> None:
    state: dict[str, Tensor] = {}
    merge(GradVac(beta=0.5), conflicting(), IN_ORDER, state)
    before = state["sts>sst"].clone()
    merge(GradVac(beta=0.5), conflicting(num_tasks=2), SWAP, state)
    assert torch.equal(state["sts>sst"], before)


def test_gradvac_corrects_each_group_by_itself() -> None:
    """One cosine for the whole model would correct neither of these groups, or both (a public bug)."""
    gradients = torch.stack([pair_at(-0.5)[0], 3 * pair_at(0.9)[0]])
    merged = merge(GradVac(beta=0), gradients)
    assert not torch.allclose(merged[0], gradients[0].sum(dim=0))
    assert torch.allclose(merged[1], gradients[1].sum(dim=0))


def test_gradvac_per_model_is_gradvac_of_one_group() -> None:
    gradients = conflicting(num_groups=4)
    joined = gradients.permute(1, 0, 2).reshape(1, 3, -1)
    states: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for _ in range(3):
        apart = merge(GradVac(beta=0.5, per="model"), gradients, IN_ORDER, states[0])
        whole = merge(GradVac(beta=0.5), joined, IN_ORDER, states[1])
        assert torch.allclose(apart.reshape(1, -1), whole)
    assert states[0]["sst>para"].shape == (1,)


def test_a_zero_gradient_leaves_targets_alone_in_its_group() -> None:
    """0/0 is NaN, NaN < target is false, so nothing is seen, and the target is NaN for ever."""
    state: dict[str, Tensor] = {}
    gradients = pair_at(0.6, num_groups=2)
    merge(GradVac(beta=0.5), gradients, state=state)
    gradients[1, 0] = 0
    merged = merge(GradVac(beta=0.5), gradients, state=state)
    for key in ("sst>para", "para>sst"):
        assert state[key].tolist() == pytest.approx([0.45, 0.3])
    assert torch.allclose(merged, gradients.sum(dim=1))


def test_a_gradient_that_is_projected_away_stays_finite() -> None:
    """g2 = -g1 leaves nothing of g1, whose cosine with g3 does not exist."""
    gradients = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.3, 0.7]]], dtype=torch.float64)
    state: dict[str, Tensor] = {}
    for method in (PCGrad(), GradVac(beta=0.5)):
        for _ in range(3):
            assert merge(method, gradients, IN_ORDER, state).isfinite().all()
    assert all(target.isfinite().all() for target in state.values())


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_parallel_gradients_keep_cosines_and_targets_off_one(cosine: float) -> None:
    """At a target of 1 the closed form divides by zero."""
    state: dict[str, Tensor] = {}
    for gradients in (pair_at(cosine), pair_at(0.2)):
        assert merge(GradVac(beta=1.0), gradients, state=state).isfinite().all()
        assert state["sst>para"].abs().item() < 1


def test_rounding_error_of_a_float32_gramian_is_not_taken_for_a_cosine() -> None:
    """g2 = -g1 takes g1 away; what is left has a square of 1e-12, and a product with g3 that is off by 2e-6: cosine -2."""
    gram = torch.tensor([[[1.0, -1.0, 0.5], [-1.0, 1.0, -0.500002], [0.5, -0.500002, 1.0]]], dtype=torch.float64)
    state: dict[str, Tensor] = {}
    GradVac(beta=1.0).weights(gram, TASKS, IN_ORDER, state)
    assert state["sst>sts"].item() == 0


def test_gradvac_goes_on_from_a_saved_state() -> None:
    gradients = [conflicting(num_groups=2, seed=seed) for seed in range(4)]
    through: dict[str, Tensor] = {}
    for one in gradients:
        expected = merge(GradVac(beta=0.5), one, IN_ORDER, through)
    first: dict[str, Tensor] = {}
    for one in gradients[:2]:
        merge(GradVac(beta=0.5), one, IN_ORDER, first)
    resumed = {key: target.clone() for key, target in first.items()}
    for one in gradients[2:]:
        found = merge(GradVac(beta=0.5), one, IN_ORDER, resumed)
    assert torch.equal(found, expected)


# -------------------------------------------------------------------------------------------------------------- cagrad


def cagrad_by_grid(gradients_TP: Tensor, c: float, steps: int) -> Tensor:
    """T d of Algorithm 1 of Liu et al. 2021, the dual's least value looked for on a grid over the simplex."""
    num_tasks = len(gradients_TP)
    ticks = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    grid_WT = torch.cartesian_prod(*[ticks] * (num_tasks - 1)).reshape(-1, num_tasks - 1)
    grid_WT = torch.cat([grid_WT, 1 - grid_WT.sum(dim=1, keepdim=True)], dim=1)
    grid_WT = grid_WT[grid_WT[:, -1] >= -1e-12].clamp(min=0)
    mean_P, mixed_WP = gradients_TP.mean(dim=0), grid_WT @ gradients_TP
    values_W = mixed_WP @ mean_P + c * mean_P.norm() * mixed_WP.norm(dim=1)
    worst_P = mixed_WP[values_W.argmin()]
    return num_tasks * (mean_P + c * mean_P.norm() * worst_P / worst_P.norm())


@pytest.mark.parametrize(("num_tasks", "steps"), [(2, 20_000), (3, 700)])
@pytest.mark.parametrize("c", [0.2, 0.8])
def test_cagrad_is_the_least_of_a_grid_over_the_simplex(num_tasks: int, steps: int, c: float) -> None:
    for seed in range(5):
        gradients = conflicting(num_tasks=num_tasks, seed=seed)
        orders = random_orders(num_tasks, np.random.default_rng(0))
        wanted_P = cagrad_by_grid(gradients[0], c, steps)
        assert (merge(CAGrad(c=c), gradients, orders)[0] - wanted_P).norm() < 5e-3 * wanted_P.norm()


def test_cagrad_of_two_opposite_gradients_lengthens_the_shorter_one() -> None:
    """g1 = (2, 0), g2 = (-1, 1): the sum is (1, 1), and <g1, sum> = 2 but <g2, sum> = 0. With w = (.4, .6), g_w = (.2, .6) is
    the point of the segment nearest to zero; as c grows g_w comes to it, and d serves both alike."""
    gradients = torch.tensor([[[2.0, 0.0], [-1.0, 1.0]]], dtype=torch.float64)
    least = [float((gradients[0] @ merge(CAGrad(c=c), gradients)[0]).min()) for c in (0.0, 0.3, 0.6, 0.9)]
    assert least[0] == 0
    assert least == sorted(least)
    assert least[-1] > 0.5


def test_what_cagrad_lowers_least_it_lowers_more_than_the_sum_does_and_it_stays_in_its_ball() -> None:
    for seed in range(10):
        gradients = conflicting(seed=seed)
        merged_P, sum_P = merge(CAGrad(c=0.5), gradients, IN_ORDER)[0], gradients[0].sum(dim=0)
        assert (gradients[0] @ merged_P).min() >= (gradients[0] @ sum_P).min() - 1e-9
        assert (merged_P - sum_P).norm() <= 0.5 * sum_P.norm() * (1 + 1e-6)


def test_cagrad_with_a_ball_of_nothing_is_the_sum() -> None:
    gradients = conflicting(num_groups=2)
    assert torch.equal(merge(CAGrad(c=0), gradients, IN_ORDER), gradients.sum(dim=1))


def test_a_task_without_gradient_has_no_say_in_cagrad() -> None:
    gradients = conflicting(num_tasks=3)
    gradients[0, 1] = 0
    assert torch.allclose(merge(CAGrad(), gradients, IN_ORDER), merge(CAGrad(), gradients[:, [0, 2]]))


def test_cagrad_of_gradients_that_cancel_is_the_sum() -> None:
    gradients = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    assert torch.equal(merge(CAGrad(), gradients), torch.zeros(1, 2, dtype=torch.float64))


# -------------------------------------------------------------------------------------------------------------- groups


def grouped(method: GradientMethod, gradients_GTP: Tensor, seed: int = 0, state: dict[str, Tensor] | None = None) -> Tensor:
    """The merged gradient of tasks called sst, para, sts and yelp, (G, P)."""
    generator, tasks = np.random.default_rng(seed), ("sst", "para", "sts", "yelp")[: gradients_GTP.shape[1]]
    weights_GT = merging_weights(method, gramian(gradients_GTP), tasks, generator, {} if state is None else state)
    return (weights_GT[:, None, :] @ gradients_GTP)[:, 0, :]


def test_a_group_of_tasks_is_one_party_named_after_all_of_it() -> None:
    groups = (("sts", "sst"),)
    assert parties_of(("sst", "para", "sts"), groups) == {"sts+sst": ("sst", "sts"), "para": ("para",)}
    assert parties_of(("para", "sst"), groups) == {"para": ("para",), "sts+sst": ("sst",)}


@pytest.mark.parametrize("kind", [PCGrad, GradVac, CAGrad])
def test_a_group_s_gradients_are_summed_before_surgery(kind: type[PCGrad | GradVac | CAGrad]) -> None:
    """Li & Tang 2023: the sum of three tasks against an auxiliary one."""
    method = kind(groups=(("sst", "para", "sts"),))
    for seed in range(5):
        gradients = conflicting(num_groups=2, num_tasks=4, seed=seed)
        summed = torch.stack([gradients[:, :3].sum(dim=1), gradients[:, 3]], dim=1)
        assert torch.allclose(grouped(method, gradients), merge(kind(), summed))


@pytest.mark.parametrize("kind", [PCGrad, GradVac, CAGrad])
def test_where_a_group_is_all_there_is_the_result_is_the_sum(kind: type[PCGrad | GradVac | CAGrad]) -> None:
    gradients = conflicting(num_groups=2)
    assert torch.allclose(grouped(kind(groups=(("sst", "para", "sts"),)), gradients), gradients.sum(dim=1))


def test_without_groups_each_task_is_weighed_in_orders_from_the_generator() -> None:
    gradients = conflicting(seed=3)
    for seed in range(3):
        orders = random_orders(3, np.random.default_rng(seed))
        assert torch.equal(grouped(PCGrad(), gradients, seed), merge(PCGrad(), gradients, orders))


def test_gradvac_keeps_its_targets_by_party() -> None:
    state: dict[str, Tensor] = {}
    grouped(GradVac(groups=(("sst", "para", "sts"),)), conflicting(num_tasks=4), state=state)
    assert sorted(state) == ["sst+para+sts>yelp", "yelp>sst+para+sts"]


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_gradvac_with_targets_at_zero_is_pcgrad(num_tasks: int) -> None:
    for seed in range(20):
        gradients = conflicting(num_tasks=num_tasks, seed=seed)
        orders = random_orders(num_tasks, np.random.default_rng(seed))
        assert torch.allclose(merge(GradVac(beta=0), gradients, orders), merge(PCGrad(), gradients, orders), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- TorchJD


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[list[int]]], None]:
    """Hands TorchJD, which draws its orders from torch.randperm, the given ones instead, one a call."""

    def hand_over(permutations: list[list[int]]) -> None:
        queue = iter(permutations)
        monkeypatch.setattr(torch, "randperm", lambda n: torch.tensor(next(queue)))

    return hand_over


@pytest.mark.parametrize("num_tasks", [2, 3, 4])
def test_pcgrad_agrees_with_torchjd(num_tasks: int, inject: Callable[[list[list[int]]], None]) -> None:
    """TorchJD permutes all tasks and skips the task itself."""
    tasks = tuple("abcd"[:num_tasks])
    for seed in range(20):
        gram = gramian(conflicting(num_tasks=num_tasks, seed=seed))
        orders = random_orders(num_tasks, np.random.default_rng(seed))
        inject([[i, *order] for i, order in enumerate(orders.tolist())])
        assert torch.allclose(PCGrad().weights(gram, tasks, orders, {})[0], PCGradWeighting()(gram[0]))


@pytest.mark.parametrize("num_tasks", [2, 3, 4])
def test_gradvac_agrees_with_torchjd_over_steps(num_tasks: int, inject: Callable[[list[list[int]]], None]) -> None:
    """TorchJD permutes positions among the other tasks. Twenty steps, so that the targets matter."""
    tasks = tuple("abcd"[:num_tasks])
    oracle, state = GradVacWeighting(beta=0.3, eps=0.0), {}
    for seed in range(20):
        gram = gramian(conflicting(num_tasks=num_tasks, seed=seed))
        orders = random_orders(num_tasks, np.random.default_rng(seed))
        inject([[j - (j > i) for j in order] for i, order in enumerate(orders.tolist())])
        found = GradVac(beta=0.3).weights(gram, tasks, orders, state)[0]
        assert torch.allclose(found, oracle(gram[0]), atol=1e-8)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_torchjd_is_its_own_aggregator_times_the_tasks_whatever_the_gradients_size(
    aggregator: str,
) -> None:
    oracle = getattr(aggregation, AGGREGATORS[aggregator].removesuffix("Weighting"))()
    for seed in range(5):
        gradients_TP = conflicting(num_tasks=3, seed=seed)[0]
        wanted_P = 3 * oracle(gradients_TP)
        for scale in (1.0, 1e-6):
            weights_T = TorchJD(aggregator=aggregator).weights(scale**2 * gramian(gradients_TP)[None], TASKS, IN_ORDER, {})[0]
            assert torch.allclose(weights_T @ gradients_TP, wanted_P, rtol=1e-3, atol=1e-4)


def test_upgrad_harms_no_task_and_is_the_sum_where_none_conflict() -> None:
    gram_TT = torch.tensor([[4.0, -1.5, 0.2], [-1.5, 1.0, 0.1], [0.2, 0.1, 2.0]], dtype=torch.float64)
    weights_T = TorchJD().weights(gram_TT[None], TASKS, IN_ORDER, {})[0]
    assert (gram_TT @ weights_T > -1e-3).all()
    assert (gram_TT @ torch.ones_like(weights_T)).min() < -0.3
    assert TorchJD().weights(gram_TT.abs()[None], TASKS, IN_ORDER, {})[0].tolist() == pytest.approx([1, 1, 1], abs=1e-3)


def test_a_library_that_is_missing_is_told_before_a_trial_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "quadprog" else name)
    with pytest.raises(SettingsError, match=r"'torchjd' needs quadprog: pip install -e '\.\[torchjd\]'"):
        load_config({"gradient": "torchjd"})


# -------------------------------------------------------------------------------------------------------------- orders


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_an_order_holds_every_other_task_once_and_never_the_task_itself(num_tasks: int) -> None:
    """A gradient compared with itself is a public bug"""
    orders = random_orders(num_tasks, np.random.default_rng(0))
    assert orders.shape == (num_tasks, num_tasks - 1)
    assert [sorted(order) for order in orders.tolist()] == [[j for j in range(num_tasks) if j != i] for i in range(num_tasks)]


def test_each_task_gets_a_fresh_order() -> None:
    generator = np.random.default_rng(0)
    drawn = [random_orders(3, generator).tolist() for _ in range(200)]
    assert {tuple(map(tuple, orders)) for orders in drawn} == {
        ((a, b), (c, d), (e, f)) for a, b in ((1, 2), (2, 1)) for c, d in ((0, 2), (2, 0)) for e, f in ((0, 1), (1, 0))
    }
