"""The files that the trials of a search read, put into its storage: the files of data and texts, and the encoders.

Only what train and dev need is read; the test files stay here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from minbert_core.checkpoints import FILES
from minbert_core.commands import Refused
from minbert_core.config import TOY, TrialConfig, pretraining_texts
from minbert_core.data.tasks import SPLITS
from minbert_core.encoder_files import weight_files
from search.cluster.inputs import Supplies, offer
from search.cluster.storage import Storage
from search.plan.plan import Plan, branch_configs


def offered(plan: Plan) -> Supplies:
    """Put the plan's data and encoders into its storage, unless they are there. Return them under both of a folder's paths.

    Raises StorageFault; Refused: a text that is not in the data folder.
    """
    uri, places = plan.resources.storage, dict[str, str]()
    if not uri:
        return Supplies()
    storage = Storage(uri).patient()
    if plan.config.data != TOY:
        folder = plan.inputs.data_folder
        places[plan.config.data] = places[str(folder)] = offer(storage, folder, files_of(branch_configs(plan.space), folder))
    for recorded in dict.fromkeys(plan.space.encoders.values()):
        folder = Path(plan.relocated.get(recorded, recorded))
        places[recorded] = places[str(folder)] = offer(storage, folder, encoder_files(folder))
    return Supplies(uri, places)


def files_of(configs: Iterable[TrialConfig], folder: Path) -> list[str]:
    """List the files of a data folder that trials of these configs read.  Raises Refused: a text outside it."""
    names = set()
    for config in configs:
        texts = [text for stage in config.pretraining for text in pretraining_texts(config, stage)]
        for name in (*config.train_on, *texts):
            if name in config.known_tasks:
                names |= {config.known_tasks[name].file(split) for split in SPLITS}
            elif not Path(os.path.normpath(folder / name)).is_relative_to(folder) or name.startswith("~"):
                raise Refused(f"With --storage, the texts of a stage have to be in the data folder, {folder}. Got {name}.")
            else:
                names.add(name)
    return sorted(names)


def encoder_files(folder: Path) -> list[str]:
    """List the files of an encoder's folder that are read."""
    present = {path.name for path in weight_files(folder)} | {name for name in FILES if (folder / name).is_file()}
    return sorted(present)
