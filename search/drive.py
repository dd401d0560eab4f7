"""The course of a search: Ray, the study, the terminal and MLflow around it, and the summary at its end.

plan -> run_search -> further pretraining -> Ray Tune asks StudySearcher for trials -> run_trial on workers -> close
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minbert_core.commands import DONE, FAILED, INTERRUPTED, NOT_RECORDED, Refused, analysis_command
from minbert_core.settings.paths import as_written
from minbert_core.train.folder import read_records
from minbert_core.words import counted
from search.cluster.storage import StorageFault
from search.cost.estimate import full_disk
from search.environment import git_commit, versions
from search.methods.decisions import Scheduler
from search.options import SearchOptions
from search.plan.folder import PRETRAINING, PlanRecord, read_plan
from search.plan.plan import Plan
from search.plan.pretraining import make_chains
from search.plan.summary import plan_lines
from search.report.answer import answer_lines
from search.report.boards import FOLDER as BOARDS
from search.report.boards import Boards
from search.report.costs import branch_table, choices_of, total_cost
from search.report.narrate import Narrator, table
from search.report.record import Recorder
from search.report.weights_and_biases import WandbRuns, wandb_fault, wants_wandb
from search.study.elastic import following
from search.study.engine import start_ray
from search.study.interrupts import Interrupts
from search.study.listeners import Listeners, OtherRecord
from search.study.mirror import Mirror
from search.study.repair import Repairs, repair
from search.study.retries import reopen_failed
from search.study.searcher import StopOnRequest, StudySearcher, TuneScheduler
from search.study.study import Study
from search.study.trainable import run_trial
from search.study.trial_files import OneDisk, TrialFiles
from search.study.trials import TrialResult
from search.study.watch import RayDied, RayWatch
from search.tracking.experiment import compare_lines
from search.tracking.runs import Runs, SearchRecord
from search.tracking.runs import Status as MlflowStatus
from search.tracking.store import dashboard_command, dashboard_note, store_uri, ui_command
from search.tracking.tracker import Tracker

SENT_PER_SECOND = 50e6  # bytes of a snapshot to a storage, at least; assumed, not measured (2026-11)
CLOSE_SECONDS = 5.0  # for MLflow to write the rest after a fault


def run_search(
    folder: Path, plan: Plan, options: SearchOptions, seconds_left: Callable[[], float], repairs: Repairs | None = None
) -> int:
    """Run or resume the search in `folder` until its end, Ctrl-C or the time limit. Return the exit code.

    repairs: what checking the files of a resumed search has found; None: the search is new.
    """
    record = read_plan(folder)
    uri, resume = record.tracking_uri or store_uri(folder.parent), resume_command(folder, options.address)
    tasks, rungs, slots = list(plan.config.train_on), plan.space.settings.rungs, plan.resources.slots
    narrator = Narrator(folder, tasks, plan.num_trials, slots, rungs[-1], plan.examples)
    search = _search_record(folder, plan, record, uri, resumed=repairs is not None)
    recorder = Recorder(folder, tasks, rungs[-1], Tracker(search, narrator.say))
    recorder.tracker.start()
    others = list(_other_records(folder, options, record, narrator.say))
    listeners = Listeners(narrator, recorder, *others)
    with contextlib.closing(narrator), Interrupts(folder, narrator.say) as interrupts, contextlib.ExitStack() as at_end:
        for other in others:
            at_end.callback(_close, other, interrupts)
        narrator.log.write("\n".join(plan_lines(plan, num_dropped=None)) + "\n")  # the terminal has shown them already
        narrator.show([f"folder    {folder}", _dashboard(folder), f"mlflow    {ui_command(uri, Path.cwd())}"])
        with _ended_after_fault(narrator, recorder.tracker, resume) as end:
            scheduler = plan.space.settings.trial_scheduler.build(rungs, plan.num_trials)
            study, unfinished = _begun_or_restored(folder, plan, record, options, scheduler, repairs, narrator)
            listeners.replay(study.results())
            limits = seconds_left, plan.relocated, options.retries, 60 * options.patience
            searcher = StudySearcher(study, scheduler, plan.num_trials, unfinished, listeners, *limits)
            narrator.slots = lambda: slots if math.isinf(searcher.room) else searcher.room

            def give_up(sentence: str) -> None:
                narrator.screen.__exit__(None, None, None)
                narrator.say(sentence)
                end("KILLED", CLOSE_SECONDS)

            if searcher.has_more():
                with narrator.screen:
                    tune_scheduler = TuneScheduler(scheduler, rungs, seconds_left)
                    _fit(plan, searcher, tune_scheduler, options.address, interrupts, listeners.pretrained, give_up)
            if searcher.disk.fault is not None:
                raise Refused(_paused(plan, folder, searcher.disk.fault))
            if not interrupts.seen:
                searcher.pause_the_rest()
        return close(folder, plan, study.results(), narrator, recorder.tracker, interrupts.seen, uri, resume)


def _search_record(folder: Path, plan: Plan, record: PlanRecord, uri: str, resumed: bool) -> SearchRecord:
    """Return what MLflow's run of the search shows."""
    note, digests, num_rows = _note(plan, folder, []), plan.fingerprints(), _num_rows(plan)
    files = [folder / "space.yaml", folder / "plan.json"]
    return SearchRecord(
        uri, plan.name, note, _tags(plan), _params(plan), digests, num_rows, files, resumed, search_id=record.id
    )


def _begun_or_restored(
    folder: Path,
    plan: Plan,
    record: PlanRecord,
    options: SearchOptions,
    scheduler: Scheduler,
    repairs: Repairs | None,
    narrator: Narrator,
) -> tuple[Study, list[TrialResult]]:
    """Return the study of a new search, or that of a resumed one and its trials that have not ended; say what was found."""
    files = _files(folder, record)
    if repairs is None:
        return Study(folder, plan.space, plan.seed, files, record.earlier), []
    for sentence in repairs.sentences:
        narrator.say(sentence)
    num_reopened = reopen_failed(folder) if options.retry_failed else 0
    if num_reopened:
        repairs = repair(folder, plan.space, plan.seed)  # it writes the entries of the reopened trials into their folders
    study = Study(folder, plan.space, plan.seed, files, record.earlier)
    unfinished = study.restore(scheduler, repairs.records)
    num_ended = len(study.results()) - len(unfinished)
    narrator.say(f"resumed; {num_ended} of {plan.num_trials} trials have ended, {len(unfinished)} continue")
    if num_reopened:
        narrator.say(f"{counted(num_reopened, 'failed trial')} of these run again")
    return study, unfinished


@contextlib.contextmanager
def _ended_after_fault(
    narrator: Narrator, tracker: Tracker, resume: str
) -> Iterator[Callable[[MlflowStatus, float | None], None]]:
    """Yield a function that ends MLflow's record and shows the command that resumes. If the block fails, it is called."""

    def end(status: MlflowStatus, timeout_seconds: float | None) -> None:
        narrator.show([f"resume    {resume}"])
        tracker.close(status, timeout_seconds)

    try:
        yield end
    except RayDied as error:  # the command prints its sentence
        narrator.log.write(f"{time.strftime('%F %T')} {error}\n")
        end("KILLED", CLOSE_SECONDS)
        raise
    except BaseException:  # a fault of Ray's or ours; finished work is kept
        end("FAILED", None)
        raise


def _other_records(
    folder: Path, options: SearchOptions, record: PlanRecord, say: Callable[[str], None]
) -> Iterator[OtherRecord]:
    """Yield the records next to MLflow's that the user asks for, or that the search which is resumed has."""
    if options.tensorboard or (folder / BOARDS).exists():
        yield Boards(folder, say)
    if wants_wandb(folder, options.wandb):
        if fault := wandb_fault():  # with --wandb it was refused before; here the search had the option when it began
            say(f"{fault} This search logs no further to W&B.")
        else:
            yield WandbRuns(folder, record.name, record.id or "", say)


def _close(record: OtherRecord, interrupts: Interrupts) -> None:
    record.close(interrupts.seen)


def _files(folder: Path, record: PlanRecord) -> TrialFiles:
    """Return the trials' files of the search in `folder`."""
    return Mirror(folder, record.storage, f"{record.name}-{(record.id or '')[:8]}") if record.storage else OneDisk()


def _paused(plan: Plan, folder: Path, fault: OSError) -> str:
    """Return the sentence about a disk that is full, or a storage at fault, which has paused a search."""
    if isinstance(fault, StorageFault):
        return f"{fault} The search is paused: its trials keep their snapshots there. Once it works, --resume continues them."
    return full_disk(plan, folder, fault)


def _fit(
    plan: Plan,
    searcher: StudySearcher,
    scheduler: Any,
    address: str,
    interrupts: Interrupts,
    pretrained: Callable[[dict[str, Any]], None],
    give_up: Callable[[str], None],
) -> None:
    """Pretrain, pass everything to Ray Tune, and wait until the trials have ended or an interrupt was seen.

    Raises RayDied. If Ray hangs after its death, `give_up` is called instead and the process is ended.
    """
    scratch = start_ray(plan.resources, address)
    interrupts.listen()  # again: Ray has installed its own handler, which exits at once
    interrupts.save_seconds += plan.snapshot_bytes / SENT_PER_SECOND if plan.resources.storage else 0
    storage = Path(tempfile.mkdtemp(prefix="minbert-tune-", dir=scratch))  # a killed driver's is removed with its Ray's
    with RayWatch(scratch, give_up) as watch:

        def is_stopped() -> bool:
            return searcher.is_halted() or searcher.seconds_left() <= 0

        searcher.is_halted = lambda: interrupts.seen or watch.has_died()
        stopper = StopOnRequest(
            lambda: interrupts.is_over(searcher.num_training()) or bool(watch.died) or searcher.disk.fault is not None,
            meanwhile=searcher.end_hanging,
        )
        tuner = _tuner(plan, searcher, scheduler, storage, stopper)
        try:
            with following(plan, searcher, interrupts.say) as supplies:
                if make_chains(plan.chains(), plan.resources, pretrained, is_stopped, supplies) and not interrupts.seen:
                    tuner.fit()
        except Exception:  # whatever Ray's calls raise once its processes have died
            if not watch.has_died():
                raise
        finally:
            watch.shut_down()
            shutil.rmtree(storage, ignore_errors=True)
    if watch.died:
        raise RayDied(watch.died)


def _tuner(plan: Plan, searcher: StudySearcher, scheduler: Any, storage: Path, stopper: StopOnRequest) -> Any:
    from ray import tune

    resources = {"cpu": plan.resources.cpus_per_trial, "gpu": plan.resources.gpus_per_trial}
    return tune.Tuner(
        tune.with_resources(run_trial, resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=plan.num_trials,  # the searcher limits them, as it knows a cluster's slots at any time
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=plan.name,
            storage_path=str(storage),
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # prints nothing; Tune's default in a notebook clears the cell's output
            failure_config=tune.FailureConfig(max_failures=0),
            stop=stopper,
        ),
    )


def close(
    folder: Path,
    plan: Plan,
    results: list[TrialResult],
    narrator: Narrator,
    tracker: Tracker,
    interrupted: bool,
    uri: str,
    again: str,
) -> int:
    """Show the table and the next command, and close the record in MLflow. Return the exit code.

    again: the command that resumes the search.
    """
    resources = plan.resources
    rows = table(results, narrator.tasks, gpus_per_trial=resources.gpus_per_trial, unended="paused") if results else []
    if branches := branch_table(results, choices_of(plan.space)):
        rows += ["", *branches]
    pretrained = read_records(folder / PRETRAINING)
    cost = f"cost      {total_cost(results, resources.cpus_per_trial, resources.gpus_per_trial, pretrained)}"
    statuses = [trial.status for trial in results]
    counts = {status: statuses.count(status) for status in ("completed", "stopped", "failed", "running")}
    summary = ", ".join(f"{count} {'paused' if status == 'running' else status}" for status, count in counts.items() if count)
    narrator.show(["", f"{counted(len(results), 'trial')}: {summary or 'none has started'}.", *rows, "", cost])
    if (folder / "best").exists():
        narrator.show([f"best      {folder / 'best'}"])
    narrator.show([*compare_lines(uri, plan.name, tracker.experiment), _dashboard(folder)])
    narrator.show([f"          {dashboard_note(counts['completed'], len(results))}"])
    paused, not_begun = counts["running"], plan.num_trials - len(results)
    out_of_time = not interrupted and paused + not_begun > 0
    worked = counts["completed"] > 0 or (out_of_time and any(trial.points for trial in results))
    if out_of_time:
        narrator.show(
            [f"paused    {counted(paused, 'trial')}, and {not_begun} not started: no time was left for another evaluation"]
        )
    if interrupted or out_of_time:
        narrator.show([f"resume    {again}"])
    if counts["completed"] and not interrupted:
        answers = answer_lines(results, choices_of(plan.space), plan.space.settings.rungs[-1])
        narrator.show([f"{'best of' if i == 0 else '':<10}{line}" for i, line in enumerate(answers)])
        narrator.show([f"use       {export_command(folder)}", f"next      {next_command(folder)}"])
    if counts["failed"] and not interrupted and not worked:
        narrator.show([f"reasons   {folder / 'trials'}/*/log.txt"])
    if any(trial.status == "failed" and trial.deaths for trial in results) and not interrupted:
        narrator.show([f"retry     {again} --retry-failed"])
    tracker.submit(Runs.note, _note(plan, folder, [*rows, "", cost]))
    recorded = tracker.close("KILLED" if interrupted else "FINISHED" if worked else "FAILED")
    if not recorded:
        print(f"MLflow: {tracker.error}", file=sys.stderr)
        state = "The trials' states are saved" if interrupted else "The search is complete"
        print(f"{state}, but MLflow lacks some records. This logs them again: {again}", file=sys.stderr)
    if interrupted:
        return INTERRUPTED
    if not worked:
        return FAILED
    return DONE if recorded else NOT_RECORDED


# -------------------------------------------------------------------------------------------------------------- words


def resume_command(folder: Path, address: str = "local") -> str:
    where = [] if address == "local" else ["--address", address]
    return shlex.join(["python", "-m", "search.run", "--resume", folder.name, *_runs_option(folder), *where])


def next_command(folder: Path) -> str:
    return analysis_command("best_to_test", "--search", folder.name, *_runs_option(folder))


def export_command(folder: Path) -> str:
    """Return the command that exports the best model to other libraries."""
    here = Path.cwd()
    place = folder.relative_to(here) if folder.is_relative_to(here) else folder
    return analysis_command("export", str(place))


def _dashboard(folder: Path) -> str:
    return f"dashboard {dashboard_command(folder / 'study.journal', Path.cwd())}"


def _runs_option(folder: Path) -> list[str]:
    return [] if folder.parent == Path.cwd() / "runs" else ["--runs", os.path.relpath(folder.parent)]


def _note(plan: Plan, folder: Path, lines: list[str]) -> str:
    body = "\n".join(lines) if lines else "(running)"
    return (
        f"**{plan.space.settings.about or plan.name}**\n\n{body}\n\n"
        f"Next: `{analysis_command('best_to_test', '--search', plan.name)}`\n\nFolder: `{folder}`\n\n"
        "A trial that was stopped at a rung is FINISHED with a `stop_reason`; FAILED is a fault. The chart page shows ten runs "
        "at first: choose *Show all* in the eye menu. Metric names in filters need backticks: ``metrics.`dev/norm` > 0.7``."
    )


def _tags(plan: Plan) -> dict[str, str]:
    packages = {f"version/{name}": text for name, text in versions().items()}
    return {"about": plan.space.settings.about, "git": git_commit(), **packages}


def _num_rows(plan: Plan) -> dict[str, int]:
    """Return the rows of each data set, under the names of the plan's fingerprints."""
    splits = {"train": plan.inputs.train, "dev": plan.inputs.dev}
    return {f"{name}-{split}": len(rows[name]) for name in plan.config.train_on for split, rows in splits.items()}


def _params(plan: Plan) -> dict[str, Any]:
    return {
        "trials": plan.num_trials,
        "seed": plan.seed,
        "examples": plan.examples,
        "rungs": list(plan.space.settings.rungs),
        "objective": as_written(plan.config.objective),
        "encoder": plan.config.encoder.checkpoint,
        "data": plan.config.data,
        "tasks": list(plan.config.train_on),
        "resources": str(plan.resources),
        **{f"space/{name}": str(domain) for name, (domain, _) in plan.space.domains().items()},
    }
