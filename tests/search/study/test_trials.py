"""The trials of a running search: who leads and who has ended is what a look at each of them would say."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from search.study.trials import TrialResult, Trials, ranked


def trial(number: int, status: Any, scores: dict[int, float]) -> TrialResult:
    records = [{"kind": "dev", "rung": rung, "dev/score": score, "seconds": 2.0 * rung} for rung, score in scores.items()]
    return TrialResult(number, status, "", {}, None, Path(), records)


def test_after_each_change_the_leaders_and_the_ended_are_those_of_all_trials() -> None:
    generator, known = random.Random(0), Trials()
    for _ in range(400):
        number, status = generator.randrange(30), generator.choice(["running", "running", "completed", "stopped", "failed"])
        rungs = generator.choice([(), (1,), (1, 3), (1, 3, 9)])
        known[number] = trial(number, status, {rung: generator.choice([0.1, 0.2, 0.3]) for rung in rungs})
        everyone = [known[n] for n in sorted(known)]
        assert known.ranked() == ranked(everyone)
        assert known.ended == {t.number: t.seconds for t in everyone if t.status != "running"}
        assert known.running() == [t for t in everyone if t.status == "running"]


def test_a_failed_trial_and_one_without_an_evaluation_are_not_ranked() -> None:
    assert Trials([trial(0, "failed", {9: 0.9}), trial(1, "running", {})]).ranked() == []
    assert [t.number for t in ranked([trial(0, "failed", {9: 0.9}), trial(1, "stopped", {1: 0.1})])] == [1]
