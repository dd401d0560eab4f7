"""The family of samplers: where in the space the next trial is drawn from. Optuna's own, built with the search's seed; a grid.

`build(seed, points, num_baselines)`: points() lists every combination of the space's choices, for a sampler that takes them all
(`is_exhaustive`); the space sees to it that there is such a list. The baselines come first, and are no draws of the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from pydantic import Field, PositiveInt

from minbert_core.settings.models import BARE_NAME, Variant

Point = Mapping[str, Any]  # parameter -> label, of the parameters that this combination meets
Points = Callable[[], Sequence[Point]]


class Tpe(Variant):
    """Tree-structured Parzen estimator, Bergstra et al. 2011, as Optuna has it (multivariate, constant liar)."""

    kind: Literal["tpe"] = "tpe"
    startup: PositiveInt = Field(8, description="random trials before the model is trusted; baselines do not count")
    is_exhaustive: ClassVar[bool] = False

    def build(self, seed: int, points: Points, num_baselines: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(n_startup_trials=num_baselines + self.startup, seed=seed)


class Random(Variant):
    """Random search, Bergstra & Bengio 2012: each trial drawn from the domains, whatever came of the others."""

    kind: Literal["random"] = "random"
    is_exhaustive: ClassVar[bool] = False

    def build(self, seed: int, points: Points, num_baselines: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=seed)


class GridSampler(optuna.samplers.BaseSampler):
    """Gives each trial the first of `points` that no trial before it has; one that never began (void) does not count.

    Optuna's own of this name wants every parameter in every point; in ours a parameter belongs to the branch that it stands in.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = points
        self.chosen: Point = {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        taken = [other.params for other in others if "void" not in other.user_attrs]
        left = [point for point in self.points if point not in taken]
        assert left, "a grid is asked for as many trials as it has points"
        self.chosen = left[0]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.chosen[param_name]


class Grid(Variant):
    """Every combination of the choices, once, in the order in which they are written. The space has no range, no baselines.

    `trials` is then their number, where it does not say fewer. With `trial_scheduler: none` each runs to its end.
    """

    kind: Literal["grid"] = "grid"
    is_exhaustive: ClassVar[bool] = True

    def build(self, seed: int, points: Points, num_baselines: int) -> optuna.samplers.BaseSampler:
        return GridSampler(points())


SamplerSetting = Annotated[Tpe | Random | Grid, Field(discriminator="kind"), BARE_NAME]
