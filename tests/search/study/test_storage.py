"""The sampler's view of the study: trials that wait or were stopped."""

from __future__ import annotations

import math

from optuna.trial import FrozenTrial, TrialState, create_trial

from search.study.storage import as_the_sampler_sees


def trial(number: int, state: TrialState, *scores: float) -> FrozenTrial:
    """A trial with scores at the rungs 1, 2, …"""
    value = max(scores) if state == TrialState.COMPLETE else None
    made = create_trial(state=state, value=value, intermediate_values=dict(enumerate(scores, 1)))
    made.number = number
    return made


RECORDED = [
    trial(0, TrialState.COMPLETE, 0.4, 0.6),
    trial(1, TrialState.PRUNED, 0.5, 0.3),
    trial(2, TrialState.RUNNING, 0.2),
    trial(3, TrialState.PRUNED, math.nan),
    trial(4, TrialState.RUNNING),
]


def test_a_waiting_trial_counts_as_a_stopped_one() -> None:
    seen = as_the_sampler_sees(RECORDED, {2}, None)
    names = ["COMPLETE", "PRUNED", "PRUNED", "PRUNED", "RUNNING"]
    assert [each.state.name for each in seen] == names


def test_a_sampler_that_knows_completed_trials_only_sees_the_last_scores_of_the_others() -> None:
    seen = as_the_sampler_sees(RECORDED, {2}, (TrialState.COMPLETE,), counts_stopped=True)
    assert [(each.number, each.value) for each in seen] == [(0, 0.6), (1, 0.3), (2, 0.2)]
    assert [each.state.name for each in RECORDED] == ["COMPLETE", "PRUNED", "RUNNING", "PRUNED", "RUNNING"]


def test_trials_that_wait_or_were_stopped_count_as_completed_with_their_forecasts() -> None:
    failed = trial(5, TrialState.PRUNED, 0.5)
    failed.user_attrs = {"status": "failed"}
    forecasts = dict.fromkeys(range(6), 0.9)
    seen = as_the_sampler_sees([*RECORDED, failed], {2}, None, forecasts=forecasts)
    assert [(each.state.name, each.value) for each in seen if each.state.is_finished()] == [
        ("COMPLETE", 0.6),  # its own
        ("COMPLETE", 0.9),
        ("COMPLETE", 0.9),
        ("COMPLETE", 0.9),
        ("PRUNED", None),
    ]
    assert seen[4].state == TrialState.RUNNING


def test_the_states_that_are_asked_for_are_those_of_the_view() -> None:
    assert [each.number for each in as_the_sampler_sees(RECORDED, {2}, (TrialState.RUNNING,))] == [4]
    assert [each.number for each in as_the_sampler_sees(RECORDED, set(), (TrialState.RUNNING,))] == [2, 4]
