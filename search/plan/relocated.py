"""Where a search's data and encoders lie now.

A search's folder may be moved, to another machine too. Its trials' configs stay as they are: the folders that they name are
looked up here whenever files are opened.

    plan.json, --data, --encoder -> find_relocated -> {recorded folder: folder here} -> relocated_config -> open_inputs

Content decides, not place: what lies elsewhere is taken only if its fingerprint is that of plan.json.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from minbert_core.checkpoints import fetch_encoder
from minbert_core.commands import Refused
from minbert_core.config import TINY, TOY, TrialConfig
from minbert_core.data.corpus import fingerprint
from minbert_core.encoder_files import weight_files
from minbert_core.files import user_path
from minbert_core.model import TOKENIZER_FILES
from search.plan.folder import PlanRecord


def relocated_config(config: TrialConfig, relocated: Mapping[str, str]) -> TrialConfig:
    """The config with its folders where they lie here: to open files by, never to be stored."""
    checkpoint = config.encoder.checkpoint
    encoder = config.encoder.model_copy(update={"checkpoint": relocated.get(checkpoint, checkpoint)})
    return config.model_copy(update={"data": relocated.get(config.data, config.data), "encoder": encoder})


def find_relocated(record: PlanRecord, config: TrialConfig, data: str | None, encoder: str | None) -> dict[str, str]:
    """Where each folder that a search's record names lies here.

    record: its plan.json; config: any of its trials'; data and encoder: what the command line says, None where nothing.
    Raises Refused: not here, or other content. ValueError: no such folder.
    """
    return _data_place(record, config, data) | _encoder_places(record, encoder)


def moved(relocated: Mapping[str, str]) -> dict[str, str]:
    """What of `relocated` plan.json keeps, so that the next command needs no word about it."""
    return {recorded: place for recorded, place in relocated.items() if recorded != place}


def _data_place(record: PlanRecord, config: TrialConfig, told: str | None) -> dict[str, str]:
    recorded = record.data
    if recorded == TOY:
        if told not in (None, TOY):
            raise Refused(f"The search {record.name} is on the toy corpus, which every machine has. Leave --data away.")
        return {}
    place = user_path(told).absolute() if told is not None else _known_place(record, recorded)
    if place is None:
        raise Refused(f"The data of the search {record.name} lay in {recorded}, which is not here. Say where: --data DIR")
    if not place.is_dir():
        raise ValueError(f"There is no data folder {place}.")
    changed = [key for key, digest in record.fingerprints.items() if _digest(key, config, place) != digest]
    if changed:
        raise Refused(
            f"The data in {place} is not what the search began with ({', '.join(sorted(changed))}): its trials could not be "
            "compared. Say with --data DIR where that data lies, or start a new search."
        )
    return {recorded: str(place)}


def _digest(key: str, config: TrialConfig, folder: Path) -> str:
    name, _, split = key.rpartition("-")
    task = config.known_tasks[name]
    return fingerprint(folder / task.file("train" if split == "train" else "dev"), task)


def _encoder_places(record: PlanRecord, told: str | None) -> dict[str, str]:
    names: Mapping[str, str] = record.encoders
    folders = list(dict.fromkeys(names.values()))
    if not folders:
        if told not in (None, TINY):
            raise Refused(f"The search {record.name} has the tiny encoder, which every machine has. Leave --encoder away.")
        return {}
    digests: Mapping[str, str] = record.encoder_fingerprints
    given = fetch_encoder(told) if told is not None else None
    matches = [folder for folder in folders if given and encoder_fingerprint(given) == digests.get(folder)]
    if given and not matches:
        raise Refused(f"The encoder in {given} is not what the search {record.name} began with. Say where that one lies.")
    relocated = {folder: str(given) for folder in matches}
    for folder in folders:
        if folder in relocated:
            continue
        place = _known_place(record, folder) or _fetched(name for name, known in names.items() if known == folder)
        if place is None:
            remedy = "Only one can be named: make a link to it there." if matches else "Say where: --encoder DIR"
            raise Refused(f"The encoder of the search {record.name} lay in {folder}, which is not here. {remedy}")
        if digests.get(folder) not in (None, encoder_fingerprint(place)):
            raise Refused(
                f"The encoder in {place} is not what the search began with: its trials could not be compared. Say with "
                "--encoder DIR where that encoder lies, or start a new search."
            )
        relocated[folder] = str(place)
    return relocated


def _known_place(record: PlanRecord, recorded: str) -> Path | None:
    """Where an earlier command was told that the folder lies, else its own place; None where there is neither."""
    candidates = [Path(record.moved.get(recorded, recorded)), Path(recorded)]
    return next((folder for folder in candidates if folder.is_dir()), None)


def _fetched(names: Iterable[str]) -> Path | None:
    """An encoder by the name under which the space has it: a model of the hub comes again."""
    for name in names:
        with contextlib.suppress(ValueError):  # not there, or a folder of another machine
            return fetch_encoder(name)
    return None


def encoder_fingerprint(folder: Path) -> str:
    """sha256 of an encoder's files, weights and tokenizer: half a second for BERT-base."""
    whole = hashlib.sha256()
    for path in (folder / "config.json", *weight_files(folder), *(folder / name for name in TOKENIZER_FILES)):
        if path.exists():
            with path.open("rb") as file:
                whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
