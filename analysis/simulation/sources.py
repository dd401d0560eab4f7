"""Where the trials of a simulated search come from: drawn from the recorded configurations, or suggested by its sampler.

The noise of a seed is a recorded residual with a random sign. Draws depend on the repetition and the trial's number only, so
that in one repetition all methods that draw at random get the same trials in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from analysis.simulation.points import Floats, Point
from analysis.simulation.recorded import Recording
from analysis.simulation.study import Curve
from analysis.simulation.surrogate import Drawn
from minbert_core.seeds import seed_of
from search.methods.samplers import SamplerSetting
from search.study.storage import as_the_sampler_sees, frozen_trials, no_forecasts
from search.study.trials import Status, TrialResult

STATES = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
EARLIER = 10**6  # the number of the first trial of an earlier search, for its draws: more than a search has trials
TRIAL = 1  # ends the seed of a trial's draws: numpy takes (5, 0) for 5, the seed of the drawn function


class FromTable:
    """Trials drawn from the recorded configurations, with replacement: as random search draws from the space.

    rungs: of the method, some of the recorded ones.
    """

    def __init__(self, recording: Recording, rungs: Sequence[int], repetition: int) -> None:
        self.recording, self.places, self.repetition = recording, recording.places(rungs), repetition

    def next(self, number: int) -> Curve:
        """Draw a configuration."""
        generator = np.random.default_rng((self.repetition, number, TRIAL))
        configurations = self.recording.configurations
        own = configurations[int(generator.integers(len(configurations)))]
        noise = noise_of_a_seed(self.recording, generator)
        stages = tuple(own.stages[place] for place in self.places)
        return curve_of(own.point, own.recipe, own.metrics_RM, noise, own.seconds_at(self.places), stages, self.places)

    def reported(self, number: int, rung: int, score: float) -> None:
        """Do nothing: the draws do not learn."""

    def waits(self, numbers: dict[int, TrialResult]) -> None:
        """Do nothing: the draws do not learn."""

    def use_forecasts(self, forecasts: Callable[[], Mapping[int, float]]) -> None:
        """Do nothing: the draws do not learn."""

    def ended(self, number: int, status: Status, score: float) -> None:
        """Do nothing: the draws do not learn."""


class Storage(InMemoryStorage):
    """Optuna's storage in memory, with a real study's view of trials that wait and of an earlier search's."""

    def __init__(self, counts_stopped: bool) -> None:
        super().__init__()
        self.waiting: Collection[int] = ()
        self.forecasts: Callable[[], Mapping[int, float]] = no_forecasts
        self.earlier: list[FrozenTrial] = []
        self.counts_stopped = counts_stopped

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        forecasts = self.forecasts()
        if not self.waiting and not self.counts_stopped and not forecasts and not self.earlier:
            return super().get_all_trials(study_id, deepcopy, states)
        recorded = self.earlier + super().get_all_trials(study_id, deepcopy)
        return as_the_sampler_sees(recorded, self.waiting, states, self.counts_stopped, forecasts)


class Suggested:
    """Trials that a sampler suggests, with the curves of a function that was drawn from the surrogate.

    num_known: trials of an earlier search that the sampler knows. They were drawn at random, and ran to the end.
    """

    def __init__(
        self, drawn: Drawn, rungs: Sequence[int], sampler: SamplerSetting, repetition: int, num_known: int = 0
    ) -> None:
        self.drawn, self.setting, self.repetition = drawn, sampler, repetition
        self.recording, self.rungs = drawn.surrogate.recording, rungs
        self.places = self.recording.places(rungs)
        self.storage = Storage(sampler.counts_stopped)
        self.storage.earlier = self._earlier(num_known)
        built = sampler.build(list, 0)
        self.study = optuna.create_study(storage=self.storage, sampler=built, direction="maximize", study_name="simulated")
        self.ids: list[int] = []

    def next(self, number: int) -> Curve:
        """Let the sampler suggest a point."""
        self.setting.seed(self.study.sampler, seed_of(self.repetition, "sampler", number) % 2**32)
        trial = self.study.ask()
        self.ids.append(trial._trial_id)
        return self._curve(number, self.recording.points.sample(lambda name, domain: domain.suggest(trial, name)))

    def _curve(self, number: int, point: Point) -> Curve:
        return fitted_curve(self.drawn, point, self.places, np.random.default_rng((self.repetition, number, TRIAL)))

    def _earlier(self, num_known: int) -> list[FrozenTrial]:
        points, generator = self.recording.points, np.random.default_rng((self.repetition, EARLIER))
        curves = [self._curve(EARLIER + i, points.random(generator)) for i in range(num_known)]
        known = [
            {
                "params": curve.point,
                "scores": dict(zip(self.rungs, curve.metrics_RM[:, 0].tolist(), strict=True)),
                "completed": True,
            }
            for curve in curves
        ]
        return frozen_trials(known, points.domains)

    def reported(self, number: int, rung: int, score: float) -> None:
        self.storage.set_trial_intermediate_value(self.ids[number], rung, score)

    def waits(self, numbers: dict[int, TrialResult]) -> None:
        self.storage.waiting = numbers.keys()

    def use_forecasts(self, forecasts: Callable[[], Mapping[int, float]]) -> None:
        self.storage.forecasts = forecasts

    def ended(self, number: int, status: Status, score: float) -> None:
        values = [score] if status == "completed" else None
        self.storage.set_trial_state_values(self.ids[number], STATES[status], values)


def fitted_curve(drawn: Drawn, point: Point, places: Sequence[int], generator: np.random.Generator) -> Curve:
    """Build what a trial at a point of a drawn function reports at some of the recorded rungs, with the noise of a seed."""
    metrics_RM, seconds_P, stages, recipe = drawn.curve(point, places)
    noise = noise_of_a_seed(drawn.surrogate.recording, generator)
    return curve_of(point, recipe, metrics_RM, noise, seconds_P, stages, places)


def curve_of(
    point: Point,
    recipe: str,
    metrics_RM: Floats,
    noise_RM: Floats | float,
    seconds_P: Floats,
    stages: tuple[int, ...],
    places: Sequence[int],
) -> Curve:
    """Build what a trial reports that is evaluated only at P of the recorded rungs. Metrics and noise are those of all."""
    true_P, noisy_PM = metrics_RM[list(places), 0], (metrics_RM + noise_RM)[list(places)]
    bests = [int(noisy_PM[: i + 1, 0].argmax()) for i in range(len(places))]
    kept = noisy_PM[bests, 0], true_P[bests], float(metrics_RM[:, 0].max())
    return Curve(point, recipe, noisy_PM, seconds_P, stages, *kept)


def noise_of_a_seed(recording: Recording, generator: np.random.Generator) -> Floats | float:
    """Draw the noise of a seed, shape (R, M); 0 if no configuration was repeated."""
    residuals = recording.residuals_SRM
    if not len(residuals):
        return 0.0
    noise: Floats = residuals[int(generator.integers(len(residuals)))] * (1 if generator.random() < 0.5 else -1)
    return noise
