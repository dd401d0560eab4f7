"""The spaces in `spaces/`: each is valid everywhere, asks a question, and survives Optuna and a search's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from minbert_core.config import TrialConfig
from minbert_core.methods.task_schedules import StepAt
from minbert_core.settings.yaml import dump_yaml, parse_yaml
from search.space.choosing import forcing
from search.space.space import make_space, read_space
from search.space.walk import Choose

QUESTIONS = sorted((Path(__file__).parents[3] / "spaces").glob("*.yaml"))
SPACES = sorted((Path(__file__).parents[3] / "spaces").rglob("*.yaml"))  # those of the papers too

Drawing = Callable[[int], Choose]


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_a_shipped_space_reads_asks_a_question_and_has_a_baseline(path: Path) -> None:
    space = read_space(path)
    assert space.settings.about.endswith("?") or "?" in space.settings.about
    assert space.baselines
    assert space.domains()
    settings = space.settings
    assert not settings.trial_scheduler.warning(settings.rungs, settings.trials, len(space.baselines), num_recipes=1)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_shipped_space_makes_valid_configs_only(path: Path, drawing: Drawing) -> None:
    space = read_space(path)
    for seed in range(30):
        sample = space.sample(drawing(seed))
        assert set(sample.params) <= set(space.domains())
        assert sample.config().budget.points == space.settings.rungs


def tasks_shown(config: TrialConfig, examples: float) -> tuple[set[str], set[str]]:
    """The tasks shown in a trial on the course's corpora by so many examples, and those of the stage that it is in."""
    sizes, drawn = {"sst": 8_544, "para": 141_498, "sts": 6_040, "yelp": 2_500}, 0
    shown: set[str] = set()
    for plan, share in zip(config.stage_plans(), config.stage_examples(sizes), strict=True):
        own, batches = {name: sizes[name] for name in plan.tasks}, {name: config.task(name).batch_size for name in plan.tasks}
        start, step = drawn, 0
        while drawn < min(start + share, examples):
            tasks = plan.task_schedule.tasks_of_step(StepAt(step, (drawn - start) / share, own, batches, 0))
            shown |= set(tasks)
            drawn, step = drawn + sum(batches[name] for name in tasks), step + 1
        if drawn >= examples:
            break
    return shown, set(plan.tasks)


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_in_a_shipped_space_every_task_that_a_stage_trains_was_shown_by_the_first_rung(path: Path) -> None:
    """Every branch and both ends of every range"""
    space, looked_at = read_space(path), set()
    for name, (domain, guards) in space.domains().items():
        for value in domain.values():
            config = space.sample(forcing({**guards, name: value})).config()
            key = repr([(plan.task_schedule, plan.tasks) for plan in config.stage_plans()] + [config.stages, config.tasks])
            if key in looked_at:
                continue
            looked_at.add(key)
            first, *_, last = space.settings.rungs
            shown, trained = tasks_shown(config, (config.budget.examples or 400_000) * first / last)
            assert trained <= shown, f"{name} {value}: {trained - shown} unseen"


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_shipped_space_survives_the_file_that_a_search_keeps_of_it(path: Path, drawing: Drawing) -> None:
    space = read_space(path)
    document, _ = parse_yaml(dump_yaml(space.document))
    again = make_space(space.name, document)
    assert again.document == space.document
    assert again.domains() == space.domains()
    assert again.sample(drawing(1)).config() == space.sample(drawing(1)).config()


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_optuna_accepts_every_domain_of_a_shipped_space_in_one_study(path: Path) -> None:
    space = read_space(path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for i in range(len(space.baselines)):
        study.enqueue_trial(space.baseline(i).params)
    for i in range(20):
        trial = study.ask()
        sample = space.sample(lambda name, domain, t=trial: domain.suggest(t, name))
        assert sample.params == trial.params
        if i < len(space.baselines):
            assert sample.params == space.baseline(i).params
