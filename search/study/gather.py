"""The trials of a search as its journal and its trials' folders know them together. It only reads.

    study.journal, trials/*/trial.json -> gather -> entries, one per number -> result_of, with metrics.jsonl -> TrialResult

Each knows what the other does: an entry that the journal has lost is taken from the trial's folder, an evaluation that
metrics.jsonl has lost from the entry. Two files that contradict each other are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState, create_trial

from minbert_core.train.trial import Record
from search.study.checked import checked_records
from search.study.entry import UNSOUND, check_entry, identity_of, read_entry, trial_folder
from search.study.journal import Journal, read_journal
from search.study.trials import Status, TrialResult

TRACES = ("config.yaml", "metrics.jsonl", "best", "state")  # in a trial's folder: it was asked for, or has trained


@dataclass(frozen=True)
class Gathered:
    """The entries of a search's trials, by number, without a gap."""

    trials: list[FrozenTrial]
    journal: Journal
    lost: list[int]  # trials whose entry, or its last changes, only their folder has
    copies: dict[int, FrozenTrial]  # what the folders know


def trial_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield (number, folder) of each trial that has a folder."""
    for path in sorted((folder / "trials").glob("[0-9]*")):
        if path.name.isdigit() and path.name == f"{int(path.name):03d}" and path.is_dir():
            yield int(path.name), path


def gather(folder: Path, study_name: str) -> Gathered:
    """Read the entries of a search's trials from its journal and from their folders.

    Raises ValueError: a trial that neither knows, or that they know differently; OSError.
    """
    folders = dict(trial_folders(folder))  # before the journal, which a running search writes first
    copies = {number: entry for number, path in folders.items() if (entry := read_entry(path)) is not None}
    journal = read_journal(folder, study_name)
    recorded = {trial.number: trial for trial in journal.trials if _is_sound(trial)}
    _check_numbers(folder, copies, recorded)
    trials, lost = [], []
    for number in range(max([*recorded, *copies], default=-1) + 1):
        entry, copy = recorded.get(number), copies.get(number)
        if copy is not None and (entry is None or _is_behind(entry, copy)):
            lost.append(number)
            entry = copy
        trials.append(_void(number) if entry is None else entry)
    for number, path in folders.items():
        has_begun = any((path / name).exists() for name in TRACES)
        if has_begun and not (number < len(trials) and began(folder, trials[number])):
            raise ValueError(
                f"{path} belongs to no trial that is known: {_why(journal)}, and the folder has no readable trial.json. "
                "Restore study.journal from a copy, or move that folder away."
            )
    return Gathered(trials, journal, lost, copies)


def _is_sound(trial: FrozenTrial) -> bool:
    try:
        check_entry(trial)
    except UNSOUND:
        return False
    return True


def _why(journal: Journal) -> str:
    return (
        f"study.journal is damaged ({journal.fault})"
        if journal.fault
        else "study.journal does not have it, or not as this program writes it"
    )


def _check_numbers(folder: Path, copies: dict[int, FrozenTrial], recorded: dict[int, FrozenTrial]) -> None:
    """Raise ValueError for a folder that is another trial's."""
    for number, copy in copies.items():
        path = trial_folder(folder, number)
        if copy.number != number:
            raise ValueError(f"{path} is the folder of trial {copy.number:03d}, by its trial.json. Give it its name back.")
        known = identity_of(recorded[number]) if number in recorded else ""
        if known and known != identity_of(copy):
            raise ValueError(
                f"{path} and study.journal disagree about the config of trial {number:03d} (identity {identity_of(copy)} and "
                f"{known}), so one of them belongs to another search. Put back the one that belongs here."
            )


def _is_behind(entry: FrozenTrial, copy: FrozenTrial) -> bool:
    """Return whether the journal lacks something that the folder knows. In this order they are written."""
    is_ended = entry.state.is_finished()
    return not is_ended and (copy.state.is_finished() or bool(copy.user_attrs.keys() - entry.user_attrs.keys()))


def _void(number: int) -> FrozenTrial:
    """Return an entry for a number whose trial never began, or has left no trace."""
    attributes = {"void": True, "status": "failed", "reason": "study.journal was damaged, and it has no folder"}
    entry = create_trial(state=TrialState.FAIL, user_attrs=attributes)
    entry.number = number
    return entry


def began(folder: Path, trial: FrozenTrial) -> bool:
    """Return whether a trial counts: it was asked for, it has its config, and it is not void.

    The study of an older search does not note the config; there the file counts.
    """
    if trial.state == TrialState.WAITING or "void" in trial.user_attrs:
        return False
    return bool(identity_of(trial)) or (trial_folder(folder, trial.number) / "config.yaml").exists()


# ----------------------------------------------------------------------------------------------------------- the results


def result_of(folder: Path, trial: FrozenTrial, records: list[Record]) -> TrialResult:
    """Return a trial as its entry and its records show it. folder: the search's."""
    attributes, is_ended = trial.user_attrs, trial.state.is_finished()
    status: Status = attributes["status"] if is_ended else "running"
    return TrialResult(
        number=trial.number,
        status=status,
        reason=attributes["reason"] if is_ended else "",
        params=dict(trial.params),
        baseline=attributes.get("baseline"),
        folder=trial_folder(folder, trial.number),
        records=records,
        deaths=attributes.get("deaths", 0),
        noted_recipe=attributes["config"]["recipe"] if identity_of(trial) else "",
    )


def read_results(folder: Path, study_name: str) -> list[TrialResult]:
    """Read every trial of a search that began, without writing anything, as `analysis` needs it.

    Raises ValueError: files that contradict each other, or a trial that neither journal nor folder knows; OSError.
    """
    trials = [trial for trial in gather(folder, study_name).trials if began(folder, trial)]
    return [result_of(folder, trial, _records(folder, trial)) for trial in trials]


def _records(folder: Path, trial: FrozenTrial) -> list[Record]:
    return checked_records(trial_folder(folder, trial.number), trial).records
