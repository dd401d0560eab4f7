"""The plan of a search that `--resume NAME` continues, built from the search's own record for this machine.

With both --space FILE and --resume NAME, the search is started if it does not exist. A requeued cluster job can so repeat its
command.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from minbert_core.commands import Refused
from minbert_core.settings.models import NAME
from minbert_core.settings.yaml import dump_yaml
from search.cluster.reach import check_storage
from search.options import SearchOptions
from search.plan.folder import PlanRecord, check_format, has_begun, read_own_space, read_plan
from search.plan.on_cluster import cluster_resources
from search.plan.plan import Plan, make_plan
from search.plan.relocated import find_relocated, moved
from search.plan.resources import Resources, find_resources
from search.space.file import read_document
from search.space.space import default_choice, make_space
from search.tracking.store import store_fault


def resumes(options: SearchOptions, runs: Path) -> bool:
    """Return whether the command resumes a search in `runs` rather than starts one.  Raises ValueError if it does neither."""
    if options.space is None and options.resume is None:
        raise ValueError("Give --space FILE (a new search), --resume NAME (resume one), or both (resume NAME, or start it).")
    if options.resume is not None and options.name is not None:
        raise ValueError("--resume already names the search. Omit --name.")
    if options.resume is None:
        return False
    if options.space is None or has_begun(runs / options.resume):
        return True
    if not NAME.fullmatch(options.resume):
        raise ValueError(f"The search's name, given with --resume, may consist of a-z, 0-9, _ and -. Got '{options.resume}'.")
    return False


def resumed_plan(options: SearchOptions, folder: Path, retry: str) -> tuple[Plan, PlanRecord]:
    """Return the plan of the search in `folder`, and its updated record.

    retry: as in find_resources.
    Raises ValueError if there is no such search or an option contradicts it. Raises Refused for other hardware, another space,
    or data that is missing or changed.
    """
    record = read_plan(folder)
    check_format(record)
    _check_asked(options, record)
    space = replace(make_space(record.space_name, read_own_space(folder, record)), encoders=record.encoders)
    per_trial = options.gpus_per_trial if options.gpus_per_trial is not None else record.gpus_per_trial or None
    resources = _resources(options, record, per_trial, retry)
    uri = options.tracking_uri or record.tracking_uri
    if uri is not None and (fault := store_fault(uri)):
        raise Refused(fault)
    num_trials = options.trials or record.trials
    if num_trials < record.trials:
        raise ValueError(f"--trials may only be raised. The search has {record.trials}. Got {num_trials}.")
    relocated = find_relocated(record, space.sample(default_choice).config(), options.data, options.encoder)
    plan = make_plan(record.name, space, record.seed, num_trials, resources, relocated)
    return plan, replace(record, trials=num_trials, tracking_uri=uri, moved=moved(relocated))


def asked_space(options: SearchOptions) -> str:
    """Return the sha256 of the space that the user asks for, with --set, without --data and --encoder, which may move."""
    assert options.space is not None, "called with a space only"
    document, _ = read_document(options.space, options.set)
    return hashlib.sha256(dump_yaml(document).encode()).hexdigest()


def _check_asked(options: SearchOptions, record: PlanRecord) -> None:
    """Refuse a command whose space or seed differs from those of the search, which keeps both."""
    if options.space is None:
        if given := [flag for flag in ("set", "seed", "from_") if getattr(options, flag) not in (None, ())]:
            raise ValueError(f"--resume takes all settings from the search's record. Omit --{given[0].rstrip('_')}.")
    elif asked_space(options) != record.space_sha256:
        given_space = options.space if isinstance(options.space, Path) else "the one given"
        raise Refused(
            f"The search {record.name} keeps the space that it began with. {given_space}, with --set, now differs from it. "
            "Resume without --space and --set (--trials N adds trials), or start the new space under another name."
        )
    if options.seed not in (None, record.seed):
        raise Refused(f"The search {record.name} keeps its seed {record.seed}. Got --seed {options.seed}. Omit it.")


def _resources(options: SearchOptions, record: PlanRecord, per_trial: float | None, retry: str) -> Resources:
    """Return the resources for a search that is resumed: those that it had, or on a cluster those that this one has."""
    import torch

    cpus, storage = options.cpus_per_trial or record.cpus_per_trial, _storage(options, record)
    if options.address == "local":
        gpus = options.gpus or str(int(record.gpus))
        _check_hardware(record, torch.cuda.is_available() and gpus != "0")
        return replace(find_resources(gpus, per_trial, cpus, retry), storage=storage)
    resources = cluster_resources(options.address, options.gpus or "auto", per_trial, cpus, storage)
    _check_hardware(record, resources.gpus_per_trial > 0)
    return resources


def _storage(options: SearchOptions, record: PlanRecord) -> str:
    """Return the storage of a search, or "".  Raises Refused: it cannot be used now, or another is given."""
    if options.storage not in (None, record.storage):
        where = f"the storage {record.storage}" if record.storage else "its own folder"
        raise Refused(f"The search {record.name} has its snapshots in {where}. Got --storage {options.storage}. Omit it.")
    if record.storage:
        check_storage(record.storage)
    return record.storage or ""


def _check_hardware(record: PlanRecord, resumes_on_gpu: bool) -> None:
    """Raise Refused if a search that began on GPUs would resume without, or the other way round."""
    began_on_gpu = record.gpus_per_trial > 0
    if began_on_gpu != resumes_on_gpu:
        began, now = ("GPUs", "the CPU") if began_on_gpu else ("the CPU", "GPUs")
        raise Refused(
            f"The search {record.name} started on {began} and would now resume on {now}, so its trials could not be compared. "
            "Resume it on the same hardware, or start a new search."
        )
