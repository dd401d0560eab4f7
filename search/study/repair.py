"""The repair of a search before `--resume`: what one of its files has lost is restored from another.

    lost or damaged                 restored from
    study.journal, or its end       trials/*/trial.json
    trial.json                      study.journal
    config.yaml                     the trial's parameters in the study, sampled again, with the identity in the study
    evaluations in metrics.jsonl    study.journal, which holds the dev records

Everything is checked before anything is written. A damaged file is kept as NAME.damaged. What no file knows, and files that
contradict each other, end in a ValueError. Each repair replaces a whole file, so a kill leaves it to the next `--resume`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from minbert_core.config import TrialConfig
from minbert_core.config_checks import read_config
from minbert_core.files import replaced
from minbert_core.seeds import seed_of
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml
from minbert_core.train.folder import write_records
from minbert_core.train.trial import Record
from minbert_core.words import counted
from search.space.space import Sample, Space
from search.study.checked import checked_records
from search.study.entry import identity_of, trial_folder, write_entry
from search.study.gather import Gathered, began, gather
from search.study.journal import keep_damaged, mend_journal, undo_last_ask, write_journal
from search.study.limits import PASSES, with_passes


@dataclass
class Repairs:
    """The result of a repair: sentences about what it did, and the checked records of the trials."""

    sentences: list[str] = field(default_factory=list)
    records: dict[int, list[Record]] = field(default_factory=dict)  # by number


@dataclass(frozen=True)
class _Step:
    sentence: str  # "" if it concerns nobody
    act: Callable[[], None]


def config_text(
    sample: Sample, search_seed: int, number: int, passes_of: Callable[[TrialConfig], int | None]
) -> tuple[str, dict[str, Any]]:
    """Return the content of a trial's config.yaml, with the trial's own seed, and the note about it for the study.

    passes_of: the most tokens per pass, if those of the config are not expected to fit into memory (limits.py).
    """
    document = {**sample.document, "seed": seed_of(search_seed, "trial", number) % 2**31}
    config = Sample(sample.params, document, sample.where).config()
    passes = passes_of(config)
    config = with_passes(config, passes)
    text = dump_yaml(as_written(config))
    note = {"identity": config.identity, "sha256": digest(text.encode()), "recipe": config.recipe}
    return text, note if passes is None else note | {PASSES: passes}


def digest(data: bytes) -> str:
    """Return the first 16 digits of the sha256 of a file's content."""
    return hashlib.sha256(data).hexdigest()[:16]


def write_config(folder: Path, text: str) -> None:
    """Write config.yaml in a trial's folder, which it creates."""
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / "config.yaml", durable=True) as draft:
        draft.write_text(text, encoding="utf-8")


def repair(folder: Path, space: Space, seed: int) -> Repairs:
    """Check all files of a search's study, and restore what is lost.

    Only the process that holds the search's lock may call this, before it opens the study.
    Raises ValueError, and writes nothing then: a trial that no file knows, or files that contradict each other; OSError.
    """
    gathered = gather(folder, space.name)
    repairs, steps = Repairs(), list(_journal_steps(folder, space.name, gathered))
    for trial in gathered.trials:
        if not began(folder, trial):
            continue
        path = trial_folder(folder, trial.number)
        if identity_of(trial):
            steps += _config_steps(path, trial, space, seed)
            steps += _entry_steps(path, trial, gathered.copies.get(trial.number))
        repairs.records[trial.number] = _check_records(path, trial, steps)
    for step in steps:
        step.act()
    repairs.sentences = [step.sentence for step in steps if step.sentence]
    return repairs


def _journal_steps(folder: Path, study_name: str, gathered: Gathered) -> list[_Step]:
    journal, num_lost = gathered.journal, len(gathered.lost)
    mend = _Step("", partial(mend_journal, folder))
    if not num_lost and not (journal.fault and gathered.trials):
        return [mend, _Step("", partial(undo_last_ask, folder, journal.operations))]
    what = "was deleted" if journal.fault == "it is missing" else f"was damaged ({journal.fault or 'its end was cut off'})"
    sentence = f"study.journal {what}: {counted(num_lost, 'trial')} restored from the trials' folders"
    return [_Step(sentence, partial(write_journal, folder, study_name, gathered.trials)), mend]


def _config_steps(path: Path, trial: FrozenTrial, space: Space, seed: int) -> list[_Step]:
    """Return the step that restores config.yaml, if it is lost.  Raises ValueError if it differs from the study's entry."""
    file, known = path / "config.yaml", trial.user_attrs["config"]
    if file.exists():
        if digest(file.read_bytes()) == known["sha256"]:
            return []
        try:
            if (identity := read_config(file).identity) == known["identity"]:
                return []
            differs = f"{file} differs from the config that the study has for this trial (identity {identity}, not "
            remedy = "Put back the original, or delete the file: --resume writes it again."
            raise ValueError(f"{differs}{known['identity']}). {remedy}")
        except SettingsError:
            pass  # it is damaged
    text, note = _sampled_again(path, trial, space, seed)
    if note["identity"] != known["identity"]:
        lost = "is damaged" if file.exists() else "is missing"
        raise ValueError(
            f"{file} {lost}, and the trial's parameters in the study do not lead to its config again, because space.yaml "
            "or the program has changed. Put back config.yaml."
        )

    def act() -> None:
        keep_damaged(file)
        write_config(path, text)

    begins = not file.exists() and not trial.state.is_finished() and not (path / "metrics.jsonl").exists()
    return [_Step("" if begins else f"{path.name}/config.yaml was lost: restored from study.journal", act)]


def _sampled_again(path: Path, trial: FrozenTrial, space: Space, seed: int) -> tuple[str, dict[str, Any]]:
    baseline = trial.user_attrs.get("baseline")
    try:
        sample = space.sample(lambda name, _: trial.params[name]) if baseline is None else space.baseline(baseline)
        return config_text(sample, seed, trial.number, lambda _: trial.user_attrs["config"].get(PASSES))
    except (KeyError, IndexError, ValueError):  # a parameter, a branch or a baseline that the space does not have
        return "", {"identity": ""}


def _entry_steps(path: Path, trial: FrozenTrial, copy: FrozenTrial | None) -> list[_Step]:
    """Return the step that writes trial.json, if it is missing, damaged or older than the journal."""
    if copy is not None and _facts(copy) == _facts(trial):
        return []
    return [_Step("", partial(write_entry, path, trial))]


def _facts(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.state, trial.params, trial.user_attrs, trial.intermediate_values


def _check_records(path: Path, trial: FrozenTrial, steps: list[_Step]) -> list[Record]:
    """Return a trial's checked records, and add the step that restores metrics.jsonl, if it is damaged."""
    checked, file = checked_records(path, trial), path / "metrics.jsonl"
    if checked.restored or checked.num_unreadable:
        parts = [f"{counted(checked.num_unreadable, 'line')} unreadable"] if checked.num_unreadable else []
        if checked.restored:
            parts += [f"{counted(len(checked.restored), 'evaluation')} restored from study.journal"]
        lost = "records of training between them may be lost"

        def act() -> None:
            keep_damaged(file)
            write_records(file, checked.records)

        steps.append(_Step(f"{path.name}/metrics.jsonl was damaged: {', '.join(parts)}; {lost}", act))
    return checked.records
