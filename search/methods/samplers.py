"""The family of samplers, which choose the next point of the space: Optuna's own, and a grid.

`seed(sampler, seed)` is called before each trial, so that a point depends on this seed and the study's state, and not on what
the sampler drew before: a resumed search draws the same. Optuna can only seed a new sampler, and a new TPE would compare the
parameters of all trials again (15 ms at 350 trials, 2026-11), so the generator that it holds is seeded.
`build(points, num_baselines)`: `points()` lists every combination of the space's choices, for a sampler that takes them
all (`is_exhaustive`). The check of the space ensures that such a list exists. Baselines run first and do not use the sampler.
One that `learns` avoids what did not fit into memory, and branches that fail again and again (study/failures.py).
One that `counts_stopped` sees a stopped trial as a completed one with its last score (study/storage.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial
from pydantic import Field, PositiveInt

from minbert_core.settings.models import BARE_NAME, Variant

Point = Mapping[str, Any]  # parameter -> label; only the parameters that occur in this combination
Points = Callable[[], Sequence[Point]]
REPEATS = 2  # of a configuration that is repeated


class Tpe(Variant):
    """Tree-structured Parzen estimator, Bergstra et al. 2011, in Optuna's version (multivariate, constant liar).

    Without `group`, each parameter of a branch is modelled by itself: it showed no gain in `benchmarks/samplers.py` (2026-11).
    """

    kind: Literal["tpe"] = "tpe"
    startup: PositiveInt = Field(8, description="random trials before the model is used, not counting baselines")
    group: bool = Field(False, description="model the parameters of a branch together")
    is_exhaustive: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    counts_stopped: ClassVar[bool] = False  # it ranks stopped trials by their last rung and score itself

    def build(self, points: Points, num_baselines: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
            return optuna.samplers.TPESampler(n_startup_trials=num_baselines + self.startup, group=self.group)

    def seed(self, sampler: optuna.samplers.BaseSampler, seed: int) -> None:
        assert isinstance(sampler, optuna.samplers.TPESampler)
        sampler._rng.rng.seed(seed)
        sampler._random_sampler._rng.rng.seed(seed)


class Gp(Variant):
    """Expected improvement under a Gaussian process, Jones et al. 1998, in Optuna's version.

    Optuna's process knows completed trials only, so a stopped one counts as completed with its last score. It models the
    parameters that all trials have; those of branches are drawn at random. A suggestion takes a tenth of a second and more.
    """

    kind: Literal["gp"] = "gp"
    startup: PositiveInt = Field(8, description="random trials before the model is used, not counting baselines")
    is_exhaustive: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    counts_stopped: ClassVar[bool] = True

    def build(self, points: Points, num_baselines: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
            return optuna.samplers.GPSampler(n_startup_trials=num_baselines + self.startup, warn_independent_sampling=False)

    def seed(self, sampler: optuna.samplers.BaseSampler, seed: int) -> None:
        assert isinstance(sampler, optuna.samplers.GPSampler)
        sampler._rng.rng.seed(seed)
        assert isinstance(sampler._independent_sampler, optuna.samplers.RandomSampler)
        sampler._independent_sampler._rng.rng.seed(seed)
        # a fit starts from the last one, which a resumed search does not have
        sampler._gprs_cache_list = sampler._constraints_gprs_cache_list = None


class RepeatingSampler(optuna.samplers.RandomSampler):
    """Random points, of which every `every`-th is that of an earlier trial: two repeats of the first, two of the second …"""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.repeated: Point = {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.repeated = {}
        if self._is_repeat(trial.number):
            trials = study.get_trials(deepcopy=False)[: trial.number]
            drawn = [other for other in trials if not self._is_repeat(other.number) and "void" not in other.user_attrs]
            self.repeated = drawn[(trial.number // self.every) // REPEATS].params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self.repeated:
            return self.repeated[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _is_repeat(self, number: int) -> bool:
        return number % self.every == self.every - 1


class Random(Variant):
    """Random search, Bergstra & Bengio 2012: each trial is drawn from the domains, independently of the others.

    Repeats of a configuration have other seeds, so they show the noise between seeds, which `analysis/simulate.py` adds.
    """

    kind: Literal["random"] = "random"
    repeat_every: Annotated[int, Field(ge=2)] | None = Field(
        None, description="every so many trials, one repeats an earlier configuration with another seed, two each; null: none"
    )
    is_exhaustive: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    counts_stopped: ClassVar[bool] = False

    def build(self, points: Points, num_baselines: int) -> optuna.samplers.BaseSampler:
        return RepeatingSampler(self.repeat_every) if self.repeat_every else optuna.samplers.RandomSampler()

    def seed(self, sampler: optuna.samplers.BaseSampler, seed: int) -> None:
        assert isinstance(sampler, optuna.samplers.RandomSampler)
        sampler._rng.rng.seed(seed)


class GridSampler(optuna.samplers.BaseSampler):
    """A grid: each trial gets the first of `points` that no earlier trial has. Trials that never began (void) do not count.

    Optuna's GridSampler needs every parameter in every point; here a parameter occurs only in its branch. Its BruteForceSampler
    knows branches, but it does not keep the written order and counts void trials.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = points
        self.chosen: Point = {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        taken = [other.params for other in others if "void" not in other.user_attrs]
        left = [point for point in self.points if point not in taken]
        assert left, "a grid cannot have more trials than points"
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
    """Every combination of the choices, once, in the order in which they are written. The space has no ranges or baselines.

    `trials` defaults to the number of combinations. With `trial_scheduler: none` each runs to its end.
    """

    kind: Literal["grid"] = "grid"
    is_exhaustive: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    counts_stopped: ClassVar[bool] = False

    def build(self, points: Points, num_baselines: int) -> optuna.samplers.BaseSampler:
        return GridSampler(points())

    def seed(self, sampler: optuna.samplers.BaseSampler, seed: int) -> None:
        """Do nothing: a grid draws nothing."""


SamplerSetting = Annotated[Tpe | Gp | Random | Grid, Field(discriminator="kind"), BARE_NAME]
