"""Simulated searches over made-up curves: what is replayed, what is measured, and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from sklearn.gaussian_process.kernels import Matern

from analysis import simulate
from analysis.simulation.kernel import Kernel, fit_kernel
from analysis.simulation.measures import Measures, Span, measure, needs_more, regrets
from analysis.simulation.methods import geometric, num_trials, parse_method, suited
from analysis.simulation.points import Points
from analysis.simulation.recorded import read_recording
from analysis.simulation.replay import Replay, SimulatedSearch
from analysis.simulation.report import block
from analysis.simulation.run import Problem, Simulated
from analysis.simulation.run import simulate as run
from analysis.simulation.sources import FromTable, Suggested, curve_of
from analysis.simulation.study import Curve
from analysis.simulation.surrogate import Surrogate
from analysis.table import Facts, Parameter, Table, Trial
from minbert_core.commands import Refused
from search.space.choosing import forcing
from search.space.domains import Choice
from search.space.file import SpaceSettings, read_document
from search.space.space import Space
from search.study.trials import Status, TrialResult

SPACES = Path(__file__).resolve().parents[2] / "spaces"
DOCUMENT: dict[str, Any] = {
    "trials": 12,
    "rungs": [1, 3, 9],
    "sampler": "random",
    "trial_scheduler": "none",
    "config": {
        "data": "toy",
        "encoder": "tiny",
        "optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}},
        "gradient": {"choice": ["sum", "pcgrad"]},
    },
}
PARAMETERS = {
    "optimizer/lr": Parameter("optimizer/lr", "log_uniform", low=1e-4, high=1e-2),
    "gradient": Parameter("gradient", "choice", ("sum", "pcgrad")),
}


def made_up(num: int, num_stopped: int = 0, repeats: bool = True) -> Table:
    """Trials whose score is best at a rate of 1e-3, which a seed moves by .01; every fourth repeats the one before it."""
    random, trials = np.random.default_rng(0), []
    params: dict[str, Any] = {}
    for number in range(num):
        if not (repeats and number % 4 == 3):
            params = {"optimizer/lr": 10 ** random.uniform(-4, -2), "gradient": ("sum", "pcgrad")[number % 2]}
        end = 0.8 - 0.1 * abs(math.log10(params["optimizer/lr"]) + 3) + 0.01 * (number % 4 == 3)
        scores = {rung: end - 0.3 / rung for rung in (1, 3, 9)}
        entries = [
            {"rung": rung, "stage": 0, "examples": 10 * rung, "seconds": 2.0 * rung, "dev/score": s, "dev/sst": s, "dev/sts": s}
            for rung, s in scores.items()
        ]
        stopped = number < num_stopped
        status, kept = ("stopped", entries[:1]) if stopped else ("completed", entries)
        trials.append(Trial("s", number, status, None, "multitask", 18.0, 90, dict(params), kept))
    metrics = {"sst": "accuracy", "sts": "pearson"}
    return Table(trials, {"s": Facts("s", "why?", num, False, True, "norm", metrics, PARAMETERS, space=DOCUMENT)})


def space_of(document: dict[str, Any], name: str = "s") -> Space:
    settings = SpaceSettings.model_validate(
        {key: value for key, value in document.items() if key in SpaceSettings.model_fields}
    )
    return Space(name, settings, document)


# ------------------------------------------------------------------------------------------------------------- the curves


def test_repeats_are_one_configuration_and_show_the_noise() -> None:
    recording = read_recording(made_up(16))
    assert (len(recording.configurations), recording.num_curves) == (12, 16)
    # two seeds are .005 above and below their mean; each residual is scaled by the root of 2 / 1
    assert np.abs(recording.residuals_SRM) == pytest.approx(0.005 * math.sqrt(2))
    assert recording.configurations[2].metrics_RM[-1, 0] == pytest.approx(made_up(16).trials[2].at(9) + 0.005)  # type: ignore[operator]


def test_too_few_whole_curves_are_refused_with_the_command_that_records_more() -> None:
    with pytest.raises(
        Refused, match=r"s has 4 configurations with a whole curve, because 6 of its 10 trials were stopped"
    ) as found:
        read_recording(made_up(10, num_stopped=6, repeats=False))
    assert "--name s-curves --trials 40 --set trial_scheduler=none" in str(found.value)
    assert "this trains for 12 min in all" in str(found.value)


def test_a_file_without_its_space_is_refused() -> None:
    table = made_up(12)
    old = Table(table.trials, {"s": Facts(**{**vars(table.searches["s"]), "space": {}})})
    with pytest.raises(ValueError, match="lacks the search's space"):
        read_recording(old)


def test_the_rungs_of_a_simulation_are_the_longest_part_that_grows_by_one_factor() -> None:
    assert geometric((1, 2, 3, 4, 5, 6, 7, 8, 9)) == (1, 3, 9)
    assert geometric((1, 2, 4, 8)) == (1, 2, 4, 8)
    assert geometric((1, 4)) == (1, 4)
    assert geometric((3, 7)) == (7,)
    with pytest.raises(ValueError, match=r"Rung 2 was not recorded\. Known: 1, 3, 9"):
        read_recording(made_up(16)).places((2, 9))


def test_a_method_that_decides_at_any_rung_gets_all_that_are_recorded() -> None:
    recorded = (1, 2, 3, 6, 9)
    assert suited("random+freeze_thaw", recorded, None).settings.rungs == recorded
    assert suited("random+asha", recorded, None).settings.rungs == suited("random", recorded, None).settings.rungs == (1, 3, 9)
    assert suited("random+freeze_thaw", recorded, (3, 9)).settings.rungs == (3, 9)


@pytest.mark.parametrize("name", sorted(path.stem for path in SPACES.glob("*.yaml")))
def test_points_have_the_parameters_and_the_recipe_of_the_spaces_own_samples(name: str) -> None:
    document, _ = read_document(SPACES / f"{name}.yaml")
    space = space_of(document, name)
    points, random = Points(space), np.random.default_rng(0)
    for _ in range(12):
        point = points.random(random)
        sample = space.sample(forcing(point))
        assert sample.params == point
        assert list(sample.params) == list(point)
    assert points.recipe(point) == sample.config().recipe
    for path, value in point.items():
        domain = points.domains[path]
        assert value in domain.labels if isinstance(domain, Choice) else domain.contains(value)


# ---------------------------------------------------------------------------------------------------------- the surrogate


def test_a_surrogate_predicts_configurations_that_it_has_not_seen() -> None:
    recording = read_recording(made_up(40))
    surrogate = Surrogate(recording)
    assert surrogate.unseen_error().explained > 0.8
    drawn = [surrogate.draw(np.random.default_rng(seed)) for seed in range(20)]
    known = recording.configurations[5]
    places = [0, 1, 2]
    found = np.array([one.curve(known.point, places)[0] for one in drawn])
    assert found.mean(axis=0) == pytest.approx(known.metrics_RM, abs=0.03)
    assert drawn[0].curve(known.point, places)[1] == pytest.approx([2, 6, 18], rel=0.05)


def test_a_fitted_trial_has_the_time_course_and_the_stages_of_its_nearest_recorded_one() -> None:
    table = made_up(40)
    for trial in table.trials:
        if trial.params["gradient"] == "pcgrad":
            for entry, seconds, stage in zip(trial.evaluations, (1.0, 2.0, 18.0), (0, 1, 1), strict=True):
                entry.update(seconds=seconds, stage=stage)
    drawn = Surrogate(read_recording(table)).draw(np.random.default_rng(0))
    for gradient, shares, wanted in (("pcgrad", (1 / 18, 2 / 18, 1), (0, 1, 1)), ("sum", (1 / 9, 3 / 9, 1), (0, 0, 0))):
        _, seconds_R, stages, _ = drawn.curve({"optimizer/lr": 1e-3, "gradient": gradient}, [0, 1, 2])
        assert seconds_R / seconds_R[-1] == pytest.approx(shares)
        assert stages == wanted


def test_drawn_functions_vary_as_the_process_does_and_not_beyond_what_was_recorded() -> None:
    surrogate = Surrogate(read_recording(made_up(40)))
    [x_D] = surrogate.recording.points.encode([{"optimizer/lr": 2e-3, "gradient": "sum"}])
    column_N1 = surrogate.kernel(surrogate.x_ND, x_D[None])
    wanted = surrogate.kernel.variance - float((column_N1.T @ surrogate.inverse_NN @ column_N1)[0, 0])
    normal_NK, values_NK = surrogate.warp.normal_NK, surrogate.values_NK
    last = normal_NK.shape[1] - 4  # the score at the last rung; two tasks and the cost follow
    found = [surrogate.draw(np.random.default_rng(seed)).outputs(x_D[None])[0, last] for seed in range(200)]
    normal = np.interp(found, np.sort(values_NK[:, last]), np.sort(normal_NK[:, last]))
    assert np.std(normal) == pytest.approx(math.sqrt(wanted), rel=0.3)
    points = surrogate.recording.points
    random = np.random.default_rng(0)
    x_PD = points.encode([points.random(random) for _ in range(300)])
    drawn = np.array([surrogate.draw(np.random.default_rng(seed)).outputs(x_PD)[:, last] for seed in range(20)])
    assert (drawn > values_NK[:, last].max()).mean() < 0.05


def test_a_surrogate_claims_nothing_about_scores_that_do_not_depend_on_the_configuration() -> None:
    explained = []
    for seed in range(4):
        table = made_up(40, repeats=False)
        ends = np.random.default_rng(seed).permutation([trial.at(9) for trial in table.trials])
        for trial, end in zip(table.trials, ends, strict=True):
            for entry in trial.evaluations:
                entry.update(dict.fromkeys(("dev/score", "dev/sst", "dev/sts"), end - 0.3 / entry["rung"]))
        explained.append(Surrogate(read_recording(table)).unseen_error().explained)
    assert np.mean(explained) < 0.05


def test_the_kernel_is_long_along_a_parameter_without_effect() -> None:
    random = np.random.default_rng(0)
    x_ND = random.random((30, 2))
    y_NK = np.sin(6 * x_ND[:, :1])
    kernel = fit_kernel(x_ND, (y_NK - y_NK.mean()) / y_NK.std(), np.array([0, 1]))
    assert kernel.length_D[1] > 4 * kernel.length_D[0]
    assert kernel.noise < 0.01


def test_the_kernel_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    x_PD, x_ND, length_D = random.random((5, 3)), random.random((4, 3)), np.array([0.5, 1.0, 3.0])
    wanted_PN = 2.0 * Matern(length_D, nu=2.5)(x_PD, x_ND)
    assert Kernel(2.0, 0.1, length_D)(x_PD, x_ND) == pytest.approx(wanted_PN)


# -------------------------------------------------------------------------------------------------------------- a replay


class Given:
    """Trials with final scores that are given; at each rung they have them."""

    def __init__(self, *scores: float, seconds: float = 9.0) -> None:
        self.scores, self.seconds = scores, seconds

    def next(self, number: int) -> Curve:
        score = self.scores[number]
        flat_R = np.full(3, score)
        seconds_R = self.seconds * np.array([1, 3, 9]) / 9
        return Curve({}, "multitask", flat_R[:, None], seconds_R, (0, 0, 0), flat_R, flat_R, score)

    def reported(self, number: int, rung: int, score: float) -> None: ...
    def waits(self, numbers: dict[int, TrialResult]) -> None: ...
    def use_forecasts(self, forecasts: Callable[[], Mapping[int, float]]) -> None: ...
    def ended(self, number: int, status: Status, score: float) -> None: ...


def replay(*arguments: Any) -> Replay:
    return SimulatedSearch(*arguments).run()


def replayed(scheduler: Any, *scores: float, workers: int = 1, end: float = math.inf) -> Replay:
    return replay(space_of({**DOCUMENT, "trial_scheduler": scheduler}), Given(*scores), (), len(scores), workers, end, 0.0)


def test_random_search_takes_the_recorded_seconds_and_follows_its_best_trial() -> None:
    found = replayed("none", 0.5, 0.4, 0.7)
    assert (found.times, found.truths, found.seconds) == ([1, 27], [0.5, 0.7], 27)
    assert (found.num_trials, found.num_whole, found.lost_best) == (3, 3, False)
    at_once = replayed("none", 0.5, 0.4, 0.7, workers=3)
    assert (at_once.times[-1], at_once.truths[-1]) == (9, 0.7)


def test_asha_stops_and_pays_only_for_what_was_trained() -> None:
    found = replayed("asha", 0.5, 0.4, 0.3)
    assert (found.seconds, found.num_whole) == (9 + 1 + 1, 1)


def test_the_best_is_lost_if_it_was_stopped() -> None:
    class Late(Given):
        def next(self, number: int) -> Curve:
            curve, late_R = super().next(number), np.array([0.1, 0.5, 0.9])
            return curve if number == 0 else replace(curve, metrics_RM=late_R[:, None], seen_R=late_R, kept_R=late_R, truth=0.9)

    found = replay(space_of({**DOCUMENT, "trial_scheduler": "asha"}), Late(0.5, 0.9), (), 2, 1, math.inf, 0.0)
    assert found.lost_best


def test_a_trial_counts_as_far_as_it_was_trained() -> None:
    class Growing(Given):
        def next(self, number: int) -> Curve:
            return replace(super().next(number), kept_R=np.array([0.3, 0.5, 0.9]))

    found = replay(space_of({**DOCUMENT, "trial_scheduler": "none"}), Growing(0.5), (), 1, 1, math.inf, 0.0)
    assert (found.times, found.truths) == ([1, 3, 9], [0.3, 0.5, 0.9])


def test_a_trial_keeps_the_best_of_its_evaluations_as_they_were_seen() -> None:
    """The second point seems best, though the fourth is better; at the third the trial is not evaluated."""
    true_R, noise_R = np.array([0.1, 0.5, 0.8, 0.6]), np.array([0.0, 0.4, 0.0, 0.0])
    curve = curve_of({}, "multitask", true_R[:, None], noise_R[:, None], np.arange(3.0), (0, 1, 1), [0, 1, 3])
    assert (curve.seen_R.tolist(), curve.kept_R.tolist(), curve.truth) == ([0.1, 0.9, 0.9], [0.1, 0.5, 0.5], 0.8)
    assert (curve.metrics_RM[:, 0].tolist(), curve.stages) == ([0.1, 0.9, 0.6], (0, 1, 1))


def test_a_method_pays_for_its_own_evaluations_only() -> None:
    table = made_up(40)
    for trial in table.trials:
        for entry in trial.evaluations:
            entry["evaluation_seconds"] = 0.5
    recording = read_recording(table)
    assert recording.configurations[0].seconds_at([0, 1, 2]).tolist() == [2, 6, 18]
    assert recording.configurations[0].seconds_at([2]).tolist() == [17]
    problem = Problem(recording, budget=5, workers=1, fitted=False)
    assert problem.shares([1, 9]) == pytest.approx({1: 2 / 18, 9: 17.5 / 18})
    assert FromTable(recording, [9], 0).next(0).seconds_R.tolist() == [17]
    drawn = Surrogate(recording).draw(np.random.default_rng(0))
    assert drawn.curve({"optimizer/lr": 1e-3, "gradient": "sum"}, [2])[1] == pytest.approx([17], rel=0.05)


def test_the_best_is_not_lost_while_one_of_its_trials_runs_to_the_end() -> None:
    """Drawn with replacement, it has several: top_k stops all but k of them."""

    class Twice(Given):
        def next(self, number: int) -> Curve:
            return replace(super().next(number), truth=0.9)

    found = replay(
        space_of({**DOCUMENT, "trial_scheduler": {"kind": "top_k", "k": 1}}), Twice(0.88, 0.92), (), 2, 1, math.inf, 0.0
    )
    assert (found.num_whole, found.lost_best) == (1, False)


def test_a_trial_that_still_waits_is_lost_and_one_that_the_end_of_the_budget_cuts_off_is_not() -> None:
    assert replayed("promotion", 0.9, 0.5, 0.7, 0.4, end=3.5).lost_best is False  # promoted at 3 s, when there is no time left
    assert replayed("promotion", 0.9, 0.5, 0.7, 0.4, end=2.5).lost_best is True


def test_the_best_trial_is_that_with_the_best_evaluation_so_far_not_the_best_last_one() -> None:
    class Between(Given):
        def next(self, number: int) -> Curve:
            return replace(super().next(number), seen_R=np.full(3, 0.9 - 0.1 * number), kept_R=np.full(3, 0.3 + number))

    assert replay(space_of({**DOCUMENT, "trial_scheduler": "none"}), Between(0.5, 0.6), (), 2, 1, math.inf, 0.0).truths == [0.3]


def test_promotion_pauses_and_promotes_in_simulated_time() -> None:
    found = replayed("promotion", 0.5, 0.7, 0.4)
    assert (found.num_whole, found.seconds, found.lost_best) == (1, 3 + 8, False)


def test_nothing_begins_that_the_budget_does_not_pay_for() -> None:
    # the second trial pauses at 12 s, where its next point is 6 s away; the third begins, and pauses at 15 s
    assert replayed("none", 0.5, 0.4, 0.7, end=18).seconds == 9 + 3 + 3


def test_methods_that_draw_at_random_get_the_same_trials_in_one_repetition() -> None:
    recording = read_recording(made_up(16))
    one, other = FromTable(recording, (1, 9), 3), FromTable(recording, (1, 3, 9), 3)
    assert [one.next(i).truth for i in range(5)] == [other.next(i).truth for i in range(5)]
    assert one.next(0).truth != FromTable(recording, (1, 9), 4).next(0).truth


# ------------------------------------------------------------------------------------------------------------ the measures


def simulated(*truths: float, times: tuple[float, ...] = (5.0,)) -> Simulated:
    """Repetitions in which the best is 1 and a random configuration 0, each with one change of the best."""
    replays = [
        Replay([time], [truth], 1, 1, truth < 0.5, 10.0) for truth, time in zip(truths, times * len(truths), strict=False)
    ]
    return Simulated(parse_method("random", (1, 3, 9)), False, replays, [1.0] * len(truths), [0.0] * len(truths))


def test_regret_falls_when_the_best_trial_changes() -> None:
    regret_NG = regrets(simulated(0.8), 10.0)
    assert set(np.round(regret_NG[0], 6)) == {1.0, 0.2}
    assert (regret_NG[0] == 1.0).sum() == pytest.approx(120, abs=1)


def test_the_budget_to_reach_random_searchs_best_is_where_the_mean_regret_is_as_low() -> None:
    reference = simulated(*[0.8] * 30)
    fast, never = simulated(*[0.9] * 30, times=(2.0,)), simulated(*[0.7] * 30)
    assert measure(fast, reference, 10.0).reached.value == pytest.approx(0.2, abs=0.01)
    assert math.isinf(measure(never, reference, 10.0).reached.value)
    mixed = measure(simulated(*[0.8, 0.2] * 15), reference, 10.0)
    assert mixed.lost_best.value == 0.5
    assert 0.25 < mixed.lost_best.low < 0.5 < mixed.lost_best.high < 0.75


def test_a_level_that_is_touched_and_left_is_not_reached() -> None:
    def of(*truths: float) -> Simulated:
        return replace(simulated(*[0.0] * 30), replays=[Replay([2.0, 5.0, 8.0], list(truths), 1, 1, False, 10.0)] * 30)

    reference = of(0.5, 0.5, 0.8)
    assert measure(of(0.9, 0.6, 0.8), reference, 10.0).reached.value == pytest.approx(0.8, abs=0.01)
    assert math.isinf(measure(of(0.9, 0.9, 0.7), reference, 10.0).reached.value)


def test_a_method_needs_more_only_if_it_does_so_in_the_same_repetitions() -> None:
    """The intervals of the two overlap, but the second needs more in every repetition."""
    times = np.linspace(1.0, 7.0, 30).tolist()
    reference = replace(simulated(*[0.8] * 30), replays=[Replay([9.0], [0.8], 1, 1, False, 10.0)] * 30)
    fast, slow = (
        replace(simulated(*[0.8] * 30), replays=[Replay([time + more], [0.8], 1, 1, False, 10.0) for time in times])
        for more in (0, 1)
    )
    one, other = measure(slow, reference, 10.0), measure(fast, reference, 10.0)
    assert needs_more(one, other)
    assert not needs_more(other, one)
    assert not needs_more(one, one)


def test_a_start_takes_its_time_at_the_beginning_and_after_a_pause() -> None:
    space = space_of({**DOCUMENT, "trial_scheduler": "promotion"})
    found = replay(space, Given(0.5, 0.7, 0.4), (), 3, 1, math.inf, 2.0)
    assert (found.seconds, found.times) == (3 + 8, [2 + 1, 2 * (2 + 1)])  # two trials at their first point
    ends = [replay(space, Given(0.5, 0.7, 0.4), (), 3, 1, end, 2.0).num_whole for end in (3 * (2 + 1) + 2 + 8, 20)]
    assert ends == [0, 1]


def test_a_search_that_waits_for_all_its_trials_is_planned_to_cost_less_than_the_budget() -> None:
    top_k = parse_method("random+{kind: top_k, k: 2}", (1, 3, 9))
    shares = {1: 0.1, 3: 0.4, 9: 1.0}
    assert num_trials(top_k, 10, 1, shares) == pytest.approx((9 - 2 * 0.9) / 0.1, abs=1)
    assert num_trials(parse_method("random+asha", (1, 3, 9)), 10, 1, shares) > 1000


def test_repetitions_of_a_learning_method_run_on_drawn_functions() -> None:
    recording = read_recording(made_up(40))
    [found] = run(Problem(recording, 4, 2, fitted=True), [parse_method("{kind: tpe, startup: 2}+asha", (1, 3, 9))], 2)
    assert len(found.replays) == 2
    assert found.bests[0] != found.bests[1]
    assert all(one.num_trials > 3 for one in found.replays)


def test_a_simulated_sampler_knows_what_was_reported_and_how_trials_ended() -> None:
    drawn = Surrogate(read_recording(made_up(40))).draw(np.random.default_rng(0))
    space = space_of({**DOCUMENT, "sampler": "tpe", "trial_scheduler": "asha"})
    source = Suggested(drawn, (1, 3, 9), space.settings.sampler, 0)
    found = replay(space, source, ("sst", "sts"), 20, 2, math.inf)
    states = Counter(trial.state for trial in source.study.trials)
    assert (states[TrialState.COMPLETE], states[TrialState.PRUNED]) == (found.num_whole, 20 - found.num_whole)
    assert 0 < found.num_whole < 20
    for trial in source.study.trials:
        assert sorted(trial.intermediate_values) == [1, 3, 9][: len(trial.intermediate_values)] != []
        if trial.state == TrialState.COMPLETE:
            assert trial.value == max(trial.intermediate_values.values())


def test_a_sampler_that_knows_an_earlier_search_begins_with_better_trials() -> None:
    surrogate, method = Surrogate(read_recording(made_up(40))), parse_method("tpe", (1, 3, 9))

    def mean_of_firsts(num_known: int) -> float:
        truths = []
        for seed in range(12):
            drawn = surrogate.draw(np.random.default_rng(seed))
            source = Suggested(drawn, (1, 3, 9), method.settings.sampler, seed, num_known)
            truths += [source.next(number).truth for number in range(4)]
        return float(np.mean(truths))

    assert mean_of_firsts(100) > mean_of_firsts(0) + 0.01
    assert (method.knowing(100).name, method.knowing(100).num_known) == ("tpe, 100 known", 100)


def test_to_know_an_earlier_search_needs_a_sampler_that_learns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "read_one_search", lambda *_: made_up(24))
    assert simulate.main(["s", "--methods", "random+asha", "--known", "10"]) == 2
    assert "--known is for samplers that learn, and none of --methods has one. Add tpe+asha." in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tpee+asha", r"--methods tpee\+asha: Unknown `sampler` kind 'tpee'; did you mean 'tpe'\?"),
        ("tpe+ashaa", r"--methods tpe\+ashaa: Unknown `trial_scheduler` kind 'ashaa'; did you mean 'asha'\?"),
        ("grid", "a grid has an order of its own"),
    ],
)
def test_an_unknown_method_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_method(text, (1, 3, 9))


def test_a_share_of_lost_bests_has_half_the_width_of_its_interval() -> None:
    half, none = Span(0.5, 0.4, 0.6), Span(0.0, 0.0, 0.0)
    flat = np.zeros(3)
    row = block([Measures("m", half, none, none, half, 9.0, 3.0, flat, flat, flat, flat)], "t")[-1]
    assert [cell.strip() for cell in row.split("|")][5] == "50±10"


def test_an_interrupt_loses_no_table_that_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "read_one_search", lambda *_: made_up(24))
    monkeypatch.setattr(Surrogate, "unseen_error", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert simulate.main(["s", "--methods", "random+asha", "tpe", "--budget", "4", "--repetitions", "20"]) == 130
    assert "| random+asha |" in capsys.readouterr().out


def test_the_command_answers_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "read_one_search", lambda *_: made_up(24))
    words = ["s", "--methods", "random+asha", "random+promotion", "--budget", "4", "--repetitions", "20"]
    assert simulate.main([*words, "--to", str(tmp_path), "--formats", "svg"]) == 0
    out = capsys.readouterr().out
    assert "18 configurations with 24 whole curves; 12 curves of repeats show the noise." in out
    assert "| random+promotion |" in out
    assert "18 configurations are few: 18 others might order the methods differently." in out.replace("\n", " ")
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path) not in line)
    assert (tmp_path / "regret.svg").exists()
    assert (tmp_path / "regret.csv").read_text().startswith("curves,method,full_trials,regret,low,high")
