"""How much each searched choice explains of the trials' scores: PED-ANOVA over all trials, fANOVA within a branch.

    trials at one rung ─► PED-ANOVA (Optuna) ─► share per parameter, 95 % bootstrap interval, p-value from shuffled scores
    trials of one branch ─► fANOVA (Optuna) ─► share of variance per parameter, interval over bootstrapped trees

A figure alone says nothing: some parameter explains most of shuffled scores too. So each result states whether its figures
exceed those of shuffled scores, and there is no result with fewer than MIN_TRIALS trials.
Sources: Watanabe et al. 2023, PED-ANOVA; Hutter et al. 2014, fANOVA; Westfall & Young 1993 for the maximum over parameters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial

from analysis.forest import Floats, encode, explains
from analysis.table import Parameter, Table, Trial

MIN_TRIALS = 10  # PED-ANOVA needs five trials in the good part, and as many outside
GOOD_TRIALS, GOOD_SHARE = 5, 0.25  # the good part: the best quarter, or five trials (Optuna's advice) if they are more
ROUNDS = 39  # resamples, and shuffles: p-values from 1/40
TREES = 16
LEVEL = 0.05
ALL = "all trials"


@dataclass(frozen=True)
class Share:
    """The share that one parameter explains, its 95 % interval, and for PED-ANOVA the p-value, corrected for the parameters."""

    path: str
    share: float
    low: float
    high: float
    p: float | None = None

    @property
    def matters(self) -> bool:
        return self.p is not None and self.p <= LEVEL


@dataclass(frozen=True)
class Explained:
    """The shares of the parameters in one metric at one rung, largest first. `doubt` is the reason why they may be noise."""

    method: str  # PED-ANOVA, fANOVA
    group: str  # all trials, or PATH=LABEL
    target: str  # score, or a task
    rung: int
    num_trials: int
    shares: list[Share]
    doubt: str = ""


@dataclass(frozen=True)
class Sample:
    """Trials evaluated at one rung, their values of one metric, and the parameters to explain them with."""

    group: str
    target: str
    rung: int
    trials: list[Trial]
    values: Floats
    parameters: list[Parameter]

    def result(self, method: str, shares: Iterable[Share] = (), doubt: str = "") -> Explained:
        ordered = sorted(shares, key=lambda share: -share.share)
        return Explained(method, self.group, self.target, self.rung, len(self.trials), ordered, doubt or self.too_few)

    @property
    def too_few(self) -> str:
        """The reason why nothing can be computed; "" if it can."""
        if len(self.trials) < MIN_TRIALS:
            return f"not enough trials to say: {len(self.trials)} at rung {self.rung}, {MIN_TRIALS} are needed"
        if not self.parameters:
            return "nothing to explain it with: no parameter differs between these trials"
        return "nothing to explain: all trials have the same value" if np.ptp(self.values) == 0 else ""


def common_rung(trials: Iterable[Trial]) -> int:
    """Return the highest rung that all trials have reached which ended without failing; 0 without an evaluation.

    It is the first one where trials were stopped there, and the last one where none was stopped.
    """
    evaluated = [trial for trial in trials if trial.evaluations]
    first = min((trial.evaluations[0]["rung"] for trial in evaluated), default=0)
    ended = [trial.rung for trial in evaluated if trial.status in ("completed", "stopped")]
    return max(first, min(ended, default=0))


def sample(table: Table, group: str, trials: Sequence[Trial], target: str, rung: int) -> Sample:
    """Take the trials that have the metric at the rung, and every parameter that differs between them."""
    found = [(trial, value) for trial in trials if (value := trial.at(rung, target)) is not None and math.isfinite(value)]
    known = {path: parameter for facts in table.searches.values() for path, parameter in facts.parameters.items()}
    kept = [trial for trial, _ in found]
    differing = [of for path, of in known.items() if len({trial.params.get(path) for trial in kept}) > 1]
    return Sample(group, target, rung, kept, np.array([value for _, value in found]), differing)


def branches(table: Table) -> dict[str, list[Trial]]:
    """Return the trials of each branch that has its own parameters, by `PATH=LABEL`."""
    found: dict[str, list[Trial]] = {}
    for facts in table.searches.values():
        for choice in (parameter for parameter in facts.parameters.values() if parameter.labels):
            for label in map(str, choice.labels):
                taken = [trial for trial in table.trials if trial.params.get(choice.path) == label]
                others = [trial for trial in table.trials if choice.path in trial.params and trial not in taken]
                own = {path for trial in taken for path in trial.params} - {path for trial in others for path in trial.params}
                if own and others:
                    found[f"{choice.path}={label}"] = taken
    return found


# ---------------------------------------------------------------------------------------------------------- PED-ANOVA


def ped_anova(of: Sample, seed: int = 0, rounds: int = ROUNDS) -> Explained:
    """Explain which trials are in the good part, by all parameters, conditional ones included."""
    if of.too_few:
        return of.result("PED-ANOVA")
    generator = np.random.default_rng(seed)
    paths = [parameter.path for parameter in of.parameters]
    study = _study(of)
    observed = _good_part(study, of.values, paths)
    shuffled = np.stack([_good_part(study, generator.permutation(of.values), paths) for _ in range(rounds)])
    resampled = np.stack([_resampled(study, of.values, paths, generator) for _ in range(rounds)])
    low, high = np.quantile(_normalised(np.vstack([resampled, observed])), [0.025, 0.975], axis=0)
    share = _normalised(observed)
    columns = share, np.minimum(low, share), np.maximum(high, share), _corrected(observed, shuffled)
    shares = [Share(path, *map(float, figures)) for path, *figures in zip(paths, *columns, strict=True)]
    doubt = "" if any(share.matters for share in shares) else "cannot say: no share exceeds those of shuffled scores"
    return of.result("PED-ANOVA", shares, doubt)


def _good_part(study: optuna.Study, values: Floats, paths: list[str]) -> Floats:
    """Compute the divergence between the good trials and all, per parameter."""
    share = max(GOOD_SHARE, GOOD_TRIALS / values.size)
    return _importances(study, PedAnovaImportanceEvaluator(target_quantile=share), values, paths)


def _resampled(study: optuna.Study, values: Floats, paths: list[str], generator: np.random.Generator) -> Floats:
    """Compute the divergences of a bootstrap sample of the trials. A parameter that none of it has gets 0."""
    trials = study.get_trials(deepcopy=False)
    drawn = [trials[i] for i in generator.integers(len(trials), size=len(trials))]
    present = [path for path in paths if any(path in trial.params for trial in drawn)]
    sample = optuna.create_study()
    sample.get_trials = lambda deepcopy=True, states=None: drawn  # type: ignore[method-assign]  # adding each trial takes 1 ms
    found = dict(zip(present, _good_part(sample, values, present), strict=True))
    return np.array([found.get(path, 0.0) for path in paths])


def _normalised(divergences: Floats) -> Floats:
    """Divide by the sum over the parameters, the last axis."""
    totals = divergences.sum(axis=-1, keepdims=True)
    return np.asarray(divergences / np.where(totals > 0, totals, 1.0))


def _corrected(observed: Floats, shuffled: Floats) -> Floats:
    """Return p-values against the largest figure of each shuffle. Each parameter's figures are divided by their shuffled mean,
    since parameters with many values have larger ones."""
    usual = shuffled.mean(axis=0) + 1e-12
    largest = (shuffled / usual).max(axis=1)
    exceeding = (largest[:, None] >= (observed / usual)[None, :]).sum(axis=0)
    return np.asarray((1 + exceeding) / (1 + len(largest)))


# -------------------------------------------------------------------------------------------------------------- fANOVA


def fanova(of: Sample, seed: int = 0) -> Explained:
    """Explain the variance of the metric by the parameters that all these trials have.

    The rule of doubt: a forest must predict trials that it has not seen; otherwise its variance is that of noise.
    """
    shared = [parameter for parameter in of.parameters if all(parameter.path in trial.params for trial in of.trials)]
    of = Sample(of.group, of.target, of.rung, of.trials, of.values, shared)
    if of.too_few:
        return of.result("fANOVA")
    paths, study = [parameter.path for parameter in shared], _study(of)
    trees = np.stack([tree for i in range(TREES) if (tree := _tree(study, of.values, paths, seed + i)) is not None])
    low, high = np.quantile(trees, [0.025, 0.975], axis=0)
    shares = [Share(path, *map(float, figures)) for path, *figures in zip(paths, trees.mean(axis=0), low, high, strict=True)]
    predicts = explains(encode(of.trials, shared)[0], of.values, seed)
    return of.result("fANOVA", shares, "" if predicts else "cannot say: a forest cannot predict trials that it has not seen")


def _tree(study: optuna.Study, values: Floats, paths: list[str], seed: int) -> Floats | None:
    """Compute the shares in one tree, which is grown on a bootstrap sample of the trials; None if it has a single leaf."""
    try:
        return _importances(study, FanovaImportanceEvaluator(n_trees=1, seed=seed), values, paths)
    except RuntimeError:  # zero variance: the sample drew trials with one value only
        return None


# -------------------------------------------------------------------------------------------------------------- Optuna


def _importances(study: optuna.Study, evaluator: BaseImportanceEvaluator, values: Floats, paths: list[str]) -> Floats:
    """Call Optuna with other values than the study's; large values are good."""
    target: Callable[[FrozenTrial], float] = lambda trial: -float(values[trial.number])  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that small targets are good, that few trials share a branch: both are known
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, params=paths, target=target, normalize=False
        )
    return np.array([float(found[path]) for path in paths])


def _study(of: Sample) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.add_trials(_frozen(of))
    return study


def _frozen(of: Sample) -> list[FrozenTrial]:
    """Return the trials as Optuna's, numbered as in the sample."""
    distributions = {parameter.path: _distribution(parameter, of.trials) for parameter in of.parameters}
    frozen = []
    for trial in of.trials:
        own = {path: trial.params[path] for path in distributions if path in trial.params}
        frozen.append(create_trial(params=own, distributions={path: distributions[path] for path in own}, value=0.0))
    return frozen


def _distribution(parameter: Parameter, trials: list[Trial]) -> BaseDistribution:
    """Return Optuna's distribution, widened to the values of baselines outside the range."""
    values: list[Any] = [trial.params[parameter.path] for trial in trials if parameter.path in trial.params]
    if parameter.labels:
        return CategoricalDistribution(list(dict.fromkeys([*map(str, parameter.labels), *values])))
    low, high = min(parameter.low, *values), max(parameter.high, *values)
    if parameter.kind == "int":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=parameter.kind == "log_uniform" and low > 0)
