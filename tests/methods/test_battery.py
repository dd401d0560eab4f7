"""One battery over every variant of every family: a new variant is tested by being named in its family's union.

Families are found, not listed: every union in minbert_core.methods. A failure says which law which variant broke.
Legend: B examples, S sequences, N tokens, D hidden size, F features, K outputs, G groups, T tasks.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import typing
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

import minbert_core.methods
from minbert_core.data.tasks import TaskKind
from minbert_core.methods.features import PairEncoding, Pooling
from minbert_core.methods.gradients import GradientMethod, PCGrad, random_orders
from minbert_core.methods.heads import Head
from minbert_core.methods.losses import Loss, divergence
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.proximal import Bregman, Proximal
from minbert_core.methods.smoothness import Smart, Smoothness
from minbert_core.methods.stages import Stage, StagePlan
from minbert_core.methods.task_schedules import Mix, TaskSchedule
from minbert_core.settings import Variant

MODULES = [
    importlib.import_module(f"minbert_core.methods.{m.name}") for m in pkgutil.iter_modules(minbert_core.methods.__path__)
]


def variants(family: Any) -> list[type[Variant]]:
    """The classes of a family: of Annotated[A | B, ...] A and B, of Annotated[A, ...] A."""
    inner = get_args(family)[0]
    return list(get_args(inner)) or [inner]


def is_family(value: object) -> bool:
    if get_origin(value) is not Annotated:
        return False
    return all(inspect.isclass(member) and issubclass(member, Variant) for member in variants(value))


FAMILIES = {name: value for module in MODULES for name, value in vars(module).items() if is_family(value)}
NEEDED = {"task": "sst"}  # a value for each knob that has no default
ALL = [(family, variant) for family in FAMILIES.values() for variant in variants(family)]


def needed(cls: type[Variant]) -> dict[str, str]:
    return {name: NEEDED[name] for name, field in cls.model_fields.items() if field.is_required()}


def plain(cls: type[Variant]) -> Variant:
    """A variant from its defaults, and from what it cannot do without."""
    return cls.model_validate(needed(cls))


def named(family: Any) -> Any:
    """Parametrise over a family's variants, each built from its defaults."""
    return pytest.mark.parametrize("variant", [plain(cls) for cls in variants(family)], ids=lambda variant: variant.kind)


def of(cls: type[Variant]) -> str:
    return f"{cls.__module__.rpartition('.')[2]} '{plain(cls).kind}'"


# --------------------------------------------------------------------------------------------------------- all variants

every_variant = pytest.mark.parametrize(("family", "cls"), ALL, ids=[of(cls) for _, cls in ALL])


def test_every_variant_that_is_written_is_in_a_family() -> None:
    listed = {cls for _, cls in ALL}
    for module in MODULES:
        for cls in vars(module).values():
            if inspect.isclass(cls) and issubclass(cls, Variant) and cls is not Variant:
                assert cls in listed, f"{module.__name__}.{cls.__name__} is in no union: no config can name it"


def test_kinds_differ_within_a_family() -> None:
    for name, family in FAMILIES.items():
        kinds = [plain(cls).kind for cls in variants(family)]
        assert len(set(kinds)) == len(kinds), f"{name}: a kind is taken twice among {kinds}"


@every_variant
def test_the_bare_name_means_the_defaults(family: Any, cls: type[Variant]) -> None:
    adapter = TypeAdapter(family)
    kind = plain(cls).kind
    if needed(cls):
        with pytest.raises(ValidationError, match="Field required"):
            adapter.validate_python(kind)
        return
    assert adapter.validate_python(kind) == adapter.validate_python({"kind": kind}) == cls(), (
        f"{of(cls)}: its bare name is not it"
    )


@every_variant
def test_a_kind_is_a_name_that_a_path_can_hold(family: Any, cls: type[Variant]) -> None:
    kind = plain(cls).kind
    assert kind.isascii() and kind.replace("_", "a").replace("-", "a").isalnum() and kind.islower(), (  # noqa: PT018
        f"{of(cls)}: a kind is made of [a-z0-9_-]"
    )


@every_variant
def test_a_variant_is_frozen(family: Any, cls: type[Variant]) -> None:
    assert cls.model_config["frozen"], f"{of(cls)}: its knobs can be set"
    with pytest.raises(ValidationError, match="frozen"):
        plain(cls).kind = "another"


@every_variant
def test_an_unknown_knob_is_refused(family: Any, cls: type[Variant]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        TypeAdapter(family).validate_python({"kind": plain(cls).kind, **needed(cls), "no_such_knob": 1})


@every_variant
def test_a_variant_says_what_it_is_and_where_it_comes_from(family: Any, cls: type[Variant]) -> None:
    assert cls.__doc__, f"{of(cls)}: has no docstring"
    assert cls.__doc__ != Variant.__doc__, f"{of(cls)}: inherits its docstring"


@every_variant
def test_every_knob_has_a_description(family: Any, cls: type[Variant]) -> None:
    for name, field in cls.model_fields.items():
        assert name == "kind" or field.description, f"{of(cls)}: `{name}` has no description"


@every_variant
def test_a_variant_survives_being_written_and_read(family: Any, cls: type[Variant]) -> None:
    adapter = TypeAdapter(family)
    for mode in ("python", "json"):
        written = plain(cls).model_dump(mode=mode)
        assert adapter.validate_python(written) == plain(cls), f"{of(cls)}: {written} is read back as something else"


@every_variant
def test_a_variant_has_a_schema_for_editors(family: Any, cls: type[Variant]) -> None:
    assert cls.__name__ in str(TypeAdapter(family).json_schema()), f"{of(cls)}: is not in its family's schema"


def test_every_family_is_found() -> None:
    known = {
        "Pooling",
        "PairEncoding",
        "Head",
        "Loss",
        "LossWeights",
        "TaskSchedule",
        "GradientMethod",
        "Smoothness",
        "Proximal",
    }
    known |= {"Stage"}
    assert known <= set(FAMILIES)


def test_no_family_imports_another_but_stages() -> None:
    for module in MODULES:
        if module.__name__.endswith(".stages"):
            continue
        lines = [line for line in inspect.getsource(module).splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not [line for line in lines if "minbert_core.methods" in line], f"{module.__name__} imports another family"


# ------------------------------------------------------------------------------------------------------------- poolings

STARTS = torch.tensor([0, 3, 4, 8])
SPANS = [(0, 3), (3, 4), (4, 8)]


def pooler(first_SD: Tensor) -> Tensor:
    return (2 * first_SD).tanh()


@named(Pooling)
def test_a_pooling_gives_one_vector_a_sequence(variant: Any) -> None:
    pooled = variant.pool(torch.randn(8, 5), STARTS, pooler)
    assert pooled.shape == (3, 5), f"pooling '{variant.kind}': shape {tuple(pooled.shape)}, not (S, D)"


@named(Pooling)
def test_a_pooled_vector_depends_on_its_own_sequence_alone(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5)
    together = variant.pool(hidden_ND, STARTS, pooler)
    for s, (start, end) in enumerate(SPANS):
        alone = variant.pool(hidden_ND[start:end], torch.tensor([0, end - start]), pooler)
        assert torch.allclose(together[s], alone[0], atol=1e-6), f"pooling '{variant.kind}': batch-mates change sequence {s}"


@named(Pooling)
def test_permuting_sequences_permutes_pooled_vectors(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5)
    permuted = torch.cat([hidden_ND[start:end] for start, end in (SPANS[2], SPANS[0], SPANS[1])])
    found = variant.pool(permuted, torch.tensor([0, 4, 7, 8]), pooler)
    expected = variant.pool(hidden_ND, STARTS, pooler)[[2, 0, 1]]
    assert torch.allclose(found, expected, atol=1e-6), f"pooling '{variant.kind}': does not follow its sequences"


@named(Pooling)
def test_a_pooling_says_whether_it_uses_the_pooler(variant: Any) -> None:
    calls = []
    variant.pool(torch.randn(8, 5), STARTS, lambda first: calls.append(1) or first)
    assert bool(calls) is variant.uses_pooler, f"pooling '{variant.kind}': uses_pooler is {variant.uses_pooler}"


@named(Pooling)
def test_gradient_reaches_every_sequence(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5, requires_grad=True)
    variant.pool(hidden_ND, STARTS, pooler).sum().backward()
    assert hidden_ND.grad is not None
    for start, end in SPANS:
        assert hidden_ND.grad[start:end].abs().max() > 0, f"pooling '{variant.kind}': no gradient for tokens {start} to {end}"


@named(PairEncoding)
def test_an_encoding_gives_a_row_an_example_as_wide_as_its_vectors(variant: Any) -> None:
    features = variant.features(torch.randn(4 * variant.vectors, 5))
    assert features.shape == (4, 5 * variant.vectors), f"pair encoding '{variant.kind}': shape {tuple(features.shape)}"


# ---------------------------------------------------------------------------------------------------------------- heads


def keep(values: Tensor, probability: float) -> Tensor:
    return values


def drop(values: Tensor, probability: float) -> Tensor:
    return torch.nn.functional.dropout(values, probability)


def outputs_of(head: Any) -> tuple[int, ...]:
    return (1,) if head.single_output else (1, 5)


@named(Head)
def test_a_head_gives_a_row_of_logits_an_example(variant: Any) -> None:
    for outputs in outputs_of(variant):
        logits = variant.build(8, outputs)(torch.randn(3, 8), keep)
        assert logits.shape == (3, outputs), f"head '{variant.kind}': shape {tuple(logits.shape)} for K = {outputs}"


@named(Head)
def test_gradient_reaches_every_parameter_and_the_features(variant: Any) -> None:
    for outputs in outputs_of(variant):
        head, features = variant.build(8, outputs), torch.randn(16, 8, requires_grad=True)
        (head(features, keep) * torch.randn(16, outputs)).sum().backward()
        for name, tensor in [*head.named_parameters(), ("features", features)]:
            reached = tensor.grad is not None and tensor.grad.abs().max() > 0
            assert reached, f"head '{variant.kind}': gradient does not reach {name} (K = {outputs})"


@named(Head)
def test_a_head_is_deterministic_in_evaluation(variant: Any) -> None:
    head, features = variant.build(8, 1), torch.randn(3, 8)
    state = torch.get_rng_state()
    assert torch.equal(head(features, keep), head(features, keep)), f"head '{variant.kind}': two evaluations differ"
    assert torch.equal(torch.get_rng_state(), state), f"head '{variant.kind}': draws random numbers of its own"


@named(Head)
def test_a_head_treats_each_example_by_itself(variant: Any) -> None:
    head, features = variant.build(8, 1), torch.randn(5, 8)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(head(features[order], keep), head(features, keep)[order], atol=1e-6), (
        f"head '{variant.kind}': permuting examples does not permute logits"
    )


@named(Head)
def test_a_head_with_a_dropout_knob_drops_through_the_given_function(variant: Any) -> None:
    seen: list[float] = []
    variant.build(8, 1)(torch.randn(3, 8), lambda values, p: seen.append(p) or values)
    expected = {variant.dropout} if hasattr(variant, "dropout") else set()
    assert set(seen) == expected, f"head '{variant.kind}': drops with {set(seen)}, its knob says {expected}"


@named(Head)
def test_a_head_survives_its_state_dict(variant: Any) -> None:
    first, second = variant.build(8, 1), variant.build(8, 1)
    second.load_state_dict(first.state_dict())
    features = torch.randn(3, 8)
    assert torch.equal(first(features, keep), second(features, keep)), f"head '{variant.kind}': loses state when saved"


@named(Head)
def test_a_head_can_learn(variant: Any) -> None:
    """Two examples, their features their own: some steps must fit their labels."""
    features = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    labels, head = torch.tensor([[4.0], [1.0]]), variant.build(8, 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (head(features, keep) - labels).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, f"head '{variant.kind}': does not fit two examples, loss {loss.item():.3f}"


@named(Head)
def test_a_head_that_reads_the_cosine_only_grows_with_it_untrained(variant: Any) -> None:
    """v turns away from a fixed u by a half turn in eight steps; then once more, seven times as long."""
    angles, head = torch.linspace(0, torch.pi, 9), variant.build(4, 1)
    u, v = torch.tensor([[1.0, 0.0]]).expand(9, 2), torch.stack([angles.cos(), angles.sin()], dim=1)
    near, far = (head(torch.cat([u, length * v], dim=1), keep) for length in (1, 7))
    cosine_only = bool((near.diff(dim=0) < 0).all()) and torch.allclose(near, far)
    assert cosine_only is variant.reads_cosine_only, f"head '{variant.kind}': reads_cosine_only is {variant.reads_cosine_only}"


@named(Head)
def test_a_head_says_whether_it_can_give_several_outputs(variant: Any) -> None:
    if variant.single_output:
        with pytest.raises(AssertionError, match="one output, not 5"):
            variant.build(8, 5)


# --------------------------------------------------------------------------------------------------------------- losses


LABELS: dict[TaskKind, Tensor] = {
    "classification": torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]),
    "binary": torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]),
    "regression": torch.tensor([0.0, 1.25, 2.4, 3.8, 5.0]),
}
RANGES: dict[TaskKind, tuple[float, float]] = {"classification": (0, 4), "binary": (0, 1), "regression": (0, 5)}
OUTPUTS: dict[TaskKind, int] = {"classification": 5, "binary": 1, "regression": 1}


def best_of(variant: Any, kind: TaskKind) -> Tensor:
    """What a loss reads, (B, K) or (B, F), as good as can be for the labels of `kind`."""
    labels, (low, high) = LABELS[kind], RANGES[kind]
    outputs = variant.outputs(OUTPUTS[kind])
    if variant.reads_features:  # u and v alike in the upper half of the labels, opposite in the lower
        u = torch.tensor([[1.0, 2.0, -1.0, 0.5]]).expand(5, 4)
        return torch.cat([u, torch.where(labels >= (low + high) / 2, 1.0, -1.0)[:, None] * u], dim=1)
    if outputs > 1:
        values = torch.linspace(low, high, outputs)
        return 20 * torch.eye(outputs)[(labels[:, None] - values).abs().argmin(dim=1)]
    return (40 * labels - 20 if kind == "binary" else labels)[:, None]


def cases_of(variant: Any) -> list[tuple[TaskKind, Tensor, Tensor, tuple[float, float]]]:
    """Of every kind of task that a loss fits: the kind, values as good as can be, labels, label range."""
    return [(kind, best_of(variant, kind), LABELS[kind], RANGES[kind]) for kind in variant.fits]


@named(Loss)
def test_a_loss_fits_some_kind_of_task(variant: Any) -> None:
    assert variant.fits, f"loss '{variant.kind}': fits no task"
    assert set(variant.fits) <= set(typing.get_args(TaskKind)), f"loss '{variant.kind}': fits unknown kinds {variant.fits}"


@named(Loss)
def test_a_loss_is_lower_at_the_optimum_than_away_from_it(variant: Any) -> None:
    for kind, values, labels, label_range in cases_of(variant):
        best, worst = variant(values, labels, label_range), variant(values.flip(0).roll(1, 0), labels, label_range)
        assert best.shape == (), f"loss '{variant.kind}': shape {tuple(best.shape)}, not a scalar"
        assert best.item() == pytest.approx(0, abs=1e-4), f"loss '{variant.kind}': {best.item()} at the optimum of {kind}"
        assert worst > best + 0.01, (
            f"loss '{variant.kind}': {worst.item()} away from the optimum of {kind}, {best.item()} at it"
        )


@named(Loss)
def test_a_loss_and_its_gradient_are_finite(variant: Any) -> None:
    for _, good, labels, label_range in cases_of(variant):
        cases = {"good": good, "bad": -10 * good, "equal": torch.zeros_like(good), "huge": 1e4 * good}
        for case, whole in cases.items():
            for rows in (slice(None), slice(0, 1)):
                values = whole[rows].clone().requires_grad_()
                loss = variant(values, labels[rows], label_range)
                loss.backward()
                assert loss.isfinite(), f"loss '{variant.kind}': {loss.item()} for {case} values"
                assert values.grad is not None
                assert values.grad.isfinite().all(), f"loss '{variant.kind}': gradient not finite for {case} values"


@named(Loss)
def test_a_loss_does_not_depend_on_the_order_of_examples(variant: Any) -> None:
    for _, values, labels, label_range in cases_of(variant):
        values, order = values + torch.randn_like(values), torch.tensor([2, 0, 4, 1, 3])
        found, expected = variant(values[order], labels[order], label_range), variant(values, labels, label_range)
        assert torch.allclose(found, expected, atol=1e-5), f"loss '{variant.kind}': permuting examples changes it"


@named(Loss)
def test_a_loss_is_a_mean_over_its_examples_where_it_says_so_and_only_there(variant: Any) -> None:
    """Of 5 examples as 2 and 3: what a batch that goes through in parts relies on."""
    for kind, values, labels, label_range in cases_of(variant):
        values, order = values + torch.randn_like(values), torch.tensor([2, 0, 4, 1, 3])  # no part of equal labels
        parts = [2 / 5 * variant(values[order[:2]], labels[order[:2]], label_range)]
        parts += [3 / 5 * variant(values[order[2:]], labels[order[2:]], label_range)]
        is_mean = torch.allclose(sum(parts), variant(values, labels, label_range), atol=1e-5)
        assert is_mean is variant.is_mean, f"loss '{variant.kind}': is_mean is {variant.is_mean}, but not true of {kind}"


@named(Loss)
def test_a_loss_that_reads_features_says_whether_it_needs_a_pair(variant: Any) -> None:
    assert variant.reads_features or not variant.needs_pair_vectors, f"loss '{variant.kind}': a pair of what, in logits?"


def logits_of(variant: Any, kind: TaskKind) -> Tensor:
    """The head's logits, (B, K), where what the loss reads is as good as can be; of an untrained head if it reads features."""
    values = best_of(variant, kind)
    if not variant.reads_features:
        return values
    answering = next(head for cls in variants(Head) if (head := cls()).reads_cosine_only)
    logits: Tensor = answering.build(values.shape[1], variant.outputs(OUTPUTS[kind]))(values, keep).detach()
    return logits


@named(Loss)
def test_a_readout_is_what_the_metric_of_the_task_reads(variant: Any) -> None:
    """At the optimum of the loss the metric is at, or (with labels made into classes) near, its best."""
    for kind in variant.fits:
        readout, labels = variant.readout(logits_of(variant, kind), RANGES[kind]), LABELS[kind]
        shape = (len(labels), OUTPUTS[kind])
        assert readout.shape == shape, f"loss '{variant.kind}': readout of shape {tuple(readout.shape)}, not {shape}"
        if kind == "regression":
            r = torch.corrcoef(torch.stack([readout[:, 0], labels]))[0, 1].item()
            assert r > 0.85, f"loss '{variant.kind}': r {r:.2f} at its optimum"
        else:
            answers = readout.argmax(1) if kind == "classification" else readout[:, 0] > 0
            assert answers.tolist() == labels.tolist(), f"loss '{variant.kind}': wrong answers at its optimum of {kind}"


@named(Loss)
def test_a_readout_is_of_each_example_by_itself_and_passes_a_gradient(variant: Any) -> None:
    for kind in variant.fits:
        logits, order = torch.randn(5, variant.outputs(OUTPUTS[kind]), requires_grad=True), torch.tensor([2, 0, 4, 1, 3])
        readout = variant.readout(logits, RANGES[kind])
        assert torch.allclose(variant.readout(logits[order], RANGES[kind]), readout[order]), (
            f"loss '{variant.kind}': permuting examples does not permute its readout"
        )
        divergence(kind)(readout, torch.zeros_like(readout)).backward()
        assert logits.grad is not None
        reached = logits.grad.isfinite().all() and (logits.grad.abs().amax(dim=1) > 0).all()
        assert reached, f"loss '{variant.kind}': no gradient through its readout of {kind}"


# ------------------------------------------------------------------------------------------------------- task schedules

SIZES = {"sst": 50, "para": 400, "sts": 30}
BATCHES = {"sst": 8, "para": 16, "sts": 4}


@named(TaskSchedule)
def test_a_schedule_is_a_function_of_its_arguments(variant: Any) -> None:
    first, again = ([variant.tasks_of_step(step, 0.3, SIZES, BATCHES, 7) for step in range(20)] for _ in range(2))
    assert first == again, f"task schedule '{variant.kind}': two calls differ"


@named(TaskSchedule)
def test_a_step_takes_known_tasks_once_each_and_as_many_as_announced(variant: Any) -> None:
    for step in range(50):
        tasks = variant.tasks_of_step(step, step / 50, SIZES, BATCHES, 0)
        assert set(tasks) <= set(SIZES), f"task schedule '{variant.kind}': unknown task among {tasks}"
        assert len(tasks) == len(set(tasks)), f"task schedule '{variant.kind}': a task twice in {tasks}"
        assert 1 <= len(tasks) <= variant.tasks_per_step(len(SIZES)), (
            f"task schedule '{variant.kind}': {len(tasks)} tasks a step"
        )


@named(TaskSchedule)
def test_every_task_is_reached(variant: Any) -> None:
    seen = {task for step in range(300) for task in variant.tasks_of_step(step, step / 300, SIZES, BATCHES, 0)}
    assert seen == set(SIZES), f"task schedule '{variant.kind}': never takes {set(SIZES) - seen}"


@named(TaskSchedule)
def test_a_schedule_of_one_task_takes_it_and_its_epoch_is_one_pass(variant: Any) -> None:
    assert variant.tasks_of_step(3, 0.5, {"sst": 64}, {"sst": 16}, 0) == ("sst",)
    found = variant.epoch_examples({"sst": 64}, {"sst": 16})
    assert found == 64, f"task schedule '{variant.kind}': an epoch of 64 examples of one task draws {found}"
    assert isinstance(found, int), f"task schedule '{variant.kind}': an epoch of {found!r} examples"


# ------------------------------------------------------------------------------------------------------------ gradients

TASKS = ("sst", "para", "sts")


def gramians(num_groups: int = 4, num_tasks: int = 3, seed: int = 0) -> Tensor:
    """Of gradients in few dimensions, some of which conflict; float64, shape (G, T, T)."""
    gradients = torch.randn(num_groups, num_tasks, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gradients @ gradients.mT


def orders_of(num_tasks: int, seed: int = 0) -> Tensor:
    return random_orders(num_tasks, np.random.default_rng(seed))


@named(GradientMethod)
def test_weights_have_a_row_a_group_in_the_gramians_precision(variant: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        weights = variant.weights(gramians().to(dtype), TASKS, orders_of(3), {})
        assert weights.shape == (4, 3), f"gradient '{variant.kind}': shape {tuple(weights.shape)}, not (G, T)"
        assert weights.dtype == dtype, f"gradient '{variant.kind}': {weights.dtype} for a Gramian of {dtype}"


@named(GradientMethod)
def test_a_single_task_keeps_its_gradient(variant: Any) -> None:
    weights = variant.weights(gramians(num_tasks=1), ("sst",), orders_of(1), {})
    assert torch.equal(weights, torch.ones_like(weights)), f"gradient '{variant.kind}': T = 1 gives weights {weights.tolist()}"


@named(GradientMethod)
def test_permuting_tasks_permutes_weights(variant: Any) -> None:
    permutation = [2, 0, 1]
    place = {old: new for new, old in enumerate(permutation)}
    states: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for seed in range(4):  # over steps, so that state is permuted too
        gram, orders = gramians(seed=seed), orders_of(3, seed)
        moved_orders = torch.tensor([[place[j] for j in orders[old].tolist()] for old in permutation])
        expected = variant.weights(gram, TASKS, orders, states[0])[:, permutation]
        moved_gram = gram[:, permutation][:, :, permutation]
        found = variant.weights(moved_gram, tuple(TASKS[old] for old in permutation), moved_orders, states[1])
        assert torch.allclose(found, expected), f"gradient '{variant.kind}': permuting tasks does not permute weights"


@named(GradientMethod)
def test_scaling_all_gradients_scales_the_result(variant: Any) -> None:
    for scale in (1e-12, 1e8):
        expected = variant.weights(gramians(), TASKS, orders_of(3), {})
        found = variant.weights(scale * gramians(), TASKS, orders_of(3), {})
        assert torch.allclose(found, expected), (
            f"gradient '{variant.kind}': weights change when gradients scale by {scale**0.5}"
        )


@named(GradientMethod)
def test_zero_gradients_stay_finite_for_ever(variant: Any) -> None:
    state: dict[str, Tensor] = {}
    for groups, zero in itertools.product((slice(0, 2), slice(None)), ([0], [0, 1], [0, 1, 2], [])):
        gram = gramians()
        gram[groups, zero] = 0
        gram[groups, :, zero] = 0
        weights = variant.weights(gram, TASKS, orders_of(3), state)
        assert weights.isfinite().all(), f"gradient '{variant.kind}': weights not finite with tasks {zero} at zero"
        for key, value in state.items():
            assert value.isfinite().all(), f"gradient '{variant.kind}': state '{key}' not finite with tasks {zero} at zero"


@named(GradientMethod)
def test_a_gramian_is_left_as_it_was_and_its_weights_are_repeatable(variant: Any) -> None:
    gram = gramians()
    first = variant.weights(gram, TASKS, orders_of(3), {})
    assert torch.equal(gram, gramians()), f"gradient '{variant.kind}': writes into the Gramian"
    assert torch.equal(first, variant.weights(gram, TASKS, orders_of(3), {})), f"gradient '{variant.kind}': two calls differ"


@named(GradientMethod)
def test_state_is_all_that_is_remembered(variant: Any) -> None:
    """A copy of the state goes on as the original does: that is what a checkpoint relies on."""
    state: dict[str, Tensor] = {}
    for seed in range(3):
        variant.weights(gramians(seed=seed), TASKS, orders_of(3, seed), state)
    copy = {key: value.clone() for key, value in state.items()}
    found = variant.weights(gramians(seed=9), TASKS, orders_of(3), copy)
    expected = variant.weights(gramians(seed=9), TASKS, orders_of(3), state)
    assert torch.equal(found, expected), f"gradient '{variant.kind}': remembers something outside its state"


# ----------------------------------------------------------------------------------------------------------- smoothness

EXAMPLE_N = torch.tensor([0, 0, 1, 1, 1])


@named(Smoothness)
@pytest.mark.parametrize("kind", typing.get_args(TaskKind))
def test_a_penalty_is_a_positive_scalar_that_trains_and_costs_what_it_announces(variant: Any, kind: TaskKind) -> None:
    embeddings_ND, weight_DK = torch.randn(5, 4), torch.randn(4, 5 if kind == "classification" else 1, requires_grad=True)
    passes: list[int] = []

    def forward(noise_ND: Tensor) -> Tensor:
        passes.append(1)
        values_NK = ((embeddings_ND + noise_ND) @ weight_DK).tanh()
        return torch.zeros(2, values_NK.shape[1]).index_add(0, EXAMPLE_N, values_NK)

    clean_BK = forward(torch.zeros(5, 4))
    passes.clear()
    state = torch.get_rng_state()
    penalty = variant.penalty(forward, clean_BK, divergence(kind), EXAMPLE_N, 2, (5, 4), torch.Generator().manual_seed(0))
    assert len(passes) == variant.extra_passes, f"smoothness '{variant.kind}': {len(passes)} passes, not {variant.extra_passes}"
    assert torch.equal(torch.get_rng_state(), state), f"smoothness '{variant.kind}': draws from torch's global generator"
    assert weight_DK.grad is None, f"smoothness '{variant.kind}': leaves a gradient in a parameter before backward"
    if penalty is None:
        return
    assert penalty.shape == (), f"smoothness '{variant.kind}': shape {tuple(penalty.shape)}, not a scalar"
    assert penalty.isfinite(), f"smoothness '{variant.kind}': penalty {penalty.item()}"
    assert penalty > 0, f"smoothness '{variant.kind}': penalty {penalty.item()} for a {kind} task"
    penalty.backward()
    assert weight_DK.grad is not None
    assert weight_DK.grad.abs().max() > 0, f"smoothness '{variant.kind}': gradient does not reach the model ({kind})"


# ------------------------------------------------------------------------------------------------------------- proximal


def student() -> nn.Sequential:
    """A frozen layer and a trained one, moved from where it began by `moved`."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    return model


@torch.no_grad()
def moved(model: nn.Sequential, seed: int) -> nn.Sequential:
    for parameter in model[1].parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return model


@named(Proximal)
def test_a_teacher_begins_as_the_student_and_takes_no_gradient(variant: Any) -> None:
    model, x = moved(student(), 0), torch.randn(5, 3)
    state = torch.get_rng_state()
    teacher = variant.start(model)
    assert torch.equal(torch.get_rng_state(), state), f"proximal '{variant.kind}': draws from torch's global generator"
    assert variant.weight >= 0, f"proximal '{variant.kind}': weight {variant.weight}"
    if teacher is None:
        assert variant.weight == 0, f"proximal '{variant.kind}': a weight, but no teacher"
        return
    assert torch.equal(teacher.model(x), model(x)), f"proximal '{variant.kind}': its teacher begins as something else"
    assert not teacher.model(x).requires_grad, f"proximal '{variant.kind}': a gradient reaches its teacher"


@named(Proximal)
def test_a_teacher_stays_between_where_it_was_and_the_student_and_leaves_the_student_alone(variant: Any) -> None:
    model = moved(student(), 0)
    teacher = variant.start(model)
    if teacher is None:
        return
    before = model[1].weight.detach().clone()
    after = moved(model, 1)[1].weight.detach().clone()
    for progress in (0.0, 0.5, 1.0):
        teacher.follow(progress)
        share = (teacher.model[1].weight - before) / (after - before)
        assert bool(((share > 0) & (share < 1)).all()), f"proximal '{variant.kind}': its teacher leaps to {share.tolist()}"
    assert torch.equal(model[1].weight, after), f"proximal '{variant.kind}': moves the student"
    assert torch.equal(teacher.model[0].weight, model[0].weight), f"proximal '{variant.kind}': moves what is frozen"


@named(Proximal)
def test_the_state_of_a_teacher_is_all_that_is_remembered(variant: Any) -> None:
    """A teacher restored from a copy goes on as the original does: that is what a checkpoint relies on."""
    model = moved(student(), 0)
    teacher = variant.start(model)
    if teacher is None:
        return
    moved(model, 1)
    teacher.follow(0.0)
    again = variant.start(model)
    again.restore({name: value.clone() for name, value in teacher.state().items()})
    moved(model, 2)
    for one in (teacher, again):
        one.follow(0.5)
    assert all(torch.equal(value, again.state()[name]) for name, value in teacher.state().items()), (
        f"proximal '{variant.kind}': remembers something outside its state"
    )


# --------------------------------------------------------------------------------------------------------------- stages

TRIAL = StagePlan(
    name="",
    tasks=TASKS,
    optimizer=Optimizer(lr=3e-5),
    task_schedule=Mix(),
    gradient=PCGrad(),
    smoothness=Smart(radius=0.05),
    proximal=Bregman(weight=2.0),
)


@named(Stage)
def test_a_stage_s_name_in_a_recipe_begins_with_its_kind(variant: Any) -> None:
    name = variant.plan(TRIAL).name
    assert name.startswith(variant.kind), f"stage '{variant.kind}': is named '{name}'"
    assert name.replace("_", "a").replace("-", "a").isalnum(), f"stage '{variant.kind}': '{name}' is not made of [a-z0-9_-]"


@named(Stage)
def test_a_stage_takes_tasks_of_the_trial_and_can_merge_them_where_it_merges(variant: Any) -> None:
    plan = variant.plan(TRIAL)
    assert plan.tasks, f"stage '{variant.kind}': has no task"
    assert set(plan.tasks) <= set(TASKS), f"stage '{variant.kind}': trains {plan.tasks} of {TASKS}"
    several = plan.task_schedule.tasks_per_step(len(plan.tasks)) > 1
    assert several or not plan.gradient.needs_several_tasks, f"stage '{variant.kind}': merges the gradient of one task"


@named(Stage)
def test_a_stage_that_trains_no_encoder_has_nothing_that_acts_on_it(variant: Any) -> None:
    plan = variant.plan(TRIAL)
    acting = plan.gradient.needs_several_tasks or plan.smoothness.weight or plan.proximal.weight
    assert plan.trains_encoder or not acting, f"stage '{variant.kind}': passes for a penalty on what it does not train"


@named(Stage)
def test_what_a_stage_may_override_takes_effect_and_else_is_the_trial_s(variant: Any) -> None:
    others = {"optimizer": Optimizer(lr=0.5), "task_schedule": {"kind": "sequential"}, "gradient": {"kind": "gradvac"},
              "smoothness": {"kind": "smart", "radius": 0.9}, "proximal": {"kind": "bregman", "beta": 0.3}}  # fmt: skip
    plan = variant.plan(TRIAL)
    for knob, value in others.items():
        if knob in type(variant).model_fields:
            assert getattr(plan, knob) == getattr(TRIAL, knob), f"stage '{variant.kind}': changes the trial's {knob}"
            own = type(variant).model_validate({**needed(type(variant)), knob: value})
            found = getattr(own.plan(TRIAL), knob)
            assert found == getattr(own, knob) != getattr(TRIAL, knob), f"stage '{variant.kind}': its {knob} has no effect"
