"""train(config, inputs) -> Iterator[Progress]: one trial as a generator, with no Ray, no search and no MLflow inside.

    stages on texts: their encoder, from the cache or trained now (pretraining.py)
    for stage: a Stepper (buffer, fresh optimiser, method state)
        for step: the task schedule names tasks -> one packed batch per task (on a GPU, ahead: ahead.py) -> Stepper.step
            about a hundred times per trial: yield losses, rate, speed;   at each rung: yield dev metrics

Everything random is a pure function of (seed, purpose, step). So a snapshot holds counters instead of generators, and a resumed
trial repeats, on the CPU bit for bit. A step that runs out of memory is repeated in smaller passes (micro_batches.py); their
size is one of the counters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from minbert_core.clock import now_ms
from minbert_core.config import FORMAT, TrialConfig
from minbert_core.evaluate import NotFiniteError, is_constant, metric, overall, score
from minbert_core.inputs import Inputs
from minbert_core.machine import resolve_precision, usage
from minbert_core.memory import indivisible
from minbert_core.methods.stages import StagePlan, stage_ends
from minbert_core.methods.task_schedules import StepAt
from minbert_core.model import MultitaskBert, predict_logits, predictions
from minbert_core.seeds import seed_of
from minbert_core.tensor_files import load_state, save_state
from minbert_core.train.ahead import Ahead
from minbert_core.train.bench import Bench
from minbert_core.train.loop import Meter, is_log_due, is_measure_due
from minbert_core.train.micro_batches import Sizes, fitted, sizes_of
from minbert_core.train.passes import Pass
from minbert_core.train.pretrained import find
from minbert_core.train.pretraining import never, run_pretraining
from minbert_core.train.step import Stepper
from minbert_core.train.task_losses import StepReport

Record = dict[
    str, Any
]  # {"kind": "pretrain" | "train" | "dev" | "rung", "step", "examples", "passes", "time_ms", "seconds", …}


@dataclass
class Counters:
    """The progress of a trial: all of a snapshot but its tensors and records."""

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    examples: int = 0
    passes: int = 0  # examples sent through the encoder in training, extra passes of smoothness included
    seconds: float = 0.0
    drawn: dict[str, int] = field(default_factory=dict)
    rung: int = 0  # the last rung reported
    best_score: float = -math.inf
    best_rung: int = 0
    micro_batch_tokens: int | None = None  # the most tokens of a pass, once memory did not suffice for the config's


@dataclass(frozen=True)
class Progress:
    """One message of a trial in training.

    `record` is flat and ready to log. Its kind is train, dev, or, before the model exists, pretrain. `rung` is the rung just
    reached (1, 3, 9 …) or None. `improved` is true if its score is the trial's best so far. `snapshot()` returns the state from
    which a later `train` resumes. Its tensors are the trial's own: write them to disk before the generator continues.
    """

    record: Record
    rung: int | None
    improved: bool
    done: bool
    model: MultitaskBert | None
    snapshot: Callable[[], dict[str, Any]]


class _Stopped(Exception):
    """Ends the training of a trial that is to stop now."""


class _Draw(NamedTuple):
    """All that a step's passes depend on."""

    step: int
    starts: tuple[tuple[str, int], ...]  # the step's tasks in order, and in each one's stream the first example of its batch
    limit: int | None  # the most tokens of a pass


def train(
    config: TrialConfig, inputs: Inputs, snapshot: dict[str, Any] | None = None, stop: Callable[[], bool] = never
) -> Iterator[Progress]:
    """Train one trial, yielding Progress about a hundred times and at each rung.

    A rung falls after the first step that reaches it. If one step reaches several (a budget of a few steps), only the highest
    is reported, because the model is the same. The last rung is always reached, and is the last yield.
    Stages on texts come first and yield their own records; only one each if the cache has their result.
    snapshot: resume from it; the first yield is what comes after it.
    stop: called at each step and each pass of an evaluation. Once it returns True, a last yield has a record of the kind "stop"
    and the state of this moment. A pretraining saves its own state instead, and there is no such yield.
    Raises NotFiniteError, DoesNotFitError, and ValueError if a stage or the turns of a task schedule are too short.
    """
    config.check_turns(inputs.sizes)
    pretrainings = find(config, inputs)
    with indivisible("The trial"):
        for record in run_pretraining(pretrainings, config, inputs, stop):
            if not snapshot:  # else the trial's records already contain it
                yield Progress(record, None, False, False, None, dict)
        if pretrainings and stop():
            return
        if pretrainings:
            inputs = replace(inputs, encoder_folder=pretrainings[-1].folder)
        yield from _Trial(config, inputs, snapshot or None, stop).run()


class _Trial:
    def __init__(self, config: TrialConfig, inputs: Inputs, snapshot: dict[str, Any] | None, stop: Callable[[], bool]) -> None:
        self.config, self.inputs, self.stop = config, inputs, stop
        self.bench = Bench.of(config, inputs)
        self.model = self.bench.model
        self.total = config.num_examples(inputs.sizes)
        self.counters = Counters(drawn=dict.fromkeys(config.train_on, 0))
        self.snapshot_at_start = snapshot
        if snapshot is not None:
            self.counters = Counters(**snapshot["counters"])
            self.model.load_state_dict(snapshot["model"])
        rungs = config.budget.points
        self.points = {rung: math.ceil(self.total * rung / rungs[-1]) for rung in rungs}
        self.log = _Log(self.counters.examples)
        if snapshot is not None and "log" in snapshot:
            self.log.restore(snapshot["log"])
        self.started = time.monotonic() - self.counters.seconds
        self.ahead = Ahead(self._passes, self.bench.device)

    def run(self) -> Iterator[Progress]:
        try:
            yield from self._run_stages()
        except _Stopped:
            self.counters.seconds = time.monotonic() - self.started
            yield self._progress(self._record("stop"), None, False)
        finally:
            self.ahead.close()

    def _run_stages(self) -> Iterator[Progress]:
        stages = self.config.stage_plans()
        ends = stage_ends(self.config.stage_examples(self.inputs.sizes), self.total)
        for index, (stage, start, end) in enumerate(zip(stages, [0, *ends[:-1]], ends, strict=True)):
            if index >= self.counters.stage:
                if index > self.counters.stage:
                    self.counters.stage, self.counters.stage_step = index, 0
                yield from self._run_stage(stage, start, end)

    def _run_stage(self, stage: StagePlan, start: int, end: int) -> Iterator[Progress]:
        """Train from example `start` to example `end` of the trial.

        A step of the stage before may have overshot `start`, but not `end`: `check_turns` refuses a stage shorter than it.
        """
        counters, config = self.counters, self.config
        snapshot, self.snapshot_at_start = self.snapshot_at_start, None
        is_resumed = snapshot is not None and snapshot["counters"]["stage"] == counters.stage
        for task in stage.tasks if stage.fresh_heads and not is_resumed else ():
            self.model.renew_head(task, seed_of(config.seed, "fresh", counters.stage))
        weights, seed = config.loss_weights, seed_of(config.seed, "stage", counters.stage)
        self.stepper = Stepper(self.model, stage, weights, seed, self.bench.precision)
        if snapshot is not None and is_resumed:
            self.stepper.restore(snapshot)
        if (due := self._due_rung()) is not None:  # the snapshot was taken between the step that reached it and the evaluation
            yield self._evaluate(due)
        sizes = {name: self.inputs.sizes[name] for name in stage.tasks}
        batch_sizes = {name: self.model.plans[name].batch_size for name in stage.tasks}

        def tasks_at(stage_step: int, examples: int) -> tuple[str, ...]:
            at = StepAt(stage_step, (examples - start) / (end - start), sizes, batch_sizes, seed)
            return stage.task_schedule.tasks_of_step(at) if examples < end else ()

        names = tasks_at(counters.stage_step, counters.examples)
        while names:
            self._poll()
            num_examples = sum(batch_sizes[name] for name in names)
            before = counters.examples
            # the rate belongs to the step's middle, so that neither the first nor the last step is wasted on a rate of 0
            middle = (before + min(num_examples, end - before) / 2 - start) / (end - start)
            counters.examples += num_examples
            is_log = is_log_due(before, counters.examples, self.total)
            is_measure = is_measure_due(before, counters.examples, num_examples, self.total)
            following = tasks_at(counters.stage_step + 1, counters.examples)
            report = self._step(names, following, middle, is_log, is_measure)
            names = following
            counters.step += 1
            counters.stage_step += 1
            counters.passes += report.passes
            self.log.add(report)
            due = self._due_rung()
            if is_log or due is not None:
                record = self._train_record(stage, middle, report)
                record |= self.log.flush_groups() if due is not None else {}
                yield self._progress(record, None, False)
            if due is not None:
                yield self._evaluate(due)

    def _poll(self) -> None:
        if self.stop():
            raise _Stopped

    def _due_rung(self) -> int | None:
        """Return the highest rung that is reached and not yet reported."""
        reached = max((rung for rung, at in self.points.items() if at <= self.counters.examples), default=0)
        return reached if reached > self.counters.rung else None

    def _step(
        self, names: tuple[str, ...], following: tuple[str, ...], progress: float, measure: bool, measure_penalty: bool
    ) -> StepReport:
        """Train on the next examples of the tasks `names`, in smaller passes if memory does not suffice.

        following: the tasks of the step after it, whose passes may be prepared ahead; none after a stage's last step.
        """
        counters, starts = self.counters, self._starts(names)
        for name in names:
            counters.drawn[name] += self.model.plans[name].batch_size

        def attempt(limit: int | None, sizes: Sizes) -> StepReport:
            passes = self.ahead.take(_Draw(counters.step, starts, limit))
            if following:
                self.ahead.begin(_Draw(counters.step + 1, self._starts(following), limit))
            sizes += sizes_of(one.packed for one in passes)
            return self.stepper.step(counters.step, passes, progress, measure, measure_penalty)

        limit = counters.micro_batch_tokens or self.config.machine.micro_batch_tokens
        report, held = fitted(attempt, limit, self.bench.device, f"step {counters.step + 1}")
        if held != limit:
            counters.micro_batch_tokens = held
        return report

    def _starts(self, names: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
        return tuple((name, self.counters.drawn[name]) for name in names)

    def _passes(self, draw: _Draw) -> list[Pass]:
        """Draw a step's examples and pack them, ready on the device."""
        batches = {}
        for task, start in draw.starts:
            rows = self.bench.rows(task, seed_of(self.config.seed, "rows", task), start)
            batches[task] = self.bench.pack(task, rows, draw.limit)
        return self.stepper.passes(draw.step, batches, draw.limit)

    def _train_record(self, stage: StagePlan, progress: float, report: StepReport) -> Record:
        counters = self.counters
        counters.seconds = time.monotonic() - self.started
        rate = stage.optimizer.lr * stage.optimizer.lr_factor(progress)
        losses, figures = self.log.flush(counters.examples)
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise NotFiniteError(
                    f"The loss of {name} became {loss} by step {counters.step} ({counters.examples} examples); "
                    f"its learning rate was {rate:.2g}."
                )
        record = self._record("train") | {f"train/{name}_loss": loss for name, loss in losses.items()} | figures
        record |= {"train/lr": rate} | usage(self.bench.device)
        if counters.micro_batch_tokens is not None:
            record["train/micro_batch_tokens"] = counters.micro_batch_tokens
        return record | {f"train/{name}": value for name, value in report.figures.items()}

    def _evaluate(self, rung: int) -> Progress:
        """Evaluate on dev. If its rows are trained on, the model of the last rung is the trial's best, without a score."""
        counters = self.counters
        if not self.inputs.dev:
            counters.rung, counters.seconds = rung, time.monotonic() - self.started
            record = self._record("rung") | {"rung": rung, "stage": counters.stage}
            return self._progress(record, rung, rung == self.config.budget.points[-1])
        metrics, notes = evaluate_dev(self.model, self.config, self.inputs, self._poll)
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise NotFiniteError(
                f"Predictions of {', '.join(broken)} on dev are not finite after {counters.examples} examples."
            )
        counters.rung = rung
        value = score(metrics, self.config.known_tasks, self.config.objective)
        improved = value > counters.best_score
        if improved:
            counters.best_score, counters.best_rung = value, rung
        counters.seconds = time.monotonic() - self.started
        record = self._record("dev") | {"rung": rung, "stage": counters.stage, "dev/score": value, **notes}
        both = overall(metrics, self.config.known_tasks, self.config.objective)
        record |= {f"dev/{name}": number for name, number in {**metrics, **both}.items()}
        self.log.meter.restart()  # without the evaluation's time
        return self._progress(record, rung, improved)

    def _record(self, kind: str) -> Record:
        c = self.counters
        return {
            "kind": kind,
            "step": c.step,
            "examples": c.examples,
            "passes": c.passes,
            "time_ms": now_ms(),
            "seconds": round(c.seconds, 3),
        }

    def _progress(self, record: Record, rung: int | None, improved: bool) -> Progress:
        return Progress(record, rung, improved, rung == self.config.budget.points[-1], self.model, self._snapshot)

    def _snapshot(self) -> dict[str, Any]:
        return {
            "counters": asdict(self.counters),
            "model": self.model.state_dict(),
            "log": self.log.state(),
            **self.stepper.state(),
        }


class _Log:
    """Mean losses, speed and gradient cosines since the last record."""

    def __init__(self, examples: int) -> None:
        self.meter = Meter(examples)
        self.cosines: dict[str, list[float]] = {}
        self.groups: dict[str, tuple[float, int]] = {}  # pair and group -> sum of the cosines since the last evaluation, count

    def add(self, report: StepReport) -> None:
        self.meter.add(report.losses)
        for pair, cosine in report.cosines.items():
            self.cosines.setdefault(pair, []).append(cosine)
        for name, cosine in report.group_cosines.items():
            total, count = self.groups.get(name, (0.0, 0))
            self.groups[name] = total + cosine, count + 1

    def state(self) -> dict[str, Any]:
        """Return everything that the next record needs of the steps so far, but the speed."""
        sums = {name: total.detach().cpu() for name, total in self.meter.sums.items()}
        return {"sums": sums, "counts": self.meter.counts, "cosines": self.cosines, "groups": self.groups}

    def restore(self, state: dict[str, Any]) -> None:
        self.meter.sums, self.meter.counts, self.cosines = dict(state["sums"]), dict(state["counts"]), dict(state["cosines"])
        self.groups = dict(state.get("groups", {}))  # a snapshot from before 2026-11-27 has none

    def flush(self, examples: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean losses by name, and as figures of a record the speed and each pair of tasks' mean cosine and share of
        steps with conflicting gradients. Then begin again."""
        losses, speed = self.meter.flush(examples)
        figures = {}
        for pair, cosines in self.cosines.items():
            figures[f"train/cosine_{pair}"] = sum(cosines) / len(cosines)
            figures[f"train/conflicts_{pair}"] = sum(cosine < 0 for cosine in cosines) / len(cosines)
        self.cosines = {}
        return losses, figures | {"train/examples_per_second": speed}

    def flush_groups(self) -> dict[str, float]:
        """Return each pair's mean cosine per parameter group, `train/group_cosine/sst_para/layer.3`. Then begin again."""
        figures = {f"train/group_cosine/{name}": total / count for name, (total, count) in self.groups.items()}
        self.groups = {}
        return figures


def evaluate_dev(
    model: MultitaskBert, config: TrialConfig, inputs: Inputs, poll: Callable[[], None] | None = None
) -> tuple[dict[str, float], dict[str, bool]]:
    """Compute each task's dev metric, and a note `constant/<task>` if a regression's answers are all equal (its r is 0).

    `poll` is called after each pass.
    """
    metrics, notes = {}, {}
    precision = resolve_precision(config.machine.precision, next(model.parameters()).device)
    logits = {
        name: predict_logits(model, name, split, config.max_length, inputs.specials, precision, poll)
        for name, split in inputs.dev.items()
    }
    for name, logits_BK in logits.items():
        task, labels_B = model.plans[name].task, inputs.dev[name].labels
        assert labels_B is not None, "dev splits are read with labels"
        metrics[name] = metric(task, logits_BK, labels_B)
        if task.kind == "regression" and is_constant(predictions(task, logits_BK)):
            notes[f"constant/{name}"] = True
    return metrics, notes


class ForeignSnapshotError(ValueError):
    """A whole snapshot, but of another config than the one that would resume from it."""


def save_snapshot(path: Path, snapshot: dict[str, Any], records: list[Record], identity: str = "") -> None:
    """Write one file, durable, replaced atomically. It has all records so far: a kill between save and report loses none.

    identity: that of the trial's config, which alone resumes from it; "" if any may.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_state({**snapshot, "format": FORMAT, "identity": identity, "records": records}, path)


def load_snapshot(path: Path, identity: str = "") -> tuple[dict[str, Any], list[Record]]:
    """Read what `save_snapshot` wrote; earlier versions saved no identity.

    identity: that of the config which would resume from it; "" accepts a snapshot of any.
    Raises ValueError: damaged, or of another format; ForeignSnapshotError: of another config; OSError: unreadable.
    """
    snapshot = load_state(path)
    if not isinstance(snapshot, dict) or "records" not in snapshot:
        raise ValueError(f"{path} is not a complete snapshot (it has no records).")
    if (saved_format := snapshot.pop("format", 1)) != FORMAT:
        raise ValueError(f"{path} is a snapshot of format {saved_format}. This version resumes format {FORMAT}.")
    saved_identity = snapshot.pop("identity", "")
    if identity and saved_identity and saved_identity != identity:
        law = f"belongs to a trial with another config (identity {saved_identity}, not {identity})"
        remedy = "Put back the config.yaml of that trial, or move the snapshot away to start from the beginning"
        raise ForeignSnapshotError(f"{path} {law}. It was not read. {remedy}.")
    if "counters" in snapshot:  # a trial that has not taken a step, as during its pretraining, has none
        snapshot["counters"] = in_current_names(snapshot["counters"])
    return snapshot, [in_current_names(record) for record in snapshot.pop("records")]


def in_current_names(values: dict[str, Any]) -> dict[str, Any]:
    """Rename the keys of a record or of counters that an earlier version wrote: it called a rung `part`."""
    earlier = {"part": "rung", "best_part": "best_rung"}
    if earlier.keys().isdisjoint(values):
        return values
    return {earlier.get(name, name): value for name, value in values.items()}
