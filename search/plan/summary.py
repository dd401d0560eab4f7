"""A plan in words: the lines that the user reads before the search starts, warnings among them, and its record, plan.json.

Plan -> plan_lines, warnings (terminal, log.txt)       Plan -> plan_record -> PlanRecord (folder.py)
"""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from minbert_core.config import FORMAT, LAYERS
from minbert_core.data.corpus import missing_test_files
from minbert_core.machine import without_bfloat16
from minbert_core.methods.stages import PretrainingVariant
from minbert_core.methods.task_schedules import examples_per_step
from minbert_core.settings.paths import as_written, flatten
from minbert_core.train.preview import data_sentence, dropped_rows, evaluation_points, truncated_rows
from minbert_core.words import counted
from search.environment import git_commit, versions
from search.plan.folder import PlanRecord
from search.plan.on_cluster import cluster_lines
from search.plan.plan import Plan, branch_configs
from search.plan.relocated import encoder_fingerprint, moved


def plan_lines(plan: Plan, num_dropped: int | None = 5) -> list[str]:
    """Return the plan as the user reads it. num_dropped: the dropped rows that are named per file; None: all."""
    config, inputs, settings = plan.config, plan.inputs, plan.space.settings
    dropped = dropped_rows(config, inputs, num_dropped, rest=", which the search's log.txt names")
    recipes = f"recipes   {len(plan.recipes)}, each with its own rungs: {', '.join(plan.recipes)}"
    encoders = dict.fromkeys((config.encoder.checkpoint, *plan.space.encoders.values()))
    return [
        f"search    {plan.name}: {settings.about or '(no question given: `about`)'}",
        f"data      {data_sentence(config, inputs)}",
        *(f"data      {text}" for text in (*_split_files(plan), *dropped, *inputs.notes())),
        f"encoder   {', '.join(plan.relocated.get(name, name) for name in encoders)}",
        f"machine   {plan.resources}; {_machine(plan)}",
        *cluster_lines(plan.resources),
        *(
            [f"storage   {plan.resources.storage}: snapshots, best models; data and encoder, once per node"]
            if plan.resources.storage
            else []
        ),
        *([f"sharing   {plan.resources.sharing}"] if plan.resources.sharing else []),
        f"objective {_objective(plan)} on dev, the best of a trial's evaluations at {_points(plan)}",
        f"budget    {_budget(plan)}",
        f"trials    {_trials(plan)}",
        *(f"from      {text}" for text in plan.notes),
        *(f"pretrain  {text}" for text in plan.pretrainings),
        *([recipes] if len(plan.recipes) > 1 else []),
        *_searched(plan),
        *(f"warning   {text}" for text in warnings(plan)),
    ]


def warnings(plan: Plan) -> list[str]:
    """Return a sentence for each probable mistake: constant labels, truncated rows, unused tasks, no test files, few trials."""
    config, settings = plan.config, plan.space.settings
    sentences = [*plan.resources.warnings, *plan.inputs.constant_labels(), *truncated_rows(config, plan.inputs)]
    sentences += _unused(plan)
    if not plan.resources.cluster:  # a cluster's GPUs are not this machine's
        sentences += without_bfloat16(config.machine)
    tasks = [config.known_tasks[name] for name in config.train_on]
    if missing := missing_test_files(plan.inputs.data_folder, tasks):
        names = " and no ".join(missing)
        sentences.append(f"no {names} in the data folder: the search does not need it, but best_to_test will.")
    baselines, recipes = len(plan.space.baselines), len(plan.recipes)
    few = settings.trial_scheduler.warning(settings.rungs, plan.num_trials, baselines, recipes)
    return [*sentences, few] if few else sentences


def _unused(plan: Plan) -> Iterator[str]:
    """Yield a sentence for each task with a declaration or settings that no trial uses, as if it had been forgotten."""
    config, used = plan.config, {*plan.config.train_on}
    if {*config.own_tasks, *config.tasks} - {*used, *LAYERS}:  # rarely, and a stage of any branch may read their texts
        stages = itertools.chain.from_iterable(of.stages for of in branch_configs(plan.space))
        used |= {name for stage in stages if isinstance(stage, PretrainingVariant) for name in stage.texts}
    for name in config.own_tasks:
        if name not in used:
            yield f"`own_tasks/{name}` is declared, but `train_on` does not name it, so no trial uses it."
    for name in config.tasks:
        if name not in (*used, *LAYERS, *config.own_tasks):
            yield f"`tasks/{name}` has settings, but `train_on` does not name {name}, so no trial uses them."


def _split_files(plan: Plan) -> list[str]:
    """Return a sentence for each task whose dev split is a part of its train file."""
    tasks = [plan.config.known_tasks[name] for name in plan.config.train_on]
    return [
        f"{task.name}: dev is {100 * task.dev_share:g} % of {task.file('dev')}, chosen by dev_seed {task.dev_seed}"
        for task in tasks
        if task.cuts_dev
    ]


def _machine(plan: Plan) -> str:
    machine = plan.config.machine
    by = " by oneDNN" if machine.matmul == "onednn" else ""
    return f"{machine.device}, {machine.precision}{by}{_gpu_memory(plan)}{plan.resources.which_gpus}"


def _gpu_memory(plan: Plan) -> str:
    machine = plan.config.machine
    smallest = min((gpu.total_gb for gpu in plan.resources.taken), default=0)  # 0: the driver does not report it
    if machine.device != "cuda" or machine.gpu_share == 1 or plan.resources.cluster or not smallest:
        return ""
    return f"; at most {machine.gpu_share * smallest:.1f} GB of GPU memory each"


def _objective(plan: Plan) -> str:
    objective = plan.config.objective
    if isinstance(objective, str):
        return objective
    return "weights " + ", ".join(f"{name} {weight:g}" for name, weight in objective.weights.items())


def _points(plan: Plan) -> str:
    rungs = plan.space.settings.rungs
    if len(set(plan.budgets)) > 1:
        return f"{', '.join(map(str, rungs))} of {rungs[-1]} parts of its budget"
    return f"{evaluation_points(plan.examples, rungs)} examples"


def _budget(plan: Plan) -> str:
    if len(set(plan.budgets)) > 1:
        return f"{plan.budgets[0]:,} to {plan.budgets[-1]:,} examples per full trial, by branch; mean {plan.examples:,}"
    return f"{plan.examples:,} examples per full trial, {_steps(plan)}"


def _steps(plan: Plan) -> str:
    schedule = plan.config.task_schedule
    sizes = {name: plan.inputs.sizes[name] for name in plan.config.train_on}
    batch = examples_per_step(schedule, sizes, {name: plan.config.task(name).batch_size for name in sizes})
    content = "a batch of each task" if schedule.tasks_per_step(len(sizes)) > 1 else "a batch of one task"
    return f"about {math.ceil(round(plan.examples / batch, 6)):,} steps of {batch:g} ({content})"


def _trials(plan: Plan) -> str:
    baselines, settings = len(plan.space.baselines), plan.space.settings
    first = f", of which {counted(baselines, 'baseline runs', 'baselines run')} to the end" if baselines else ""
    law = settings.trial_scheduler.describe(settings.rungs)
    stops = f"; {law}" if law else ""
    cost = f"{plan.full_trials:.1f} full trials, {plan.full_trials * plan.examples:,.0f} examples"
    return f"{plan.num_trials}{first}{stops}; expected cost: {cost}"


def _searched(plan: Plan) -> list[str]:
    domains = plan.space.domains()
    width = max((len(name) for name in domains), default=0)
    rows = [f"          {name:<{width}}  {domain}" for name, (domain, _) in domains.items()]
    return [f"searched  {counted(len(domains), 'parameter')}", *rows]


def plan_record(
    plan: Plan,
    command: Sequence[str] = (),
    search_id: str | None = None,
    tracking_uri: str | None = None,
    space_sha256: str | None = None,
    space_file_sha256: str | None = None,
) -> PlanRecord:
    """Return what plan.json keeps of a plan, and of the command that began the search."""
    space, resources, config = plan.space, plan.resources, plan.config
    return PlanRecord(
        format=FORMAT,
        name=plan.name,
        space_name=space.name,
        about=space.settings.about,
        created=time.strftime("%FT%T%z"),
        command=list(command),
        seed=plan.seed,
        trials=plan.num_trials,
        gpus=resources.gpus,
        gpus_per_trial=resources.gpus_per_trial,
        cpus_per_trial=resources.cpus_per_trial,
        sharing=resources.sharing,
        examples=plan.examples,
        expected_full_trials=round(plan.full_trials, 2),
        data=config.data,
        encoder=config.encoder.checkpoint,
        encoders=dict(space.encoders),
        encoder_fingerprints={name: encoder_fingerprint(Path(name)) for name in space.encoders.values()},
        moved=moved(plan.relocated),
        objective=as_written(config.objective),
        train_on=list(config.train_on),
        fingerprints=plan.fingerprints(),
        git_commit=git_commit(),
        versions=versions(),
        python=platform.python_version(),
        baselines=[flatten(space.baseline(i).document) for i in range(len(space.baselines))],
        earlier=[dict(trial) for trial in plan.earlier],
        id=search_id,
        tracking_uri=tracking_uri,
        storage=resources.storage or None,
        space_sha256=space_sha256,
        space_file_sha256=space_file_sha256,
    )
