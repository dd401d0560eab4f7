"""Ensembles: the average of the logits of a configuration's seeds, and of all models of the finalists, with intervals.

    logits of every model ─► Ensemble ─► mean logits ─► metrics, intervals, the difference from a single model ─► its files

An ensemble is one model, but it would be another with other seeds. Its variance over seeds is that of the delete-one jackknife:
the ensemble of k seeds is computed again without each of them. From these k values follow k pseudo-values, whose mean is the
ensemble's score and whose variance, divided by k, is the jackknife's; the influences of the rows follow likewise. So the law of
intervals.py holds for an ensemble as it does for the mean of its seeds. A jackknife's variance is too large rather than too
small (Efron & Stein 1981). With a single seed the interval covers other rows only, as for a single model.

The single models that an ensemble is compared with are made of the same seeds, so the difference is estimated seed by seed:
pseudo-value minus single model, and likewise of the influences. Where their seeds differ, because some failed, there is none.
Source of the jackknife: Efron & Tibshirani 1993, sections 11.2 and 11.3.

Legend: k seeds, B rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.intervals import Estimate, Scores, estimate, holm
from analysis.results import SPLITS, Logits, Measured, Results, Splits, limits_of, measured, metrics_of, scores_of
from analysis.retrain import Job
from analysis.selection import Selection
from minbert_core.words import counted

WHOLE = -1  # the ensemble of all seeds; the others are without the seed of their number


@dataclass(frozen=True)
class Ensemble:
    """The average of some models' logits, and what it scores on each split."""

    name: str  # of its folder of prediction files: 003-ensemble, finalists-ensemble
    about: str  # `003, ensemble of 5 seeds`
    members: list[Job]
    against: int  # the configuration whose single models it is compared with
    logits: Logits
    measured: dict[str, dict[str, Measured]]  # split -> column -> score and interval
    differences: dict[str, Estimate]  # split -> its score minus the mean of the single models; rows and seeds paired
    corrected_p: dict[str, float | None]  # split -> p of that, corrected for the number of ensembles

    def document(self) -> dict[str, Any]:
        """Build the entry of results.json."""
        return {
            "name": self.name,
            "members": [job.name for job in self.members],
            **{split: {column: of.document() for column, of in columns.items()} for split, columns in self.measured.items()},
            "against": self.against,
            "differences": {
                split: {"mean": of.mean, "interval": [of.low, of.high], "corrected_p": self.corrected_p.get(split)}
                for split, of in self.differences.items()
            },
        }


def ensembles(selection: Selection, results: Results, logits: Mapping[Job, Logits], splits: Splits) -> list[Ensemble]:
    """Build the ensemble of each configuration that has several seeds, and that of the finalists if there are several."""
    by_number: dict[int, list[Job]] = {}
    for job in logits:
        by_number.setdefault(job.number, []).append(job)
    found = [
        (f"{jobs[0].label}-ensemble", f"{selection.name(number)}, ensemble of {counted(len(jobs), 'seed')}", jobs, number)
        for number, jobs in by_number.items()
        if len(jobs) > 1
    ]
    finalists = [trial.number for trial in selection.finalists if trial.number in by_number]
    if len(finalists) > 1:
        jobs = [job for number in finalists for job in by_number[number]]
        about = f"ensemble of {len(finalists)} finalists, {counted(len(jobs), 'model')}"
        found.append(("finalists-ensemble", about, jobs, results.winner))
    return _corrected([_ensemble(selection, logits, splits, *of) for of in found])


def _ensemble(
    selection: Selection, logits: Mapping[Job, Logits], splits: Splits, name: str, about: str, jobs: list[Job], against: int
) -> Ensemble:
    config = selection.config
    parts = jackknife_logits({job: logits[job] for job in jobs})
    singles = {job.seed_index or 0: of for job, of in logits.items() if job.number == against}
    has_same_seeds = singles.keys() == {job.seed_index or 0 for job in jobs}
    found: dict[str, dict[str, Measured]] = {}
    differences: dict[str, Estimate] = {}
    for split in SPLITS:
        own = _scores(selection, split, splits, parts)
        other = _scores(selection, split, splits, dict(sorted(singles.items())))
        if own:
            limits = limits_of(config, split, splits)
            scores = {column: jackknifed(of) for column, of in own.items()}
            found[split] = {column: _as_one(own[column], measured(of, *limits[column])) for column, of in scores.items()}
            if "score" in scores and has_same_seeds:
                differences[split] = estimate(paired(scores["score"], other["score"]))
    return Ensemble(name, about, jobs, against, parts[WHOLE], found, differences, {})


def _scores(selection: Selection, split: str, splits: Splits, models: Mapping[Any, Logits]) -> dict[str, Scores]:
    """Score some models on a split, in their order."""
    metrics = {model: {split: metrics_of(selection.config, of, splits, split)} for model, of in models.items()}
    return scores_of(selection.config, split, splits, models, metrics, {0: dict(enumerate(models))})[0]


def jackknife_logits(logits: Mapping[Job, Logits]) -> dict[int, Logits]:
    """Average the logits of all models (WHOLE, first), and of all but those of each seed, if there are several seeds."""
    seeds = sorted({job.seed_index or 0 for job in logits})
    parts = {WHOLE: list(logits.values())}
    if len(seeds) > 1:
        parts |= {seed: [of for job, of in logits.items() if (job.seed_index or 0) != seed] for seed in seeds}
    return {part: _mean(of) for part, of in parts.items()}


def _mean(logits: Sequence[Logits]) -> Logits:
    return {key: np.stack([of[key] for of in logits]).mean(axis=0, dtype=np.float64).astype(np.float32) for key in logits[0]}


def jackknifed(scores: Scores) -> Scores:
    """Turn the scores of an ensemble and of its k parts without a seed into its k pseudo-values, whose mean is its score.

    v_i = S + (k - 1) (mean of the parts - part i), and the same of the influences. An ensemble without parts stays as it is.
    """
    k = scores.num_seeds - 1
    if k < 1:
        return scores
    weights = np.concatenate([np.ones((k, 1)), np.full((k, k), (k - 1) / k) - (k - 1) * np.eye(k)], axis=1)
    return Scores(weights @ scores.values_k, [weights @ influences for influences in scores.influences_TkB])


def paired(ensemble: Scores, singles: Scores) -> Scores:
    """Subtract the single models' scores and influences from the pseudo-values of their ensemble, seed by seed."""
    influences = [one - other for one, other in zip(ensemble.influences_TkB, singles.influences_TkB, strict=True)]
    return Scores(ensemble.values_k - singles.values_k, influences)


def _as_one(scores: Scores, found: Measured) -> Measured:
    """Return what was measured with the ensemble's own value in place of its pseudo-values."""
    return Measured([float(scores.values_k[0])], found.low, found.high)


def _corrected(found: list[Ensemble]) -> list[Ensemble]:
    """Correct the p-values of all ensembles on a split together."""
    for split in SPLITS:
        p = {of.name: of.differences[split].p for of in found if split in of.differences}
        decided = {name: value for name, value in p.items() if value is not None}
        corrected = dict(zip(decided, holm(list(decided.values())), strict=True))
        for of in found:
            of.corrected_p[split] = corrected.get(of.name)
    return found
