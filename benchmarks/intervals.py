"""Simulate the error rates of best_to_test's verdicts: false ones between equal configurations, and power if one is better.

    python -m benchmarks.intervals [--trials 4000]

Each trial draws configurations of five seeds on the three dev splits of the course (SST 1,101 rows, Para 3,026, STS 863) and
compares their norm by `analysis.intervals.compare`, as best_to_test does, with the first 2, 3 and 5 seeds. Every answer is
right or wrong by a latent normal variable: the difficulty of the row, which all configurations share, the configuration's own
view of the row, and a part that is drawn again for each seed, the flips. On STS the same sum is the error of a prediction. In
addition every seed moves each task's accuracy or correlation by an effect with the standard deviation in the table's first
column. A column of the table is a question, a cell its rates in per cent with 2, 3 and 5 seeds. An ensemble averages the latent
variables, less their thresholds, or the predictions. Its true difference from its single models is taken to be the mean of all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.ensembles import jackknifed, paired
from analysis.influence import influences
from analysis.intervals import CONFIDENCE, Scores, compare, estimate, holm
from minbert_core.data.tasks import Metric

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """A dev split: its rows, the level of its metric, and its weight in norm, which takes r as (r + 1)/2."""

    num_rows: int
    is_accuracy: bool
    level: float
    weight: float


SPLITS = (Split(1_101, True, 0.50, 1 / 3), Split(3_026, True, 0.80, 1 / 3), Split(863, False, 0.86, 1 / 6))
ROW, VIEW, FLIPS = 0.80, 0.05, 0.15  # shares of the latent variance: assumed, not measured (2026-11)
DEVIATIONS = (0.0, 0.004, 0.008, 0.02, 0.04)  # of the seeds' effects, per task
SEEDS = (2, 3, 5)
GAINS = (0.0, 0.0, 0.0, 0.0, 0.01, 0.03)  # per task, of the configurations of a trial over the first, the baseline
FINALISTS = (1, 2, 3)  # as good as the baseline
QUESTIONS = {
    "false verdict": "one of them differs from the baseline",
    "any false verdict": "at least one of the three does, p corrected after Holm",
    "missed": "the interval of the baseline misses its true norm",
    "power +.01": "the configuration that is better by .01 per task beats the baseline",
    "power +.03": "the one that is better by .03 does",
}


def draw(random: np.random.Generator, deviation: float, gains: Sequence[float], view: float = VIEW) -> list[Scores]:
    """Draw the norm of one configuration per gain, each with as many seeds as `SEEDS` has at most.

    deviation: that of the seeds' effects. view: share of the latent variance that is specific to a configuration.
    """
    drawn = [_logits(random, split, deviation, gains, view) for split in SPLITS]
    return [norm([(logits_CkB[place], labels_B) for logits_CkB, labels_B in drawn]) for place in range(len(gains))]


def norm(of_splits: Sequence[tuple[Floats, Floats]]) -> Scores:
    """Compute the norm of some models from their logits, shape (models, B), and the labels of each split."""
    values_k, of_tasks = np.zeros(len(of_splits[0][0])), []
    for split, (logits_kB, labels_B) in zip(SPLITS, of_splits, strict=True):
        answers_kB = (logits_kB > 0).astype(np.float64) if split.is_accuracy else logits_kB
        metric: Metric = "accuracy" if split.is_accuracy else "pearson"
        values_k += split.weight * _metric(split, answers_kB, labels_B)
        of_tasks.append(split.weight * influences(metric, answers_kB, labels_B))
    return Scores(values_k, of_tasks)


def _logits(
    random: np.random.Generator, split: Split, deviation: float, gains: Sequence[float], view: float
) -> tuple[Floats, Floats]:
    """Draw the logits of C configurations with k seeds each on a split, shape (C, k, B), and its labels.

    Of an accuracy a logit above 0 is right, of a correlation it is the prediction.
    """
    num, k, size = len(gains), max(SEEDS), split.num_rows

    def normal(share: float, *shape: int) -> NDArray[np.float32]:
        return np.float32(share**0.5) * random.standard_normal(shape, dtype=np.float32)

    latent_CkB = normal(1 - view - FLIPS, size) + normal(view, num, 1, size) + normal(FLIPS, num, k, size)
    level_Ck1 = split.level + np.asarray(gains)[:, None, None] + deviation * random.standard_normal((num, k, 1))
    level_Ck1 = np.clip(level_Ck1, 0.01, 0.99)
    if split.is_accuracy:
        return special.ndtri(level_Ck1) - latent_CkB, np.ones(size)
    labels_B = random.uniform(-(3**0.5), 3**0.5, size)  # uniform, of variance 1
    return level_Ck1 * labels_B + np.sqrt(1 - level_Ck1**2) * latent_CkB, labels_B


def _metric(split: Split, answers_kB: Floats, labels_B: Floats) -> Floats:
    if split.is_accuracy:
        return np.asarray((answers_kB == labels_B).mean(axis=1))
    return np.array([np.corrcoef(answers_B, labels_B)[0, 1] for answers_B in answers_kB])


def first(scores: Scores, k: int) -> Scores:
    """Return the same configuration with only its first k seeds."""
    return Scores(scores.values_k[:k], [influences_kB[:k] for influences_kB in scores.influences_TkB])


def differs(one: Scores, other: Scores) -> bool:
    """Return whether a single comparison of these two gets a verdict."""
    p = compare(one, other).p
    return p is not None and p <= 1 - CONFIDENCE


def answer(configurations: Sequence[Scores], k: int) -> list[bool]:
    """Answer `QUESTIONS` for one trial, with the first k seeds."""
    baseline, *others = (first(scores, k) for scores in configurations)
    p_values = [compare(others[place - 1], baseline).p for place in FINALISTS]
    corrected = holm([p for p in p_values if p is not None])
    interval, truth = estimate(baseline), sum(split.weight * split.level for split in SPLITS)
    return [
        differs(others[0], baseline),
        min(corrected) <= 1 - CONFIDENCE,
        not interval.low <= truth <= interval.high,
        differs(others[-2], baseline),
        differs(others[-1], baseline),
    ]


def rates(deviation: float, trials: int) -> Floats:
    """Return how often the answer to each question is yes, shape (questions, numbers of seeds)."""
    random, found = np.random.default_rng(0), np.zeros((len(QUESTIONS), len(SEEDS)))
    for _ in range(trials):
        configurations = draw(random, deviation, GAINS)
        found += np.array([answer(configurations, k) for k in SEEDS]).T
    return np.asarray(found / trials)


def rates_of_one_recipe(deviation: float, trials: int) -> Floats:
    """Return how often two configurations of the same recipe, which see the rows alike, get a verdict."""
    random, found = np.random.default_rng(1), np.zeros(len(SEEDS))
    for _ in range(trials):
        one, other = draw(random, deviation, (0.0, 0.0), view=0.0)
        found += [differs(first(one, k), first(other, k)) for k in SEEDS]
    return np.asarray(found / trials)


def rates_of_ensembles(deviation: float, trials: int) -> Floats:
    """Return how often the interval of an ensemble's difference from its single models misses the true difference."""
    random = np.random.default_rng(2)
    found_Tk = np.array(
        [[_gain_of_ensemble(drawn, k) for k in SEEDS] for drawn in _one_configuration(random, deviation, trials)]
    )
    means_Tk, lows_Tk, highs_Tk = np.moveaxis(found_Tk, 2, 0)
    truth_k = means_Tk.mean(axis=0)
    return np.asarray(((lows_Tk > truth_k) | (highs_Tk < truth_k)).mean(axis=0))


def _one_configuration(random: np.random.Generator, deviation: float, trials: int) -> Iterator[list[tuple[Floats, Floats]]]:
    """Yield the logits of one configuration's seeds and the labels, per split."""
    for _ in range(trials):
        drawn = [_logits(random, split, deviation, (0.0,), VIEW) for split in SPLITS]
        yield [(logits_CkB[0], labels_B) for logits_CkB, labels_B in drawn]


def _gain_of_ensemble(drawn: Sequence[tuple[Floats, Floats]], k: int) -> tuple[float, float, float]:
    """Return the ensemble of the first k seeds minus its single models: mean, and the ends of the interval."""
    singles = [(logits_kB[:k], labels_B) for logits_kB, labels_B in drawn]
    members = [np.arange(k), *(np.delete(np.arange(k), seed) for seed in range(k))]
    parts = [(np.array([logits_kB[of].mean(axis=0) for of in members]), labels_B) for logits_kB, labels_B in singles]
    found = estimate(paired(jackknifed(norm(parts)), norm(singles)))
    return found.mean, found.low, found.high


def table(trials: int) -> Iterator[str]:
    """Yield the rates in per cent, a row per deviation of the seeds' effects, a column per question; with 2, 3 and 5 seeds."""
    yield f"| deviation | {' | '.join(QUESTIONS)} | false verdict, one recipe | missed, ensemble |"
    yield "|---" * (len(QUESTIONS) + 3) + "|"
    for deviation in DEVIATIONS:
        found = [*rates(deviation, trials), rates_of_one_recipe(deviation, trials), rates_of_ensembles(deviation, trials)]
        cells = [" / ".join(f"{100 * rate:.1f}" for rate in rates_of_seeds) for rates_of_seeds in found]
        yield f"| {deviation:g} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table, row by row, and the meaning of its columns."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, default=4_000, metavar="N", help="simulated comparisons per cell (default 4000)")
    for line in table(options.parse_args().trials):
        print(line, flush=True)
    print()
    for question, meaning in QUESTIONS.items():
        print(f"{question}: {meaning}")


if __name__ == "__main__":
    main()
