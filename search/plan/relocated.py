"""The current folders of a search's data and encoders, which may have moved.

A search's folder may be moved, also to another machine. The configs of its trials do not change. Whenever files are opened,
the folders in them are replaced by the current ones.

    plan.json, --data, --encoder -> find_relocated -> {recorded folder: folder here} -> relocated_config -> open_inputs

Another folder is accepted only if its fingerprint is the one in plan.json.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from minbert_core.checkpoints import fetch_encoder
from minbert_core.commands import Refused
from minbert_core.config import TINY, TOY, TrialConfig
from minbert_core.data.corpus import fingerprint
from minbert_core.encoder_files import weight_files
from minbert_core.files import user_path
from minbert_core.model import TOKENIZER_FILES

if TYPE_CHECKING:  # a worker needs no file of a space
    from search.plan.folder import PlanRecord


def relocated_config(config: TrialConfig, relocated: Mapping[str, str]) -> TrialConfig:
    """Return the config with the current folders, to open files with. It must not be stored."""
    checkpoint = config.encoder.checkpoint
    encoder = config.encoder.model_copy(update={"checkpoint": relocated.get(checkpoint, checkpoint)})
    return config.model_copy(update={"data": relocated.get(config.data, config.data), "encoder": encoder})


def find_relocated(record: PlanRecord, config: TrialConfig, data: str | None, encoder: str | None) -> dict[str, str]:
    """Map each folder in a search's record to its place here.

    config: the config of any trial. data, encoder: the values of --data and --encoder, or None.
    Raises Refused if a folder is missing or has other content, ValueError if a given folder does not exist.
    """
    return data_place(record, config, data) | _encoder_places(record, encoder)


def moved(relocated: Mapping[str, str]) -> dict[str, str]:
    """Return the folders of `relocated` that moved. plan.json keeps them, so that they need to be given only once."""
    return {recorded: place for recorded, place in relocated.items() if recorded != place}


def data_place(record: PlanRecord, config: TrialConfig, given: str | None) -> dict[str, str]:
    """Map the recorded data folder to its place here; {} for the toy corpus. It raises as `find_relocated` does."""
    recorded = record.data
    if recorded == TOY:
        if given not in (None, TOY):
            raise Refused(f"The search {record.name} is on the toy corpus, which every machine has. Omit --data.")
        return {}
    place = user_path(given).absolute() if given is not None else _known_place(record, recorded)
    if place is None:
        raise Refused(f"The data of the search {record.name} was in {recorded}, which is not here. Give its folder: --data DIR")
    if not place.is_dir():
        raise ValueError(f"The data folder {place} does not exist.")
    changed = [key for key, digest in record.fingerprints.items() if _digest(key, config, place) != digest]
    if changed:
        raise Refused(
            f"The data in {place} differs from the search's data ({', '.join(sorted(changed))}), so its trials could not be "
            "compared. Give the folder of the original data with --data DIR, or start a new search."
        )
    return {recorded: str(place)}


def _digest(key: str, config: TrialConfig, folder: Path) -> str:
    name, _, split = key.rpartition("-")
    task = config.known_tasks[name]
    return fingerprint(folder / task.file("train" if split == "train" else "dev"), task)


def _encoder_places(record: PlanRecord, named: str | None) -> dict[str, str]:
    names: Mapping[str, str] = record.encoders
    folders = list(dict.fromkeys(names.values()))
    if not folders:
        if named not in (None, TINY):
            raise Refused(f"The search {record.name} has the tiny encoder, which every machine has. Omit --encoder.")
        return {}
    digests: Mapping[str, str] = record.encoder_fingerprints
    given = fetch_encoder(named) if named is not None else None
    matches = [folder for folder in folders if given and encoder_fingerprint(given) == digests.get(folder)]
    if given and not matches:
        raise Refused(f"The encoder in {given} differs from the encoder of the search {record.name}. Give that one's folder.")
    relocated = {folder: str(given) for folder in matches}
    for folder in folders:
        if folder in relocated:
            continue
        place = _known_place(record, folder) or _fetched(name for name, known in names.items() if known == folder)
        if place is None:
            remedy = "Only one can be given: link to it from there." if matches else "Give its folder: --encoder DIR"
            raise Refused(f"The encoder of the search {record.name} was in {folder}, which is not here. {remedy}")
        if digests.get(folder) not in (None, encoder_fingerprint(place)):
            raise Refused(
                f"The encoder in {place} differs from the search's encoder, so its trials could not be compared. Give the "
                "folder of the original encoder with --encoder DIR, or start a new search."
            )
        relocated[folder] = str(place)
    return relocated


def _known_place(record: PlanRecord, recorded: str) -> Path | None:
    """Return the folder's place as an earlier command gave it, else the recorded folder; None if neither exists."""
    candidates = [Path(record.moved.get(recorded, recorded)), Path(recorded)]
    return next((folder for folder in candidates if folder.is_dir()), None)


def _fetched(names: Iterable[str]) -> Path | None:
    """Fetch an encoder by its name in the space; the hub's models are downloaded again."""
    for name in names:
        with contextlib.suppress(ValueError):  # not on the hub, or a folder of another machine
            return fetch_encoder(name)
    return None


def encoder_fingerprint(folder: Path) -> str:
    """Return the sha256 of an encoder's weights and tokenizer files; half a second for BERT-base."""
    whole = hashlib.sha256()
    for path in (folder / "config.json", *weight_files(folder), *(folder / name for name in TOKENIZER_FILES)):
        if path.exists():
            with path.open("rb") as file:
                whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
