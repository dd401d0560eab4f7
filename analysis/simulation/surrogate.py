"""Learning curves of configurations that were not recorded: a Gaussian process over the points, and functions drawn from it.

    Recording -> Surrogate: warp.py, kernel.py, error at unseen configurations -> draw -> Drawn: point -> curve

All metrics at all rungs share one kernel over the points; their covariance is that of the recorded curves. Each repetition of a
simulation draws one function from the posterior, so what is unknown about a point is in the intervals over repetitions. A
function of the mean alone would be flatter than any real one, and its best point would be a recorded one.

Sources: Rasmussen & Williams 2006, algorithm 2.1; Wilson et al. 2020 (arXiv 2002.09309), equation 13 (a draw from the
posterior); Rahimi & Recht 2007, random features of the prior.
Legend: N recorded configurations, D numbers of a point, F features, K outputs (R rungs times M metrics, and the cost)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import linalg

from analysis.simulation.kernel import NU, fit_kernel
from analysis.simulation.points import Floats, Point
from analysis.simulation.recorded import Configuration, Recording
from analysis.simulation.warp import Warp

NUM_FEATURES = 256
NUM_FOLDS = 10


@dataclass(frozen=True)
class UnseenError:
    """The error of the surrogate at configurations that it has not seen: of the score at the last rung."""

    rmse: float
    explained: float  # share of the variance; 0: no better than the mean of the others


class Surrogate:
    """A Gaussian process over the configurations of a recording."""

    def __init__(self, recording: Recording, seed: int = 0) -> None:
        self.recording = recording
        configurations = recording.configurations
        outputs = [np.append(each.metrics_RM.ravel(), math.log(each.seconds_R[-1])) for each in configurations]
        self.values_NK = np.array(outputs)
        self.warp = Warp(self.values_NK)
        self.y_NK = self.warp.normal_NK
        self.x_ND = recording.points.encode([each.point for each in configurations])
        self.kernel = fit_kernel(self.x_ND, self.y_NK, recording.points.parameter_D)
        self.inverse_NN: Floats = linalg.inv(self.kernel(self.x_ND, self.x_ND) + self.kernel.noise * np.eye(len(self.x_ND)))
        generator = np.random.default_rng(seed)
        ratio_F = np.sqrt(2 * NU / generator.chisquare(2 * NU, NUM_FEATURES))
        normal_DF = generator.normal(size=(self.x_ND.shape[1], NUM_FEATURES))
        self.frequencies_DF = normal_DF * ratio_F / self.kernel.length_D[:, None]
        self.phases_F = generator.uniform(0, 2 * math.pi, NUM_FEATURES)

    def _features(self, x_PD: Floats) -> Floats:
        scale = math.sqrt(2 * self.kernel.variance / NUM_FEATURES)
        features: Floats = scale * np.cos(x_PD @ self.frequencies_DF + self.phases_F)
        return features

    @cached_property
    def _recorded_features_NF(self) -> Floats:
        return self._features(self.x_ND)

    def unseen_error(self) -> UnseenError:
        """Compute the error at each recorded configuration of a process that was fitted, kernel included, without its fold."""
        last = self.y_NK.shape[1] - 1 - (1 + len(self.recording.tasks))  # the score at the last rung
        scores_N = self.values_NK[:, last]
        errors_N, of_mean_N = np.zeros(len(self.x_ND)), np.zeros(len(self.x_ND))
        for fold in range(num_folds := min(NUM_FOLDS, len(self.x_ND))):
            unseen = np.arange(len(self.x_ND)) % num_folds == fold
            x_ND, warp = self.x_ND[~unseen], Warp(self.values_NK[~unseen])
            kernel = fit_kernel(x_ND, warp.normal_NK, self.recording.points.parameter_D, start=self.kernel)
            covariance_NN = kernel(x_ND, x_ND) + kernel.noise * np.eye(len(x_ND))
            weights_NK = linalg.solve(covariance_NN, warp.normal_NK, assume_a="pos")
            expected_PK = warp.values(kernel(self.x_ND[unseen], x_ND) @ weights_NK)
            of_mean_N[unseen] = scores_N[unseen] - scores_N[~unseen].mean()
            errors_N[unseen] = scores_N[unseen] - expected_PK[:, last]
        rmse = float(np.sqrt((errors_N**2).mean()))
        return UnseenError(rmse, float(1 - (errors_N**2).sum() / (of_mean_N**2).sum()))

    def draw(self, generator: np.random.Generator) -> Drawn:
        """Draw a function from the posterior."""
        num, roughness = len(self.x_ND), math.sqrt(self.kernel.noise)
        weights_FK = generator.normal(size=(NUM_FEATURES, num)) @ self.y_NK / math.sqrt(num)
        noise_NK = roughness * generator.normal(size=(num, num)) @ self.y_NK / math.sqrt(num)
        correction_NK = self.inverse_NN @ (self.y_NK - self._recorded_features_NF @ weights_FK - noise_NK)
        return Drawn(self, weights_FK, correction_NK)

    def nearest(self, x_D: Floats, recipe: str) -> Configuration:
        """Return the nearest recorded configuration of the recipe; of all if none has it."""
        configurations = self.recording.configurations
        own = [i for i, each in enumerate(configurations) if each.recipe == recipe] or range(len(configurations))
        return configurations[min(own, key=lambda i: float(((self.x_ND[i] - x_D) ** 2).sum()))]


@dataclass(frozen=True)
class Drawn:
    """One function: the curve of every point."""

    surrogate: Surrogate
    weights_FK: Floats
    correction_NK: Floats

    def outputs(self, x_PD: Floats) -> Floats:
        """Compute the outputs at points, shape (P, K): the metrics, rung after rung, and the logarithm of the seconds."""
        of = self.surrogate
        y_PK = of._features(x_PD) @ self.weights_FK + of.kernel(x_PD, of.x_ND) @ self.correction_NK
        return of.warp.values(y_PK)

    def curve(self, point: Point, places: Sequence[int]) -> tuple[Floats, Floats, tuple[int, ...], str]:
        """Return the metrics (R, M), the seconds (P,), the stages (P,) and the recipe of a point, P of the rungs by place.

        The stages, and the shares of the seconds that they take, are those of the nearest recorded configuration.
        """
        recording = self.surrogate.recording
        [x_D], recipe = recording.points.encode([point]), recording.points.recipe(point)
        y_K = self.outputs(x_D[None])[0]
        metrics_RM = y_K[:-1].reshape(len(recording.rungs), -1)
        like = self.surrogate.nearest(x_D, recipe)
        seconds_P = math.exp(y_K[-1]) / like.seconds_R[-1] * like.seconds_at(places)
        return metrics_RM, seconds_P, tuple(like.stages[place] for place in places), recipe
