"""A contender: a configuration of the user's own (`--config FILE`), retrained and tested next to those of the search.

    FILE ─► what it leaves out is the search's: data, encoder, tasks, objective, budget, precision ─► checks ─► a trial

It has no records: it was not chosen on dev, and the search claims nothing for it. What else FILE leaves out has its default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minbert_core.config import TOY, TrialConfig
from minbert_core.data.tasks import Task
from minbert_core.files import cache_folder, replaced, user_path
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml, read_yaml
from minbert_core.settling import local_encoder
from minbert_core.train.__main__ import read
from search.study.trials import TrialResult

FINALISTS = "finalists"  # the name of their ensemble
SHARED = ("data", "own_tasks", "train_on", "objective", "budget")  # and encoder/checkpoint
PART_OF_THE_METHOD = ("precision", "micro_batch_tokens")  # of `machine`; the others say where a model is trained


def read_contenders(files: Sequence[Path], like: TrialConfig, relocated: Mapping[str, str]) -> list[TrialResult]:
    """Read the user's configurations as trials with the numbers -1, -2 … and the names of their files.

    like: the config of a finalist.  relocated: a folder as the search names it -> where it is now.
    Raises ValueError: a fault of the file or of its name, two files of one name, or other data or tasks than the search's.
    """
    names = [file.stem for file in files]
    for file in files:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", file.stem) or file.stem.isdigit() or file.stem == FINALISTS:
            raise ValueError(
                f"{file}: its name becomes that of its models, so without the ending it must consist of letters, digits, _ "
                f"and -, not of digits alone, as a trial's does, and not be {FINALISTS}. Rename the file."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"Each --config needs a name of its own, which is its file's. Got {', '.join(names)}.")
    return [_read(file, like, relocated, -1 - i) for i, file in enumerate(files)]


def _read(file: Path, like: TrialConfig, relocated: Mapping[str, str], number: int) -> TrialResult:
    document, _ = read_yaml(file)
    given = document if isinstance(document, dict) else {}
    _check_data(file, given.get("data", like.data), like, relocated)
    config = read(file, _inherited(given, like))
    _check_tasks(file, config, like)
    if config.rows != "train":
        raise ValueError(
            f"{file}: `rows` must be train, because dev decides which evaluation is kept. Got {config.rows}. Omit it."
        )
    encoder = config.encoder.checkpoint
    if encoder != like.encoder.checkpoint:
        encoder = local_encoder(encoder)
    settled = config.encoder.model_copy(update={"checkpoint": encoder})
    config = config.model_copy(update={"data": like.data, "encoder": settled})
    return TrialResult(
        number, "completed", "given", {"config": file.name}, None, _stored(config), [], noted_recipe=config.recipe
    )


def _inherited(given: Mapping[str, Any], like: TrialConfig) -> list[str]:
    """Return the settings that a file leaves to the search, as `--set` writes them."""
    written = as_written(like)
    found = {key: written[key] for key in SHARED if key not in given and key in written}
    machine = given.get("machine")
    found |= {
        f"machine/{key}": written["machine"][key]
        for key in PART_OF_THE_METHOD
        if key in written.get("machine", {}) and not (isinstance(machine, dict) and key in machine)
    }
    own = given.get("encoder")
    if own is None or (isinstance(own, dict) and "checkpoint" not in own):
        found["encoder/checkpoint"] = like.encoder.checkpoint
    return [f"{path}={json.dumps(value)}" for path, value in found.items()]


def _check_data(file: Path, data: object, like: TrialConfig, relocated: Mapping[str, str]) -> None:
    """Raise ValueError if a file names other data than the search's."""
    if _place(str(data)) not in {_place(like.data), _place(relocated.get(like.data, like.data))}:
        raise ValueError(
            f"{file}: all models must answer the same rows, so `data` must be the search's, {like.data}. Got {data}. Omit it."
        )


def _check_tasks(file: Path, config: TrialConfig, like: TrialConfig) -> None:
    """Raise ValueError if a contender lacks a task of the search, or declares it otherwise."""
    other = [name for name in like.train_on if _task(config, name) != _task(like, name)]
    if other:
        raise ValueError(
            f"{file}: `train_on` must hold the search's tasks, {', '.join(like.train_on)}, as the search declares them. "
            f"Missing or different: {', '.join(other)}. Omit `train_on` and `own_tasks`, or give them in full."
        )


def _place(data: str) -> str:
    return data if data == TOY else str(user_path(data).absolute())


def _task(config: TrialConfig, name: str) -> Task | None:
    return config.known_tasks[name] if name in config.train_on else None


def _stored(config: TrialConfig) -> Path:
    """Write the config to the cache, under its identity, so that it is read as a trial's is; return its folder."""
    folder = cache_folder() / "contenders" / config.identity
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / "config.yaml", many_writers=True) as draft:
        draft.write_text(dump_yaml(as_written(config)), encoding="utf-8")
    return folder
