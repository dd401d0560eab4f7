"""One battery over every variant of every family: a new variant is tested by being named in its family's union.

Families are found, not listed: every union in minbert_core.methods. A law is a test whose name says it; one that is broken is
told in a sentence, which variant, what was found, where in its code, and then the law.
Legend: B examples, S sequences, N tokens, D hidden size, F features, K outputs, G groups, T tasks.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import math
import pkgutil
import re
import traceback
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

import minbert_core.methods
from minbert_core.data.tasks import TaskKind
from minbert_core.encoder import EncoderShape, Layout, Query, new_encoder
from minbert_core.methods.adapters import Adapter
from minbert_core.methods.features import PairEncoding, Pooling
from minbert_core.methods.gradients import GradientMethod, PCGrad, random_orders
from minbert_core.methods.heads import Head
from minbert_core.methods.loss_weights import LossWeights
from minbert_core.methods.losses import Loss, divergence
from minbert_core.methods.objectives import Vocabulary
from minbert_core.methods.optimizer import LR_SCHEDULES, Optimizer
from minbert_core.methods.proximal import Bregman, Proximal
from minbert_core.methods.shared_layers import SharedLayer
from minbert_core.methods.smoothness import Clean, Smart, Smoothness
from minbert_core.methods.stages import LabelledStage, Pretraining, StagePlan
from minbert_core.methods.task_schedules import Mix, StepAt, TaskSchedule
from minbert_core.settings.models import Variant

METHODS = Path(minbert_core.methods.__path__[0])
MODULES = [importlib.import_module(f"minbert_core.methods.{m.name}") for m in pkgutil.iter_modules([str(METHODS)])]


def variants(family: Any) -> list[type[Variant]]:
    """The classes of a family: of Annotated[A | B, ...] A and B, of Annotated[A, ...] A."""
    inner = get_args(family)[0]
    return list(get_args(inner)) or [inner]


def is_family(value: object) -> bool:
    if get_origin(value) is not Annotated:
        return False
    return all(inspect.isclass(member) and issubclass(member, Variant) for member in variants(value))


FAMILIES = {name: value for module in MODULES for name, value in vars(module).items() if is_family(value)}
WIDEST_FIRST = sorted(FAMILIES, key=lambda name: -len(variants(FAMILIES[name])))
FAMILY_OF = {cls: name for name in WIDEST_FIRST for cls in variants(FAMILIES[name])}  # of two that hold it, the narrower one
CLASSES = [cls for module in MODULES for cls in vars(module).values() if inspect.isclass(cls) and issubclass(cls, Variant)]
BASES = {base for cls in CLASSES for base in cls.__mro__[1:]}  # they hold a family's defaults, and are no variants themselves
WRITTEN = {f"{cls.__module__}.{cls.__name__}": cls for cls in CLASSES if cls not in BASES}
NEEDED = {"task": "sst"}  # a value for each knob that has no default


def needed(cls: type[Variant]) -> dict[str, str]:
    required = [name for name, field in cls.model_fields.items() if field.is_required()]
    for name in required:
        assert name in NEEDED, f"`{name}` has no default; give it one, or this battery a value in NEEDED"
    return {name: NEEDED[name] for name in required}


def plain(cls: type[Variant]) -> Variant:
    """A variant from its defaults, and from what it cannot do without."""
    return cls.model_validate(needed(cls))


def kind_of(cls: type[Variant]) -> str:
    """Its name in YAML; that of the class where it has none, so that it can be told of."""
    kind = cls.model_fields["kind"].default
    return kind if isinstance(kind, str) else cls.__name__


def word(family: str) -> str:
    """The name of a family in a sentence: 'gradient method' of GradientMethod."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", family).lower()


# ------------------------------------------------------------------------------------- how a law is stated, and its breach told


def law(*families: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test over each variant of `families` (of all, where none is named), given as `variant`, built from its defaults.

    Whatever the variant raises is told as a sentence, with the place in minbert_core that raised it.
    """
    members = [cls for cls, family in FAMILY_OF.items() if not families or FAMILIES[family] in families]
    return over("variant", {f"{word(FAMILY_OF[cls])} '{kind_of(cls)}'": functools.partial(plain, cls) for cls in members})


def over(name: str, members: dict[str, Callable[[], Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test over things that are built within it: how each is called -> what builds it, given as the argument `name`."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def told(**arguments: Any) -> None:
            who, build = arguments[name]
            try:
                test(**{**arguments, name: build()})
            except Exception as error:  # noqa: BLE001  whatever it is, it is the variant's, and this is where it is told
                raise pytest.fail.Exception(f"{who}: {what_was_found(error)}\n{law_of(test)}", pytrace=False) from None

        ids = [re.sub("[^a-z0-9_-]+", "-", who.lower()).strip("-") for who in members]
        return pytest.mark.parametrize(name, members.items(), ids=ids)(told)

    return decorate


def law_of(test: Callable[..., None]) -> str:
    text = f"law: {test.__name__.removeprefix('test_').replace('_', ' ')}"
    return f"{text}\n     {test.__doc__.splitlines()[0]}" if test.__doc__ else text


def words(error: Exception) -> str:
    """What an error says, in one line; of pydantic's each knob and what is wrong with it."""
    if isinstance(error, ValidationError):
        faults = [(".".join(map(str, fault["loc"])), fault["msg"], fault["input"]) for fault in error.errors()]
        return "; ".join(f"`{where}`: {message}, not {given!r}" for where, message, given in faults)
    return " ".join(str(error).partition("\nassert ")[0].split())  # pytest adds what was compared


def what_was_found(error: Exception) -> str:
    """The sentence of an assertion; of any other error its kind, its words, and the line of minbert_core where it arose."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(METHODS.parent)]
    where = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno}: `{ours[-1].line}`)" if ours else ""
    told = words(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {words(error)}"
    return (told if len(told) < 500 else f"{told[:500]} …") + where


def refusal(call: Callable[[], Any], error: type[Exception]) -> str:
    """The words with which `call` is refused by an `error`; empty where it is not."""
    try:
        call()
    except error as refused:
        return words(refused) or error.__name__
    return ""


def test_every_law_says_what_it_found() -> None:
    nodes = ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    bare = [node.lineno for node in nodes if isinstance(node, ast.Assert) and node.msg is None]
    assert not bare, f"assert without words in lines {bare}"


# --------------------------------------------------------------------------------------------------------- all variants


@over("cls", {f"{name} '{kind_of(cls)}'": lambda cls=cls: cls for name, cls in WRITTEN.items()})
def test_every_variant_that_is_written_is_in_a_family(cls: type[Variant]) -> None:
    assert cls in FAMILY_OF, "it is in no union: no config can name it; add it to its family's union, at the end of the file"


@law()
def test_a_variant_has_what_its_family_has(variant: Any) -> None:
    """What all the others have by name and by number of arguments: who asks the family for it must not meet a gap."""
    cls = type(variant)
    others = [other for other in variants(FAMILIES[FAMILY_OF[cls]]) if other is not cls]
    common = set.intersection(*({name for name in vars(other) if is_asked_for(name)} for other in others)) if others else set()
    missing = ", ".join(f"`{name}`" for name in sorted(common) if not hasattr(variant, name))
    assert not missing, f"it lacks {missing}; every other {word(FAMILY_OF[cls])} says that of itself"
    for name in sorted(common):
        theirs, own = getattr(others[0], name), getattr(cls, name, None)
        if inspect.isfunction(theirs):
            expected, found = (list(inspect.signature(function).parameters) for function in (theirs, own))
            takes = f"`{name}` takes ({', '.join(found)}); that of the others ({', '.join(expected)})"
            assert len(found) == len(expected), takes


def is_asked_for(name: str) -> bool:
    return name == "__call__" or not name.startswith(("_", "model_"))


@law()
def test_the_bare_name_means_the_defaults(variant: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(FAMILIES[FAMILY_OF[type(variant)]])
    if needed(type(variant)):
        found = refusal(lambda: adapter.validate_python(variant.kind), ValidationError)
        assert "Field required" in found, f"its bare name lacks {needed(type(variant))} and is not refused for it: {found!r}"
        return
    for written in (variant.kind, {"kind": variant.kind}):
        found = adapter.validate_python(written)
        assert found == type(variant)(), f"`{written}` in a config is read as {found!r}"


@law()
def test_a_kind_is_a_name_that_a_path_can_hold(variant: Any) -> None:
    assert re.fullmatch("[a-z0-9_-]+", variant.kind), f"a kind is made of [a-z0-9_-], not '{variant.kind}'"


@law()
def test_a_variant_is_frozen(variant: Any) -> None:
    assert variant.model_config["frozen"], "its knobs can be set"


@law()
def test_an_unknown_knob_is_refused(variant: Any) -> None:
    written = {"kind": variant.kind, **needed(type(variant)), "no_such_knob": 1}
    found = refusal(lambda: TypeAdapter(FAMILIES[FAMILY_OF[type(variant)]]).validate_python(written), ValidationError)
    assert "Extra inputs" in found, f"it takes a knob that it does not have; {found!r}"


@law()
def test_a_variant_says_what_it_is_and_where_it_comes_from(variant: Any) -> None:
    text = type(variant).__doc__ or ""
    assert text.strip(), "it has no docstring; one line says what it is and names the paper"
    assert text != Variant.__doc__, "it inherits its docstring"


@law()
def test_every_knob_has_a_description(variant: Any) -> None:
    for name, field in type(variant).model_fields.items():
        assert name == "kind" or field.description, f'`{name}` has no description: Field(…, description="what, and its unit")'


@law()
def test_every_default_is_in_its_own_range(variant: Any) -> None:
    found = refusal(lambda: type(variant).model_validate(variant.model_dump()), ValidationError)
    assert not found, f"it refuses its own defaults: {found}"


@law()
def test_a_variant_survives_being_written_and_read(variant: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(FAMILIES[FAMILY_OF[type(variant)]])
    for mode in ("python", "json"):
        written = variant.model_dump(mode=mode)
        found = adapter.validate_python(written)
        assert found == variant, f"{written} is read back as {found!r}"


@law()
def test_a_variant_has_a_schema_for_editors(variant: Any) -> None:
    schema = str(TypeAdapter(FAMILIES[FAMILY_OF[type(variant)]]).json_schema())
    assert type(variant).__name__ in schema, "it is not in its family's schema"


def test_every_family_is_found() -> None:
    known = {"Pooling", "PairEncoding", "Head", "Loss", "LossWeights", "TaskSchedule", "GradientMethod", "Smoothness"}
    missing = (known | {"Proximal", "Stage", "SharedLayer", "Adapter"}) - set(FAMILIES)
    assert not missing, f"no union of variants is found under the name {missing}"


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


def layer_of(variant: Any, dim: int) -> Callable[[Tensor], Tensor] | None:
    """What a pooling is handed: the pooler, or what it built, whose weights are no longer those it begins with."""
    if variant.uses_pooler:
        return pooler
    built: nn.Module | None = variant.build(dim)
    for i, parameter in enumerate(built.parameters() if built else ()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    return built


def pooled_by(variant: Any, hidden_ND: Tensor, starts_S1: Tensor = STARTS) -> Tensor:
    pooled: Tensor = variant.pool(hidden_ND.clone(), starts_S1, layer_of(variant, hidden_ND.shape[1]))
    expected = (len(starts_S1) - 1, hidden_ND.shape[1])
    assert isinstance(pooled, Tensor), f"`pool` gives a {type(pooled).__name__}, not a Tensor"
    assert pooled.shape == expected, f"`pool` gives shape {tuple(pooled.shape)}, not (S, D) = {expected}"
    return pooled


@law(Pooling)
def test_a_pooling_gives_one_vector_a_sequence(variant: Any) -> None:
    pooled_by(variant, torch.randn(8, 5))


@law(Pooling)
def test_a_pooled_vector_depends_on_its_own_sequence_alone(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5)
    together = pooled_by(variant, hidden_ND)
    for s, (start, end) in enumerate(SPANS):
        alone = pooled_by(variant, hidden_ND[start:end], torch.tensor([0, end - start]))
        assert torch.allclose(together[s], alone[0], atol=1e-6), f"sequence {s} has another vector alone than in a batch"


@law(Pooling)
def test_permuting_sequences_permutes_pooled_vectors(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5)
    permuted = torch.cat([hidden_ND[start:end] for start, end in (SPANS[2], SPANS[0], SPANS[1])])
    found, expected = pooled_by(variant, permuted, torch.tensor([0, 4, 7, 8])), pooled_by(variant, hidden_ND)[[2, 0, 1]]
    assert torch.allclose(found, expected, atol=1e-6), "its vectors do not follow their sequences"


@law(Pooling)
def test_a_pooling_says_whether_it_reads_first_tokens_alone(variant: Any) -> None:
    """Where it says so it is given nothing else; a pooling of all tokens would be one of [CLS], in silence."""
    hidden_ND = torch.randn(8, 5)
    other_ND = torch.randn(8, 5).index_copy(0, STARTS[:-1], hidden_ND[STARTS[:-1]])  # the same first tokens
    reads_more = not torch.equal(pooled_by(variant, hidden_ND), pooled_by(variant, other_ND))
    does = "reads more than" if reads_more else "reads only"
    assert variant.reads_only_first is not reads_more, (
        f"it {does} the first tokens, but reads_only_first is {variant.reads_only_first}"
    )


@law(Pooling)
def test_a_pooling_says_whether_it_uses_the_pooler(variant: Any) -> None:
    calls = []
    called = lambda first: calls.append(1) or first  # noqa: E731
    variant.pool(torch.randn(8, 5), STARTS, variant.build(5) or called)
    does = "calls" if calls else "does not call"
    assert bool(calls) is variant.uses_pooler, f"it {does} the pooler, but uses_pooler is {variant.uses_pooler}"


@law(Pooling)
def test_the_gradient_reaches_every_sequence(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5, requires_grad=True)
    pooled = pooled_by(variant, hidden_ND)
    assert pooled.requires_grad, "its vectors are cut off from the hidden states: no gradient comes through (a detach?)"
    (gradient_ND,) = torch.autograd.grad(pooled.sum(), [hidden_ND])
    for s, (start, end) in enumerate(SPANS):
        assert gradient_ND[start:end].abs().max() > 0, f"no gradient reaches sequence {s}, tokens {start} to {end}"


@law(Pooling)
def test_a_pooling_leaves_the_hidden_states_as_they_were(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5)
    before = hidden_ND.clone()
    variant.pool(hidden_ND, STARTS, layer_of(variant, 5))
    assert torch.equal(hidden_ND, before), "it writes into the hidden states"


@law(Pooling)
def test_a_pooling_works_where_its_hidden_states_are(variant: Any) -> None:
    """On the device `meta`, which like a GPU refuses what lies on the CPU."""
    layer = layer_of(variant, 5)
    if isinstance(layer, nn.Module):
        layer.to("meta")
    variant.pool(torch.randn(8, 5, device="meta"), STARTS.to("meta"), layer)


@law(Pooling)
def test_a_pooling_of_bfloat16_is_near_that_of_float32(variant: Any) -> None:
    hidden_ND, layer = torch.randn(8, 5), layer_of(variant, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = variant.pool(hidden_ND.bfloat16(), STARTS, layer).float()
    apart = (found - variant.pool(hidden_ND, STARTS, layer)).abs().max().item()
    assert apart < 0.1, f"under autocast, of hidden states in bfloat16, it is {apart:.2g} away"


@law(Pooling)
def test_what_a_pooling_learns_gets_a_gradient_once_it_has_moved(variant: Any) -> None:
    layer, hidden_ND = layer_of(variant, 5), torch.randn(8, 5)
    if isinstance(layer, nn.Module):
        (variant.pool(hidden_ND, STARTS, layer) * torch.randn(3, 5)).sum().backward()
        missed = [name for name, parameter in layer.named_parameters() if parameter.grad is None or not parameter.grad.any()]
        assert not missed, f"no gradient reaches its {', '.join(missed)}"


@law(PairEncoding)
def test_an_encoding_gives_a_row_an_example_as_wide_as_its_vectors(variant: Any) -> None:
    features, expected = variant.features(torch.randn(4 * variant.vectors, 5)), (4, 5 * variant.vectors)
    assert features.shape == expected, f"features of shape {tuple(features.shape)}, not (B, F) = {expected}"


def keep(values: Tensor, probability: float) -> Tensor:
    return values


@law(SharedLayer)
def test_a_shared_layer_serves_some_task_with_vectors_of_its_size(variant: Any) -> None:
    layer = variant.build(8)
    served = [is_pair for is_pair in (False, True) if variant.serves(is_pair)]
    assert bool(served) is (layer is not None), f"it builds {layer}, but serves {served or 'no task'}"
    if layer is not None:
        dropped: list[float] = []
        shape = layer(torch.randn(3, 8), lambda values, p: dropped.append(p) or values).shape
        assert shape == (3, variant.size), f"it gives shape {tuple(shape)}, not (S, size) = (3, {variant.size})"
        assert dropped == [variant.dropout], f"it drops with {dropped}, but its knob `dropout` says {variant.dropout}"


# ------------------------------------------------------------------------------------------------------------- adapters

SHAPE = EncoderShape(vocab_size=20, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


@law(Adapter)
def test_an_adapter_leaves_what_the_encoder_answers_as_it_was(variant: Any) -> None:
    encoder, hidden_ND, layout = new_encoder(SHAPE, 0, 0.1, 0.1), torch.randn(5, 12), Layout.of((2, 3), torch.device("cpu"))
    arguments = (Query.of_all(layout), lambda x: x, lambda x: x)
    expected = encoder.layers[1](hidden_ND, *arguments)
    variant.adapt(encoder, len)
    own = variant.build(SHAPE)
    beside = functools.partial(own, 1) if own else None
    found = encoder.layers[1](hidden_ND, *arguments, beside)
    assert torch.equal(found, expected), f"before any training its layer is {(found - expected).abs().max():.2g} away"


@law(Adapter)
def test_an_adapter_trains_parameters_of_the_encoder_once_each_in_groups_that_are_not_empty(variant: Any) -> None:
    encoder = new_encoder(SHAPE, 0, 0.1, 0.1)
    variant.adapt(encoder, len)
    groups = variant.groups(encoder)
    trained = [id(parameter) for group in groups.values() for parameter in group]
    empty = [name for name, group in groups.items() if not group]
    assert not empty, f"its groups {', '.join(empty)} are empty: a gradient method would see a Gramian of nothing"
    assert len(set(trained)) == len(trained), "its groups hold a parameter twice"
    assert set(trained) <= set(map(id, encoder.parameters())), "its groups hold what is not in the encoder"
    assert bool(set(groups) - {"pooler"}) is variant.shares, f"shares is {variant.shares}, but its groups are {list(groups)}"


@law(Adapter)
def test_an_adapter_adds_parameters_if_it_says_so(variant: Any) -> None:
    encoder = new_encoder(SHAPE, 0, 0.1, 0.1)
    before = sum(parameter.numel() for parameter in encoder.parameters())
    variant.adapt(encoder, len)
    own = variant.build(SHAPE)
    added = sum(p.numel() for module in (encoder, own) if module for p in module.parameters()) - before
    assert (added > 0) is variant.adds, f"adds is {variant.adds}, but it adds {added} parameters"


# ---------------------------------------------------------------------------------------------------------------- heads


def outputs_of(head: Any) -> tuple[int, ...]:
    return (1,) if head.single_output else (1, 5)


def built(variant: Any, features: int = 8, outputs: int = 1, start: float = 0.0) -> nn.Module:
    head: nn.Module = variant.build(features, outputs, start)
    assert isinstance(head, nn.Module), f"`build` gives a {type(head).__name__}, not an nn.Module"
    return head


def answered(head: nn.Module, features_BF: Tensor, outputs: int = 1) -> Tensor:
    logits: Tensor = head(features_BF.clone(), keep)
    assert isinstance(logits, Tensor), f"its `forward` gives a {type(logits).__name__}, not a Tensor"
    expected = (len(features_BF), outputs)
    assert logits.shape == expected, f"logits of shape {tuple(logits.shape)}, not (B, K) = {expected}"
    assert logits.dtype == torch.float32, f"logits in {logits.dtype}, of features in float32"
    assert logits.requires_grad, "its logits are cut off from its parameters: no gradient at all (a detach, a no_grad?)"
    return logits


@law(Head)
def test_a_head_gives_a_row_of_logits_an_example_in_float32(variant: Any) -> None:
    for outputs in outputs_of(variant):
        answered(built(variant, 8, outputs), torch.randn(3, 8), outputs)


@law(Head)
def test_a_head_that_needs_no_pair_takes_any_number_of_features(variant: Any) -> None:
    if not variant.needs_pair_vectors:  # which could rely on an even one
        answered(built(variant, 7), torch.randn(3, 7))


@law(Head)
def test_the_gradient_reaches_every_parameter_and_the_features(variant: Any) -> None:
    for outputs in outputs_of(variant):
        head, features = built(variant, 8, outputs), torch.randn(16, 8, requires_grad=True)
        logits = answered(head, features, outputs)
        (logits * torch.randn(16, outputs)).sum().backward()
        for name, tensor in [("the features", features), *head.named_parameters()]:
            reached = tensor.grad is not None and tensor.grad.abs().max() > 0
            assert reached, f"the gradient does not reach {name} (K = {outputs})"


@law(Head)
def test_a_head_is_deterministic_in_evaluation(variant: Any) -> None:
    head, features, state = built(variant), torch.randn(3, 8), torch.get_rng_state()
    same = torch.equal(answered(head, features), answered(head, features))
    hint = "dropout is the function handed to `forward`, not nn.Dropout"
    assert torch.equal(torch.get_rng_state(), state), f"it draws random numbers of its own, in evaluation too; {hint}"
    assert same, "two evaluations of the same features differ"


@law(Head)
def test_a_head_leaves_the_features_as_they_were(variant: Any) -> None:
    features = torch.randn(3, 8)
    before = features.clone()
    built(variant)(features, keep)
    assert torch.equal(features, before), "it writes into the features, which losses and penalties read, too"


@law(Head)
def test_a_head_treats_each_example_by_itself(variant: Any) -> None:
    head, features = built(variant), torch.randn(5, 8)
    order, whole = torch.tensor([3, 1, 4, 0, 2]), answered(head, features)
    assert torch.allclose(answered(head, features[order]), whole[order], atol=1e-6), (
        "permuting examples does not permute logits"
    )
    assert torch.allclose(answered(head, features[:2]), whole[:2], atol=1e-6), "an example's logits depend on its batch"


@law(Head)
def test_a_head_with_a_dropout_knob_drops_through_the_given_function(variant: Any) -> None:
    seen: set[float] = set()
    built(variant)(torch.randn(3, 8), lambda values, p: seen.add(p) or values)
    expected = {variant.dropout} if hasattr(variant, "dropout") else set()
    found = f"drops with {sorted(seen)}" if seen else "never calls the function that drops"
    assert seen == expected, f"it {found}, but its knob `dropout` says {sorted(expected) or 'nothing: it has none'}"


@law(Head)
def test_a_head_is_saved_whole(variant: Any) -> None:
    first, second = built(variant), built(variant)
    second.load_state_dict(first.state_dict())
    features = torch.randn(3, 8)
    same = torch.equal(answered(first, features), answered(second, features))
    assert same, "its state dict does not hold all it has learned (a layer in a plain list, a Tensor that is no Parameter?)"


@law(Head)
def test_the_heads_of_two_tasks_share_nothing(variant: Any) -> None:
    first, second = built(variant).state_dict(keep_vars=True), built(variant).state_dict(keep_vars=True)
    shared = [name for name in first if first[name].data_ptr() == second[name].data_ptr()]
    assert not shared, f"two heads that it builds share {', '.join(shared)}"


@law(Head)
def test_a_head_is_drawn_from_the_current_generator_alone(variant: Any) -> None:
    heads = []
    for _ in range(2):
        torch.manual_seed(1)
        heads.append(built(variant).state_dict())
    differ = [name for name, values in heads[0].items() if not torch.equal(values, heads[1][name])]
    assert not differ, f"{', '.join(differ)} differ between two heads of one seed: a trial could not be repeated"


@law(Head)
def test_a_head_begins_at_the_logit_it_is_told_unless_it_reads_the_cosine_only(variant: Any) -> None:
    if not variant.reads_cosine_only:
        mean = answered(built(variant, 8, 1, 2.5), torch.randn(256, 8)).mean().item()
        assert abs(mean - 2.5) < 0.5, f"built with start 2.5 its logits are {mean:.2f} in the mean; make it its last bias"


@law(Head)
def test_a_head_works_where_its_features_are(variant: Any) -> None:
    """On the device `meta`, which like a GPU refuses what lies on the CPU."""
    built(variant).to("meta")(torch.randn(3, 8, device="meta"), keep)


@law(Head)
def test_a_head_can_learn(variant: Any) -> None:
    """Two examples, their features their own: some steps must fit their labels."""
    features = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    labels, head = torch.tensor([[4.0], [1.0]]), built(variant)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (answered(head, features) - labels).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, f"400 steps do not fit two examples: loss {loss.item():.3f}"


@law(Head)
def test_a_head_that_reads_the_cosine_only_grows_with_it_untrained(variant: Any) -> None:
    """v turns away from a fixed u by a half turn in eight steps; then once more, seven times as long, and from another u."""
    angles, head = torch.linspace(0, torch.pi, 9), built(variant, 4)

    def pairs(u_at: float, length: float) -> Tensor:
        u, v = (torch.stack([at.cos(), at.sin()], dim=1) for at in (torch.full((9,), u_at), u_at + angles))
        return torch.cat([u, length * v], dim=1)

    near, far, turned = (answered(head, pairs(*where)) for where in ((0, 1), (0, 7), (2, 1)))
    follows = torch.allclose(near, far, atol=1e-5) and torch.allclose(near, turned, atol=1e-5)
    cosine_only = bool((near.diff(dim=0) < 0).all()) and follows
    does = "grows with cos(u, v) and depends on nothing else" if cosine_only else "is no growing function of cos(u, v) alone"
    assert cosine_only is variant.reads_cosine_only, f"reads_cosine_only is {variant.reads_cosine_only}, but its logit {does}"


@law(Head)
def test_a_head_of_a_single_output_refuses_several(variant: Any) -> None:
    if variant.single_output:
        found = refusal(lambda: variant.build(8, 5), AssertionError)
        assert "one output, not 5" in found, (
            "single_output is True, but `build` gives 5; assert that there is 'one output, not 5'"
        )


# --------------------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class Case:
    """A kind of task, and labels of five examples of it; `outputs` is what its metric reads."""

    kind: TaskKind
    labels: Tensor
    label_range: tuple[float, float]
    outputs: int

    def __str__(self) -> str:
        return f"a {self.kind} task with labels in {list(self.label_range)}"


CASES = (
    Case("classification", torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), (0, 4), 5),
    Case("classification", torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0]), (0, 2), 3),
    Case("binary", torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), (0, 1), 1),
    Case("regression", torch.tensor([0.0, 1.25, 2.4, 3.8, 5.0]), (0, 5), 1),
    Case("regression", torch.tensor([-30.0, -25.0, -20.4, -14.8, -10.0]), (-30, -10), 1),
)


def cases_of(variant: Any) -> list[tuple[Case, Tensor]]:
    """Of every kind of task that a loss fits: the case, and what the loss reads where that is as good as can be."""
    return [(case, best_of(variant, case)) for case in CASES if case.kind in variant.fits]


def best_of(variant: Any, case: Case) -> Tensor:
    """What a loss reads, (B, K) or (B, F), as good as can be for the labels of `case`."""
    labels, (low, high) = case.labels, case.label_range
    outputs = variant.outputs(case.outputs)
    assert isinstance(outputs, int), f"`outputs` gives {outputs!r}, which is no number of logits"
    assert outputs > 0, f"`outputs` gives {outputs!r}, which is no number of logits"
    if variant.reads_features:  # u and v alike in the upper half of the labels, opposite in the lower
        u = torch.tensor([[1.0, 2.0, -1.0, 0.5]]).expand(5, 4)
        return torch.cat([u, torch.where(labels >= (low + high) / 2, 1.0, -1.0)[:, None] * u], dim=1)
    if outputs > 1:
        values = torch.linspace(low, high, outputs)
        return 20 * torch.eye(outputs)[(labels[:, None] - values).abs().argmin(dim=1)]
    return (40 * labels - 20 if case.kind == "binary" else labels)[:, None]


def loss_of(variant: Any, values: Tensor, case: Case, rows: Any = slice(None)) -> Tensor:
    """The loss of some rows, with their labels."""
    loss: Tensor = variant(values, case.labels[rows].clone().to(values.device), case.label_range)
    assert isinstance(loss, Tensor), f"it gives a {type(loss).__name__}, not a Tensor"
    assert loss.shape == (), f"it gives shape {tuple(loss.shape)} for {case}, not a scalar; a batch's loss is one number"
    assert loss.dtype == torch.float32, f"it is in {loss.dtype}, not float32, for {case}"
    return loss


@law(Loss)
def test_a_loss_fits_some_kind_of_task(variant: Any) -> None:
    known = typing.get_args(TaskKind)
    assert variant.fits, f"`fits` is empty; known: {known}"
    assert set(variant.fits) <= set(known), f"`fits` names unknown kinds in {variant.fits}; known: {known}"


@law(Loss)
def test_a_loss_is_lower_where_the_answers_are_right_than_where_they_are_wrong(variant: Any) -> None:
    for case, values in cases_of(variant):
        best, worst = loss_of(variant, values, case), loss_of(variant, values.flip(0).roll(1, 0), case)
        found = f"it is {best.item():.4g} where all answers are right and {worst.item():.4g} where they are wrong"
        assert worst > best + 0.01, f"{found}, for {case}; does it ignore the labels, or their range?"


@law(Loss)
def test_a_loss_and_its_gradient_are_finite(variant: Any) -> None:
    for case, good in cases_of(variant):
        cases = {"good": good, "bad": -10 * good, "equal": torch.zeros_like(good), "huge": 1e4 * good}
        for (what, whole), rows in itertools.product(cases.items(), (slice(None), slice(0, 1))):
            values = whole[rows].clone().requires_grad_()
            loss, batch = loss_of(variant, values, case, rows), f"{what} values, a batch of {len(values)} of {case}"
            assert loss.isfinite(), f"it is {loss.item()} for {batch}"
            (gradient,) = torch.autograd.grad(loss, [values])
            assert gradient.isfinite().all(), f"its gradient is not finite for {batch}"


@law(Loss)
def test_the_gradient_of_a_loss_reaches_what_it_reads(variant: Any) -> None:
    for case, good in cases_of(variant):
        values = (good.flip(0).roll(1, 0) / 10 + torch.randn_like(good)).requires_grad_()
        loss = loss_of(variant, values, case)
        reached = loss.requires_grad and torch.autograd.grad(loss, [values])[0].abs().max() > 0
        assert reached, f"no gradient reaches what it reads (a detach, an argmax?), for {case}"


@law(Loss)
def test_a_loss_does_not_depend_on_the_order_of_examples(variant: Any) -> None:
    for case, values in cases_of(variant):
        values, order = values + torch.randn_like(values), torch.tensor([2, 0, 4, 1, 3])
        found, expected = loss_of(variant, values[order], case, order), loss_of(variant, values, case)
        assert torch.allclose(found, expected, atol=1e-5), f"permuting examples takes it from {expected} to {found}, for {case}"


@law(Loss)
def test_a_loss_is_a_mean_over_its_examples_where_it_says_so_and_only_there(variant: Any) -> None:
    """Of 5 examples as 2 and 3: what a batch that goes through in parts relies on."""
    for case, values in cases_of(variant):
        values, order = values + torch.randn_like(values), torch.tensor([2, 0, 4, 1, 3])  # no part of equal labels
        parts = [len(rows) / 5 * loss_of(variant, values[rows], case, rows) for rows in (order[:2], order[2:])]
        is_mean = torch.allclose(parts[0] + parts[1], loss_of(variant, values, case), atol=1e-5)
        does = "is" if is_mean else "is not"
        assert is_mean is variant.is_mean, f"is_mean is {variant.is_mean}, but it {does} the mean over its examples, {case}"


@law(Loss)
def test_a_loss_and_the_divergence_do_not_depend_on_the_scale_of_the_labels(variant: Any) -> None:
    """Otherwise the task whose labels are numbers of thousands would drown the others; another scale needs a knob."""
    for case, values in cases_of(variant):
        if case.kind != "regression":
            continue
        low, high = case.label_range
        larger = Case(case.kind, 10 * case.labels, (10 * low, 10 * high), case.outputs)
        answers = variant.outputs(case.outputs) == 1 and not variant.reads_features  # else what it reads has no label units
        wrong = values + torch.randn_like(values)
        found = [loss_of(variant, wrong, case), loss_of(variant, 10 * wrong if answers else wrong, larger)]
        assert torch.allclose(*found, rtol=1e-3, atol=1e-4), f"labels ten times as large take it from {found[0]} to {found[1]}"
        units = [variant.error_unit(one.label_range) for one in (case, larger)]
        assert units[1] == pytest.approx(10 * units[0]), f"ten times as large a range takes error_unit from {units}"


@law(Loss)
def test_a_loss_leaves_what_it_reads_as_it_was(variant: Any) -> None:
    for case, values in cases_of(variant):
        read, labels = values.clone(), case.labels.clone()
        variant(read, labels, case.label_range)
        assert torch.equal(read, values), f"it writes into the values it reads, for {case}"
        assert torch.equal(labels, case.labels), f"it writes into the labels, for {case}"


@law(Loss)
def test_a_loss_is_in_float32_whatever_it_reads(variant: Any) -> None:
    for case, values in cases_of(variant):
        loss_of(variant, values.bfloat16(), case)


@law(Loss)
def test_a_loss_works_where_its_values_are(variant: Any) -> None:
    """On the device `meta`, which like a GPU refuses what lies on the CPU; its readout, too."""
    for case, values in cases_of(variant):
        loss_of(variant, values.to("meta"), case)
        variant.readout(torch.randn(5, variant.outputs(case.outputs), device="meta"), case.label_range)


@law(Loss)
def test_a_loss_that_reads_features_says_whether_it_needs_a_pair(variant: Any) -> None:
    assert variant.reads_features or not variant.needs_pair_vectors, "needs_pair_vectors, but it reads logits: a pair of what?"


def logits_of(variant: Any, case: Case) -> Tensor:
    """The head's logits, (B, K), where what the loss reads is as good as can be; of an untrained head if it reads features."""
    values = best_of(variant, case)
    if not variant.reads_features:
        return values
    answering = next(head for cls in variants(Head) if (head := plain(cls)).reads_cosine_only)
    logits: Tensor = answering.build(values.shape[1], variant.outputs(case.outputs))(values, keep).detach()
    return logits


@law(Loss)
def test_a_readout_is_what_the_metric_of_the_task_reads(variant: Any) -> None:
    """At the optimum of the loss the metric is at, or (with labels made into classes) near, its best."""
    for case, _ in cases_of(variant):
        readout, labels = variant.readout(logits_of(variant, case), case.label_range), case.labels
        shape = (len(labels), case.outputs)
        assert readout.shape == shape, f"its readout has shape {tuple(readout.shape)}, not {shape}, for {case}"
        if case.kind == "regression":
            r = torch.corrcoef(torch.stack([readout[:, 0], labels]))[0, 1].item()
            assert r > 0.85, f"where it is lowest its readout correlates with the labels by {r:.2f} only, for {case}"
        else:
            answers = readout.argmax(1) if case.kind == "classification" else readout[:, 0] > 0
            assert answers.tolist() == labels.tolist(), (
                f"where it is lowest its readout answers {answers.tolist()}, not {labels.tolist()}, for {case}"
            )


@law(Loss)
def test_a_readout_is_of_each_example_by_itself_and_passes_a_gradient(variant: Any) -> None:
    for case, _ in cases_of(variant):
        logits, order = torch.randn(5, variant.outputs(case.outputs), requires_grad=True), torch.tensor([2, 0, 4, 1, 3])
        readout = variant.readout(logits, case.label_range)
        same = torch.allclose(variant.readout(logits[order], case.label_range), readout[order])
        assert same, f"permuting examples does not permute its readout, for {case}"
        assert readout.requires_grad, f"no gradient comes through its readout, which penalties read (an argmax?), for {case}"
        (gradient,) = torch.autograd.grad(divergence(case.kind)(readout, torch.zeros_like(readout)), [logits])
        reached = gradient.isfinite().all() and (gradient.abs().amax(dim=1) > 0).all()
        assert reached, f"the gradient through its readout is 0 or not finite, for {case}"


# --------------------------------------------------------------------------------------------------------- loss weights


KINDS: dict[str, TaskKind] = {"sst": "classification", "para": "binary", "a-task-of-my-own": "regression"}
FALLING = [{task: rate**step for task, rate in zip(KINDS, (0.9, 0.5, 0.99), strict=True)} for step in range(20)]  # losses


def followed(variant: Any, losses: list[dict[str, float]], state: dict[str, Tensor], first: int = 0) -> dict[str, float]:
    """The weights after steps of these losses, each of which the update took to nine tenths; first: the first one's number."""
    for number, of_step in enumerate(losses, start=first):
        after = {task: 0.9 * loss for task, loss in of_step.items()}
        variant.follow(KINDS, of_step, after if variant.looks_again else of_step, (number + 0.5) / len(FALLING), state)
    for key, value in state.items():
        assert isinstance(value, Tensor), f"state['{key}'] is a {type(value).__name__}; a checkpoint holds Tensors"
    weights: dict[str, float] = variant.of(KINDS, FALLING[-1] if variant.reads_losses else {}, state)
    return weights


@law(LossWeights)
def test_a_loss_weight_is_a_positive_number_for_every_task(variant: Any) -> None:
    for losses in ([], FALLING, [dict.fromkeys(KINDS, 0.0)] * 20):
        weights, again = followed(variant, losses, {}), followed(variant, losses, {})
        assert list(weights) == list(KINDS), f"it weighs {list(weights)}, where the tasks are {list(KINDS)}"
        for task, weight in weights.items():
            assert isinstance(weight, float), f"the weight of {task} is {weight!r}, not a float"
            assert 0 < weight < math.inf, f"the weight of {task} is {weight} after {len(losses)} steps; it is positive, finite"
        assert weights == again, "two calls weigh tasks differently; what it remembers is in `state`"


@law(LossWeights)
def test_loss_weights_say_what_they_read(variant: Any) -> None:
    """Losses wait for the device: who does not read them must say so, and who says so must not."""
    state: dict[str, Tensor] = {}
    other = [{**losses, "sst": 0.3 + 0.5**step} for step, losses in enumerate(FALLING)]
    moves = followed(variant, FALLING, state) != followed(variant, other, {})
    assert moves is variant.follows_losses, f"follows_losses is {variant.follows_losses}, but losses move its weights: {moves}"
    assert bool(state) is variant.follows_losses, f"follows_losses is {variant.follows_losses}, but its state is {state}"
    assert variant.follows_losses or not variant.looks_again, "it looks again at losses that it does not follow"
    reads = variant.reads_losses and variant.of(KINDS, FALLING[1], {}) != variant.of(KINDS, FALLING[9], {})
    assert reads is variant.reads_losses, "it says reads_losses, but its weights are the same for other losses"


@law(LossWeights)
def test_loss_weights_do_not_depend_on_the_order_of_tasks(variant: Any) -> None:
    turned = [dict(reversed(losses.items())) for losses in FALLING]
    expected, found = followed(variant, FALLING, {}), followed(variant, turned, {})
    assert all(math.isclose(found[task], expected[task]) for task in KINDS), f"in another order {found}, not {expected}"


@law(LossWeights)
def test_the_state_of_loss_weights_is_all_that_is_remembered(variant: Any) -> None:
    state: dict[str, Tensor] = {}
    followed(variant, FALLING[:13], state)
    copy = {key: value.clone() for key, value in state.items()}
    found, expected = followed(variant, FALLING[13:], copy, 13), followed(variant, FALLING[13:], state, 13)
    assert found == expected, "from a copy of its state it goes on otherwise: it remembers something beside it"


# ------------------------------------------------------------------------------------------------------- task schedules

SIZES = {"sst": 50, "para": 400, "sts": 30}
BATCHES = {"sst": 8, "para": 16, "sts": 4, "mine": 16}


def tasks_at(variant: Any, step: int, progress: float, sizes: dict[str, int] = SIZES, seed: int = 0) -> tuple[str, ...]:
    tasks: tuple[str, ...] = variant.tasks_of_step(
        StepAt(step, progress, dict(sizes), {task: BATCHES[task] for task in sizes}, seed)
    )
    assert isinstance(tasks, tuple), f"step {step} takes {tasks!r}, not a tuple of task names"
    return tasks


@law(TaskSchedule)
def test_a_schedule_is_a_function_of_its_arguments(variant: Any) -> None:
    forwards = [tasks_at(variant, step, 0.3, seed=7) for step in range(20)]
    backwards = [tasks_at(variant, step, 0.3, seed=7) for step in reversed(range(20))][::-1]
    differ = [step for step in range(20) if forwards[step] != backwards[step]]
    hint = "draw from np.random.default_rng((seed, step)), remember nothing"
    assert not differ, f"asked again, with other steps in between, it takes other tasks at steps {differ}; {hint}"


@law(TaskSchedule)
def test_a_step_takes_known_tasks_once_each_and_as_many_as_announced(variant: Any) -> None:
    announced = variant.tasks_per_step(len(SIZES))
    for step in range(51):
        tasks = tasks_at(variant, step, step / 50)
        assert set(tasks) <= set(SIZES), f"step {step} takes {tasks}; known: {tuple(SIZES)}"
        assert len(tasks) == len(set(tasks)), f"step {step} takes a task twice: {tasks}"
        assert 1 <= len(tasks) <= announced, f"step {step} takes {len(tasks)} tasks; tasks_per_step announces {announced}"


@law(TaskSchedule)
def test_every_task_is_reached(variant: Any) -> None:
    seen = {task for step in range(300) for task in tasks_at(variant, step, step / 299)}
    starved = ", ".join(sorted(set(SIZES) - seen))
    assert not starved, f"it never takes {starved} in 300 steps over {SIZES} rows"


@law(TaskSchedule)
def test_a_schedule_of_one_task_takes_it_and_its_epoch_is_one_pass(variant: Any) -> None:
    tasks = tasks_at(variant, 3, 0.5, {"mine": 64})
    assert tasks == ("mine",), f"of a task 'mine' alone it takes {tasks}"
    found = variant.epoch_examples({"mine": 64}, {"mine": 16})
    assert found == 64, f"an epoch of one task of 64 examples draws {found}"


@law(TaskSchedule)
def test_the_announced_shares_of_steps_are_those_of_a_stage(variant: Any) -> None:
    """Also under unequal batches, and where they change in the course of the stage"""
    batches, sizes, examples = {"sst": 8, "para": 16, "sts": 4}, {"sst": 500, "para": 900, "sts": 300}, 40_000
    drawn = step = 0
    counts: Counter[tuple[str, ...]] = Counter()
    while drawn < examples:
        tasks = variant.tasks_of_step(StepAt(step, drawn / examples, sizes, batches, 3))
        counts[tasks] += 1
        drawn, step = drawn + sum(batches[task] for task in tasks), step + 1
    announced = variant.step_shares(sizes, batches)
    found = {tasks: counts[tasks] / step for tasks in {*counts, *announced}}
    hint = "step_shares: the share of a stage's steps that take each tuple of tasks"
    assert found == {tasks: pytest.approx(announced.get(tasks, 0), abs=0.02) for tasks in found}, hint


@law(TaskSchedule)
def test_a_schedule_without_rounds_shows_every_task_in_any_part_of_a_stage(variant: Any) -> None:
    for start in (0, 100, 200):
        seen = {task for step in range(start, start + 100) for task in tasks_at(variant, step, step / 299)}
        assert variant.rounds or seen == set(SIZES), f"steps {start} to {start + 99} take {seen} only; `rounds` says 0"


@law(TaskSchedule)
def test_an_epoch_is_a_whole_number_of_examples(variant: Any) -> None:
    found = variant.epoch_examples(dict(SIZES), {task: BATCHES[task] for task in SIZES})
    assert isinstance(found, int), f"an epoch draws {found!r} examples, a {type(found).__name__}, not an int"
    assert found > 0, f"an epoch draws {found} examples"


# ------------------------------------------------------------------------------------------------------------ gradients

TASKS = ("sst", "para", "sts")


def gramians(num_groups: int = 4, num_tasks: int = 3, seed: int = 0) -> Tensor:
    """Of gradients in few dimensions, some of which conflict; float64, shape (G, T, T)."""
    gradients = torch.randn(num_groups, num_tasks, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gradients @ gradients.mT


def orders_of(num_tasks: int, seed: int = 0) -> Tensor:
    return random_orders(num_tasks, np.random.default_rng(seed))


def weights_of(variant: Any, gram: Tensor, state: dict[str, Tensor], seed: int = 0, tasks: tuple[str, ...] = TASKS) -> Tensor:
    return weighed(variant, gram, tasks, orders_of(len(tasks), seed), state)


def weighed(variant: Any, gram: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
    weights: Tensor = variant.weights(gram, tasks, orders, state)
    assert isinstance(weights, Tensor), f"`weights` gives a {type(weights).__name__}, not a Tensor"
    expected = tuple(gram.shape[:2])
    assert weights.shape == expected, f"weights of shape {tuple(weights.shape)}, not (G, T) = {expected}"
    assert weights.dtype == gram.dtype, f"weights in {weights.dtype} for a Gramian in {gram.dtype}"
    for key, value in state.items():
        assert isinstance(value, Tensor), f"state['{key}'] is a {type(value).__name__}; a checkpoint holds Tensors"
    return weights


@law(GradientMethod)
def test_weights_have_a_row_a_group_in_the_precision_of_the_gramian(variant: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        weights_of(variant, gramians().to(dtype), {})


@law(GradientMethod)
def test_a_single_task_keeps_its_gradient(variant: Any) -> None:
    weights = weights_of(variant, gramians(num_tasks=1), {}, tasks=("sst",))
    assert torch.equal(weights, torch.ones_like(weights)), f"of one task it gives weights {weights.flatten().tolist()}, not 1"


@law(GradientMethod)
def test_tasks_that_agree_keep_their_direction(variant: Any) -> None:
    """Three equal gradients: whatever the weights, they sum to something positive."""
    total = weights_of(variant, torch.ones(4, 3, 3, dtype=torch.float64), {}).sum(dim=1)
    assert (total > 0).all(), f"three equal gradients are merged with weights that sum to {total.tolist()}: the step goes up"


@law(GradientMethod)
def test_permuting_tasks_permutes_weights(variant: Any) -> None:
    permutation = [2, 0, 1]
    place = {old: new for new, old in enumerate(permutation)}
    states: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for seed in range(4):  # over steps, so that state is permuted too
        gram, orders = gramians(seed=seed), orders_of(3, seed)
        moved_orders = torch.tensor([[place[j] for j in orders[old].tolist()] for old in permutation])
        expected = weighed(variant, gram, TASKS, orders, states[0])[:, permutation]
        moved_gram, moved_tasks = gram[:, permutation][:, :, permutation], tuple(TASKS[old] for old in permutation)
        found = weighed(variant, moved_gram, moved_tasks, moved_orders, states[1])
        assert torch.allclose(found, expected), (
            f"the tasks in another order get other weights: {found[0].tolist()}, not {expected[0].tolist()}"
        )


@law(GradientMethod)
def test_scaling_all_gradients_scales_the_result(variant: Any) -> None:
    expected = weights_of(variant, gramians(), {})
    for scale in (1e-12, 1e8):
        found = weights_of(variant, scale * gramians(), {})
        assert torch.allclose(found, expected), f"gradients {scale**0.5:g} times as long get other weights, {found[0].tolist()}"


@law(GradientMethod)
def test_zero_gradients_stay_finite_for_ever(variant: Any) -> None:
    state: dict[str, Tensor] = {}
    for groups, zero in itertools.product((slice(0, 2), slice(None)), ([0], [0, 1], [0, 1, 2], [])):
        gram = gramians()
        gram[groups, zero] = 0
        gram[groups, :, zero] = 0
        after = f"once tasks {zero} have had a gradient of zero" if zero else "after a step with a gradient of zero"
        weights = weights_of(variant, gram, state)
        assert weights.isfinite().all(), f"its weights are not finite {after} (0/0?)"
        for key, value in state.items():
            assert value.isfinite().all(), f"state['{key}'] is not finite {after}, and stays so (0/0?)"


@law(GradientMethod)
def test_a_gramian_is_left_as_it_was_and_its_weights_are_repeatable(variant: Any) -> None:
    gram = gramians()
    first = weights_of(variant, gram, {})
    assert torch.equal(gram, gramians()), "it writes into the Gramian"
    again = weights_of(variant, gram, {})
    assert torch.equal(first, again), "two calls differ; randomness comes in through `orders`, memory through `state`"


@law(GradientMethod)
def test_state_is_all_that_is_remembered(variant: Any) -> None:
    """A copy of the state goes on as the original does: that is what a checkpoint relies on."""
    state: dict[str, Tensor] = {}
    for seed in range(3):
        weights_of(variant, gramians(seed=seed), state, seed)
    copy = {key: value.clone() for key, value in state.items()}
    found, expected = weights_of(variant, gramians(seed=9), copy), weights_of(variant, gramians(seed=9), state)
    assert torch.equal(found, expected), "from a copy of its state it goes on otherwise: it remembers something beside it"


# ----------------------------------------------------------------------------------------------------------- smoothness

EXAMPLE_N = torch.tensor([0, 0, 1, 1, 1])


@law(Smoothness)
@pytest.mark.parametrize("kind", typing.get_args(TaskKind))
def test_a_penalty_is_a_positive_scalar_that_trains_and_costs_what_it_announces(variant: Any, kind: TaskKind) -> None:
    embeddings_ND, weight_DK = torch.randn(5, 4), torch.randn(4, 5 if kind == "classification" else 1, requires_grad=True)
    passes: list[int] = []

    def forward(noise_ND: Tensor, in_float32: bool = False) -> Tensor:
        assert noise_ND.shape == (5, 4), f"noise of shape {tuple(noise_ND.shape)}, not (N, D) = (5, 4)"
        passes.append(1)
        values_NK = ((embeddings_ND + noise_ND) @ weight_DK).tanh()
        return torch.zeros(2, values_NK.shape[1]).index_add(0, EXAMPLE_N, values_NK)

    views = [forward(0.1 * view * torch.ones(5, 4)) for view in range(variant.views)]  # as if masks had made them differ
    del passes[:1]
    state = torch.get_rng_state()
    penalty = variant.penalty(Clean(views, forward, divergence(kind), EXAMPLE_N, 2, 4, torch.Generator().manual_seed(0)))
    announced = variant.extra_passes
    assert len(passes) == announced, f"it takes {len(passes)} passes, but extra_passes announces {announced}, which is charged"
    assert torch.equal(torch.get_rng_state(), state), "it draws from torch's global generator, not from the one handed in"
    assert weight_DK.grad is None, "it leaves a gradient in a parameter; torch.autograd.grad(…, [noise]) does not"
    if penalty is None:
        assert variant.weight == 0, f"it has a weight of {variant.weight}, but no penalty"
        return
    assert isinstance(penalty, Tensor), f"its penalty is a {type(penalty).__name__}, not a Tensor"
    assert penalty.shape == (), f"its penalty has shape {tuple(penalty.shape)}; it must be a scalar"
    assert penalty.isfinite(), f"its penalty is {penalty.item()} for a {kind} task"
    assert penalty > 0, f"its penalty is {penalty.item()} for a {kind} task, though the logits move"
    assert penalty.requires_grad, "its penalty is cut off from the model: no gradient (a detach, a no_grad?)"
    penalty.backward()
    assert weight_DK.grad is not None, f"the gradient of its penalty does not reach the model ({kind})"
    assert weight_DK.grad.abs().max() > 0, f"the gradient of its penalty does not reach the model ({kind})"


@law(Smoothness)
def test_a_penalty_repeats_from_the_same_generator(variant: Any) -> None:
    weight_DK, found = torch.randn(4, 1), []

    def forward(noise_ND: Tensor, in_float32: bool = False) -> Tensor:
        return torch.zeros(2, 1).index_add(0, EXAMPLE_N, ((1 + noise_ND) @ weight_DK).tanh())

    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        views = [forward(0.1 * view * torch.ones(5, 4)) for view in range(variant.views)]
        found.append(variant.penalty(Clean(views, forward, divergence("regression"), EXAMPLE_N, 2, 4, generator)))
    same = found[0] is found[1] is None or torch.equal(*found)
    assert same, f"from one seed its penalty is {found[0]}, then {found[1]}: a trial could not be repeated"


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


@law(Proximal)
def test_a_teacher_begins_as_the_student_and_takes_no_gradient(variant: Any) -> None:
    model, x = moved(student(), 0), torch.randn(5, 3)
    state = torch.get_rng_state()
    teacher = variant.start(model)
    assert torch.equal(torch.get_rng_state(), state), "it draws from torch's global generator"
    assert variant.weight >= 0, f"its weight is {variant.weight}"
    if teacher is None:
        assert variant.weight == 0, f"it has a weight of {variant.weight}, but no teacher"
        return
    assert torch.equal(teacher.model(x), model(x)), "its teacher begins as something else than the student"
    assert not teacher.model(x).requires_grad, "a gradient reaches its teacher"


@law(Proximal)
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
        between = bool(((share > 0) & (share < 1)).all())
        assert between, f"its teacher is {share.flatten().tolist()} of the way to the student, which must lie in (0, 1)"
    assert torch.equal(model[1].weight, after), "it moves the student"
    assert torch.equal(teacher.model[0].weight, model[0].weight), "it moves what is frozen"


@law(Proximal)
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
    found = [name for name, value in teacher.state().items() if not torch.equal(value, again.state()[name])]
    assert not found, f"restored from its state it goes on otherwise in {', '.join(found)}"


# ------------------------------------------------------------------------------------------------------------ LR schedules

lr_schedules = over(
    "lr_factor", {f"LR schedule '{name}'": lambda factor=factor: factor for name, factor in LR_SCHEDULES.items()}
)


def test_every_lr_schedule_that_is_written_can_be_chosen() -> None:
    chosen = get_args(Optimizer.model_fields["lr_schedule"].annotation)
    assert set(chosen) == set(LR_SCHEDULES), "Optimizer.lr_schedule and LR_SCHEDULES name different LR schedules"


@lr_schedules
def test_an_lr_factor_lies_in_zero_and_one(lr_factor: Any) -> None:
    for progress, warmup in itertools.product((0.0, 1e-9, 0.05, 0.1, 0.5, 0.99, 1.0), (0.0, 0.1, 1.0)):
        found = lr_factor(progress, warmup)
        assert isinstance(found, float), f"it gives a {type(found).__name__} at progress {progress:g}, not a float"
        assert 0 <= found <= 1, f"the factor is {found:g} at progress {progress:g} with warm-up {warmup:g}; it lies in [0, 1]"


@lr_schedules
def test_an_lr_factor_rises_from_zero_to_one_over_the_warm_up(lr_factor: Any) -> None:
    found = [round(lr_factor(progress, 0.2), 9) for progress in (0.0, 0.1, 0.2)]
    assert found == [0, 0.5, 1], f"with warm-up 0.2 it is {found} at progress 0, 0.1 and 0.2, not [0, 0.5, 1]"


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


def planned(variant: Any) -> StagePlan:
    plan: StagePlan = variant.plan(TRIAL)
    assert isinstance(plan, StagePlan), f"`plan` gives a {type(plan).__name__}, not a StagePlan"
    return plan


@law(LabelledStage)
def test_a_stage_is_named_after_its_kind_in_a_recipe(variant: Any) -> None:
    name = planned(variant).name
    assert name.startswith(variant.kind), f"its plan is named '{name}', which does not begin with its kind"
    assert re.fullmatch("[a-zA-Z0-9_-]+", name), f"its plan is named '{name}', which is not made of [a-zA-Z0-9_-]"


@law(LabelledStage)
def test_a_stage_takes_tasks_of_the_trial_and_can_merge_them_where_it_merges(variant: Any) -> None:
    plan = planned(variant)
    assert plan.tasks, "it trains no task"
    assert set(plan.tasks) <= set(TASKS), f"it trains {plan.tasks} where the trial has {TASKS}"
    several = plan.task_schedule.tasks_per_step(len(plan.tasks)) > 1
    found = f"gradient '{plan.gradient.kind}' merges several tasks' gradients, but its task schedule gives one a step"
    assert several or not plan.gradient.needs_several_tasks, found


@law(LabelledStage)
def test_a_stage_that_trains_no_encoder_has_nothing_that_acts_on_it(variant: Any) -> None:
    plan = planned(variant)
    acting = {
        "gradient": plan.gradient.needs_several_tasks,
        "smoothness": bool(plan.smoothness.weight),
        "proximal": bool(plan.proximal.weight),
    }
    found = [name for name, acts in acting.items() if acts and not plan.trains_encoder]
    assert not found, f"it trains no encoder, yet keeps the trial's {', '.join(found)}, which would cost passes for nothing"


@law(LabelledStage)
def test_what_a_stage_overrides_takes_effect_and_the_rest_is_of_the_trial(variant: Any) -> None:
    others = {"optimizer": Optimizer(lr=0.5), "task_schedule": {"kind": "sequential"}, "gradient": {"kind": "gradvac"},
              "smoothness": {"kind": "smart", "radius": 0.9}, "proximal": {"kind": "bregman", "beta": 0.3}}  # fmt: skip
    plan = planned(variant)
    for knob, value in others.items():
        if knob in type(variant).model_fields:
            assert getattr(plan, knob) == getattr(TRIAL, knob), f"it changes the trial's {knob}, which nobody has overridden"
            own = type(variant).model_validate({**needed(type(variant)), knob: value})
            found = getattr(planned(own), knob)
            assert found == getattr(own, knob) != getattr(TRIAL, knob), f"its own {knob} has no effect: the plan has {found!r}"


# ------------------------------------------------------------------------------------------- stages on texts without labels

WORDS = Vocabulary(4, np.arange(5, 20), np.arange(20) < 5, np.arange(20) >= 15)  # five specials, ten words, five pieces
TOKENS = np.array([2, 7, 8, 3, 2, 9, 16, 10, 3])  # two rows between [CLS] 2 and [SEP] 3


def asked(variant: Any, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found: tuple[np.ndarray, np.ndarray, np.ndarray] = variant.ask(
        TOKENS, np.array([0, 4]), np.array([False, True]), WORDS, np.random.default_rng(seed)
    )
    return found


@law(Pretraining)
def test_a_question_repeats_from_its_generator_and_leaves_the_tokens_as_they_were(variant: Any) -> None:
    before = TOKENS.copy()
    for once, again in zip(asked(variant, 3), asked(variant, 3), strict=True):
        assert np.array_equal(once, again), f"{once} and {again} from one seed"
    assert np.array_equal(TOKENS, before), "it writes into the batch"


@law(Pretraining)
def test_what_is_asked_is_answered_by_a_class_of_its_head_which_learns_from_it(variant: Any) -> None:
    _, at_M, answers_M = asked(variant, 0)
    assert len(at_M) == len(answers_M) > 0, f"it reads {len(at_M)} tokens and knows {len(answers_M)} answers"
    shape = EncoderShape(20, 8, 1, 2, 16)
    head, encoder = variant.build(shape), new_encoder(shape, 0, 0.0, 0.0)
    assert set(variant.stored) == set(head.state_dict()), "not every tensor of its head has a name in a checkpoint"
    logits_MK = head(torch.randn(len(at_M), 8), encoder)
    assert 0 <= answers_M.min() <= answers_M.max() < logits_MK.shape[1], f"answers {answers_M} of {logits_MK.shape[1]} classes"
    torch.nn.functional.cross_entropy(logits_MK, torch.from_numpy(answers_M)).backward()
    dead = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert not dead, f"no gradient reaches {dead}"


@law(Pretraining)
def test_what_follows_a_row_is_a_row(variant: Any) -> None:
    for num_rows in (2, 7):
        rows_B = np.arange(num_rows).repeat(5)
        seconds_B = variant.follow(rows_B, num_rows, np.random.default_rng(0))
        assert seconds_B.shape == rows_B.shape, f"of {rows_B.shape} rows it names {seconds_B.shape} that follow"
        assert set(seconds_B.tolist()) <= set(range(num_rows)), f"it names {set(seconds_B)} of {num_rows} rows"
