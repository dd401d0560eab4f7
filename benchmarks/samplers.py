"""Whether TPE finds better points where it models the parameters of a branch jointly (Optuna's `group=True`).

    python -m benchmarks.samplers [--seeds 60]

A synthetic score over a space like spaces/smart.yaml: a rate, a factor, and a branch with radius and weight that is worth
taking only near its optimum. In `product` only radius * weight matters, so that a model of each by itself cannot see the
optimum; in `separate` both have an optimum of their own. Scores are observed with a seed's noise. Prints, per case and number
of trials, the true score that the best observed trial falls short by, and the paired difference with a 95 % interval.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable

import optuna

from benchmarks.learning import compare

NOISE = 0.004  # standard deviation of norm over seeds, about that of LOG.md's retrainings
PLAIN, GAIN = 0.0, 0.012  # of the best plain point, and what the branch adds at its optimum
Score = Callable[[float, float], float]

CASES: dict[str, Score] = {  # log10 of radius and weight -> share of the gain
    "product": lambda radius, weight: math.exp(-(((radius + weight + 1.3) / 0.2) ** 2) / 2),
    "separate": lambda radius, weight: math.exp(-(((radius + 1.5) / 0.2) ** 2 + ((weight - 0.2) / 0.3) ** 2) / 2),
}


def true_score(trial: optuna.Trial, case: Score) -> float:
    """The score of a point that the sampler chooses, without noise."""
    rate = math.log10(trial.suggest_float("lr", 1e-5, 3e-4, log=True))
    score = PLAIN - 0.01 * ((rate + 4.3) / 0.3) ** 2 - 0.003 * (trial.suggest_categorical("head_lr_factor", [1, 10]) == 10)
    if trial.suggest_categorical("smoothness", ["none", "smart"]) == "none":
        return score
    radius = math.log10(trial.suggest_float("radius", 1e-2, 1e-1, log=True))
    weight = math.log10(trial.suggest_float("weight", 0.1, 10, log=True))
    return score + (GAIN + 0.008) * case(radius, weight) - 0.008


def regret(case: Score, group: bool, trials: int, seed: int) -> float:
    """How far the best observed of `trials` trials is from the optimum, by the true score."""
    import numpy as np

    noise = np.random.default_rng(seed)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(n_startup_trials=8, seed=seed, group=group), direction="maximize"
    )
    found: list[tuple[float, float]] = []
    for _ in range(trials):
        trial = study.ask()
        score = true_score(trial, case)
        observed = score + float(noise.normal(scale=NOISE))
        study.tell(trial, observed)
        found.append((observed, score))
    return PLAIN + GAIN - max(found)[1]


def main() -> None:
    """Print the table, one row per case and number of trials."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=60)
    seeds = range(options.parse_args().seeds)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    print("| case | trials | regret, each by itself | regret, jointly | difference |\n|---|---|---|---|---|")
    for name, case in CASES.items():
        for trials in (32, 64):
            separate, jointly = ([regret(case, group, trials, seed) for seed in seeds] for group in (False, True))
            mean, half, _ = compare(jointly, separate)
            means = [f"{sum(values) / len(values):.4f}" for values in (separate, jointly)]
            print(f"| {name} | {trials} | {means[0]} | {means[1]} | {mean:+.4f} ± {half:.4f} |", flush=True)


if __name__ == "__main__":
    main()
