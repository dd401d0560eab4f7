"""What a search is going to do, settled before a process starts: name, folder, resources, budget. It becomes plan.json.

Everything a run would refuse is refused here: `Refused` (exit 3) where what was written is right but not here or not now,
SettingsError and ValueError (exit 2) where it is wrong anywhere.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from minbert_core.checkpoints import fetch_encoder
from minbert_core.config import TINY, TrialConfig
from minbert_core.data.corpus import fingerprint
from minbert_core.data.tasks import TASKS
from minbert_core.inputs import Inputs, build_encoder, data_folder, open_inputs
from minbert_core.model import build_model
from minbert_core.paths import as_written, flatten, lay_over
from minbert_core.settings import did_you_mean
from search.domains import Choice
from search.rungs import expected_full_trials
from search.space import Space, cover, default_choice, make_space

FORMAT = 1  # of a search's folder; a newer one is refused by name


class Refused(ValueError):
    """Right, but not here or not now: too few GPUs, a used name, a locked search. Exit code 3."""


@dataclass(frozen=True)
class Resources:
    """What a search may use, and how many trials that is at a time."""

    cpus: int
    gpus: float
    cpus_per_trial: int
    gpus_per_trial: float

    @property
    def slots(self) -> int:
        by_cpu = self.cpus // self.cpus_per_trial
        return min(by_cpu, int(self.gpus / self.gpus_per_trial + 1e-9)) if self.gpus_per_trial else by_cpu

    def __str__(self) -> str:
        each = f"{self.cpus_per_trial} CPU" + (f" and {self.gpus_per_trial:g} GPU" if self.gpus_per_trial else "")
        return f"{counted(self.slots, 'trial')} at a time, {each} each"


def find_resources(gpus: str, gpus_per_trial: float | None, cpus_per_trial: int, retry: str) -> Resources:
    """Resources from the command line; `retry` is the command up to the GPUs, for the line that works here.

    Raises Refused where the machine has less than was asked for.
    """
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former on Linux only
    present = torch.cuda.device_count()
    wanted = present if gpus == "auto" else int(gpus)
    if wanted > present:
        have = counted(present, "GPU") if present else "no GPU"
        at_once = f"{present} at a time" if present else f"{max(1, cpus // cpus_per_trial)} at a time on the CPU"
        raise Refused(
            f"--gpus {wanted} asks for more than this machine has ({have}). This works here, {at_once}:\n"
            f"  {retry} --gpus {present}"
        )
    if cpus_per_trial > cpus:
        raise Refused(f"--cpus-per-trial {cpus_per_trial} asks for more than this machine's {cpus} cores.")
    per_trial = (1.0 if gpus_per_trial is None else gpus_per_trial) if wanted else 0.0
    if per_trial > wanted:
        raise Refused(f"--gpus-per-trial {per_trial:g} asks for more than the {counted(wanted, 'GPU')} of this search.")
    return Resources(cpus, wanted, cpus_per_trial, per_trial)


def check_cluster(address: str) -> None:
    """Raise Refused where nothing answers at `address`; Ray itself would try for minutes. `local` means one's own."""
    host, _, port = address.rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise Refused(f"No Ray cluster answers at {address} ({error.strerror or error}).") from None


def machine_settings(resources: Resources) -> dict[str, Any]:
    """The `machine` of every trial of a search, chosen once: device, threads, precision, and what of a GPU it may take."""
    import torch

    from minbert_core.machine import resolve_precision

    device = "cuda" if resources.gpus_per_trial else "cpu"
    share = {"gpu_share": resources.gpus_per_trial} if 0 < resources.gpus_per_trial < 1 else {}
    precision = resolve_precision("auto", torch.device(device))
    return {"device": device, "threads": resources.cpus_per_trial, "precision": precision, **share}


def localise(space: Space, resources: Resources, configs: Iterable[TrialConfig]) -> Space:
    """The space with what belongs to this machine filled in: device, threads, precision, absolute data and encoder folders.

    configs: points that between them name every encoder of the space. Each is fetched here, once: the trials, which may run
    where there is no network, find its folder in place of its name. Labels stay as they are.
    Raises SettingsError or ValueError: no such folder, no such encoder.
    """
    document = dict(space.document)
    tree = document.get("config") or {}
    local = {"machine": lay_over(machine_settings(resources), tree.get("machine") or {})}
    config = space.sample(default_choice).config()
    if config.data != "toy":
        local["data"] = str(data_folder(config))
    document["config"] = {**tree, **local}
    checkpoints = {config.encoder.checkpoint for config in configs} - {TINY}
    encoders = {**space.encoders, **{name: str(fetch_encoder(name)) for name in sorted(checkpoints)}}
    return replace(make_space(space.name, document, space.where), encoders=encoders)


def branch_configs(space: Space) -> list[TrialConfig]:
    """Configs that between them take every pair of the space's branches, all else default; and its baselines."""
    switches = {name: found for name, found in space.domains().items() if isinstance(found[0], Choice)}
    points = [space.sample(lambda name, domain, f=forced: f.get(name, default_choice(name, domain)))  # type: ignore[misc]
              for forced in ({}, *cover(switches))]  # fmt: skip
    return [point.config() for point in (*points, *map(space.baseline, range(len(space.baselines))))]


@dataclass(frozen=True)
class Plan:
    """A search, resolved."""

    name: str
    space: Space
    seed: int
    num_trials: int
    resources: Resources
    config: TrialConfig  # the defaults' point, for what all trials share
    inputs: Inputs
    recipes: tuple[str, ...]
    examples: int  # a full trial's budget
    best_bytes: int  # the weights of the largest model
    snapshot_bytes: int  # of a trial of it

    @property
    def full_trials(self) -> float:
        settings, baselines = self.space.settings, len(self.space.baselines)
        return expected_full_trials(self.num_trials, baselines, len(self.recipes), settings.rungs, settings.trial_scheduler)

    def warnings(self) -> list[str]:
        """What may not be what was meant, as sentences: rows that max_length cuts, trials too few for halving."""
        sentences, max_length = [], self.config.max_length
        for name, split in self.inputs.train.items():
            percent = 100 * split.num_longer(self.config.task(name).pair_encoding.kind, max_length) / len(split)
            if percent >= 1:
                sentences.append(f"{name}: {percent:.0f} % of the rows are longer than max_length {max_length} and are cut.")
        settings, baselines = self.space.settings, len(self.space.baselines)
        few = settings.trial_scheduler.warning(settings.rungs, self.num_trials, baselines, len(self.recipes))
        return [*sentences, few] if few else sentences

    def lines(self, num_dropped: int | None = 5) -> list[str]:
        """The plan as the user reads it; of each file, `num_dropped` of the rows left out are named (None: all of them)."""
        config, inputs, rungs = self.config, self.inputs, self.space.settings.rungs
        domains = self.space.domains()
        width = max((len(name) for name in domains), default=0)
        objective = config.objective if isinstance(config.objective, str) else dict(config.objective.weights)
        parts = ", ".join(f"{math.ceil(self.examples * part / rungs[-1]):,}" for part in rungs)
        rows = ", ".join(f"{name} {len(inputs.train[name]):,}/{len(inputs.dev[name]):,}" for name in config.train_on)
        recipes = f"recipes   {len(self.recipes)}, each with its own rungs: {', '.join(self.recipes)}"
        return [
            f"search    {self.name}: {self.space.settings.about or '(no question given: `about`)'}",
            f"data      {inputs.data_folder} (train/dev rows: {rows})",
            *(f"data      {text}" for text in self.left_out(num_dropped)),
            f"encoder   {', '.join(dict.fromkeys((config.encoder.checkpoint, *self.space.encoders.values())))}",
            f"machine   {self.resources}; {config.machine.device}, {config.machine.precision}{self._gpu_memory()}",
            f"objective {objective} on dev, the best of a trial's evaluations at {parts} examples",
            f"budget    {self.examples:,} examples a full trial, {self._steps()}",
            f"trials    {self._trials()}",
            *([recipes] if len(self.recipes) > 1 else []),
            f"searched  {counted(len(domains), 'parameter')}",
            *(f"          {name:<{width}}  {domain}" for name, (domain, _) in domains.items()),
            *(f"warning   {text}" for text in self.warnings()),
        ]

    def left_out(self, at_most: int | None = None) -> list[str]:
        """A sentence for each file of which rows were dropped, naming them: `1 row of sts-dev.csv left out: line 12 (…)`."""
        sentences = []
        for name in self.config.train_on:
            for split in (self.inputs.train[name], self.inputs.dev[name]):
                if not split.dropped:
                    continue
                named = [f"line {row.line} ({row.id[:8]}…, {row.reason})" for row in split.dropped[:at_most]]
                if len(split.dropped) > len(named):
                    named.append(f"{len(split.dropped) - len(named)} more, which the search's log.txt names")
                file = split.task.files[split.name]
                sentences.append(f"{counted(len(split.dropped), 'row')} of {file} left out: {'; '.join(named)}")
        return sentences

    def _gpu_memory(self) -> str:
        if self.config.machine.device != "cuda" or self.config.machine.gpu_share == 1:
            return ""
        import torch

        whole = torch.cuda.get_device_properties(0).total_memory
        return f"; at most {self.config.machine.gpu_share * whole / 1e9:.1f} GB of GPU memory each"

    def _steps(self) -> str:
        batch_sizes = [self.config.task(name).batch_size for name in self.config.train_on]
        tasks_per_step = self.config.task_schedule.tasks_per_step(len(batch_sizes))
        batch = sum(batch_sizes) / len(batch_sizes) * tasks_per_step
        what = "a batch of each task" if tasks_per_step > 1 else "a batch of one task"
        return f"about {math.ceil(self.examples / batch):,} steps of {batch:g} ({what})"

    def _trials(self) -> str:
        baselines, settings = len(self.space.baselines), self.space.settings
        first = f", of which {counted(baselines, 'baseline runs', 'baselines run')} to the end" if baselines else ""
        law = settings.trial_scheduler.describe(settings.rungs)
        stops = f"; {law}" if law else ""
        cost = f"{self.full_trials:.1f} full trials, {self.full_trials * self.examples:,.0f} examples"
        return f"{self.num_trials}{first}{stops}; expected cost: {cost}"

    def document(self, arguments: list[str]) -> dict[str, Any]:
        """What plan.json holds: all that `--resume` and a reader need."""
        return {
            "format": FORMAT,
            "name": self.name,
            "space_name": self.space.name,
            "about": self.space.settings.about,
            "created": time.strftime("%FT%T%z"),
            "command": arguments,
            "seed": self.seed,
            "trials": self.num_trials,
            "gpus": self.resources.gpus,
            "gpus_per_trial": self.resources.gpus_per_trial,
            "cpus_per_trial": self.resources.cpus_per_trial,
            "examples": self.examples,
            "expected_full_trials": round(self.full_trials, 2),
            "data": self.config.data,
            "encoder": self.config.encoder.checkpoint,
            "encoders": dict(self.space.encoders),
            "objective": as_written(self.config.objective),
            "train_on": list(self.config.train_on),
            "fingerprints": self.fingerprints(),
            "git_commit": git_commit(),
            "versions": {name: version(name) for name in ("torch", "ray", "optuna", "mlflow", "pyarrow", "tokenizers")},
            "python": platform.python_version(),
            "baselines": [flatten(self.space.baseline(i).document) for i in range(len(self.space.baselines))],
        }

    def fingerprints(self) -> dict[str, str]:
        """sha256 of each train and dev file that the search reads."""
        files = {f"{name}-{split}": TASKS[name].files[split] for name in self.config.train_on for split in ("train", "dev")}
        return {key: fingerprint(self.inputs.data_folder / file) for key, file in files.items()}


def make_plan(name: str, space: Space, seed: int, num_trials: int | None, resources: Resources) -> Plan:
    """Resolve a search and read its data once (tokenised files are kept).  Raises what reading raises."""
    configs = branch_configs(space)
    space = localise(space, resources, configs)
    num_trials = num_trials or space.settings.trials
    if num_trials < len(space.baselines):
        raise ValueError(f"--trials {num_trials} leaves no room for the space's {counted(len(space.baselines), 'baseline')}.")
    config = space.sample(default_choice).config()
    inputs = open_inputs(config)
    best_bytes = 4 * max(map(_num_parameters, _of_each_encoder(space, configs)))
    trains_encoder = any(stage.trains_encoder for config in configs for stage in config.stage_plans())
    snapshot_bytes = best_bytes * (3 if trains_encoder else 1)  # AdamW's two moments beside the weights
    recipes = tuple(sorted({config.recipe for config in configs}))
    examples = config.num_examples(inputs.sizes)
    return Plan(name, space, seed, num_trials, resources, config, inputs, recipes, examples, best_bytes, snapshot_bytes)


def _of_each_encoder(space: Space, configs: Iterable[TrialConfig]) -> list[TrialConfig]:
    """Of the configs with the same encoder the one of the longest sequences, with the encoder's folder filled in."""
    longest = {config.encoder.checkpoint: config for config in sorted(configs, key=lambda config: config.max_length)}
    encoders = {name: config.encoder.model_copy(update={"checkpoint": space.encoders.get(name, name)})
                for name, config in longest.items()}  # fmt: skip
    return [config.model_copy(update={"encoder": encoders[name]}) for name, config in longest.items()]


def _num_parameters(config: TrialConfig) -> int:
    """Of the model that `config` describes. It is built, and the corpus tokenised for it: what is faulty shows here, not in
    every worker, and the workers find the token files."""
    model = build_model(config, build_encoder(config, open_inputs(config)))
    return sum(parameter.numel() for parameter in model.parameters())


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


# ------------------------------------------------------------------------------------------------------------- folders


def new_search_folder(runs: Path, name: str | None, default: str) -> Path:
    """The folder of a new search, not yet made: `name`, else the space's name, then -2, -3 …  Raises Refused: a used name."""
    if name is not None:
        if (runs / name).exists():
            raise Refused(f"The name '{name}' is used ({runs / name}). Go on with it: --resume {name}; or give another --name.")
        return runs / name
    number = 1
    while (folder := runs / (default if number == 1 else f"{default}-{number}")).exists():
        number += 1
    return folder


def make_search_folder(runs: Path, name: str | None, default: str) -> Path:
    """As `new_search_folder`, and made: if another search takes a default name at the same moment, the next is taken."""
    while True:
        folder = new_search_folder(runs, name, default)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        (folder / "trials").mkdir()
        return folder


def lock(folder: Path) -> IO[str]:
    """Hold the search's lock until the returned file is closed or the process dies.  Raises Refused: somebody else does."""
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with file:
            file.seek(0)
            holder = file.read().strip() or "another process"
        raise Refused(f"The search in {folder} is running already ({holder}).") from None
    file.seek(0)
    file.truncate()
    file.write(f"pid {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def wait_for_workers(folder: Path, timeout_seconds: float = 60) -> None:
    """Wait until no worker of a killed driver writes to a trial any more; Ray ends them some seconds after it.

    Raises Refused where one is still there after `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    for path in sorted(folder.glob("trials/*/log.txt")):
        with path.open("a") as log:
            while True:
                try:
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        number = path.parent.name
                        raise Refused(f"A worker of the interrupted search still runs trial {number} in {folder}.") from None
                    time.sleep(0.2)


def read_plan(folder: Path) -> dict[str, Any]:
    """A search's plan.json.  Raises ValueError: no search there, or one of a newer format."""
    path = folder / "plan.json"
    if not path.exists():
        known = sorted(other.parent.name for other in folder.parent.glob("*/plan.json"))
        raise ValueError(f"There is no search '{folder.name}' in {folder.parent}{did_you_mean(folder.name, known)}")
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is broken ({error}); without it the search cannot be read.") from None
    if plan.get("format", 0) > FORMAT:
        raise ValueError(f"{path} has format {plan['format']}; this version reads up to {FORMAT}.")
    return plan


def git_commit() -> str:
    """The commit of the code, with `+changes` where the tree differs; empty outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+changes" if changed else "")
