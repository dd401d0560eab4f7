"""A search that follows its cluster: it starts as many trials as there is room for, and knows which were lost with a node.

start_ray -> following: every node sees the folders, or the storage -> Room -> StudySearcher.num_slots, StudySearcher.lost_node
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from minbert_core.files import cache_folder
from search.cluster.inputs import Supplies
from search.cluster.reach import reached
from search.cluster.room import Room
from search.cluster.sharing import folders_of, shared
from search.plan.offered import offered
from search.plan.plan import Plan
from search.study.pulse import read_process
from search.study.searcher import StudySearcher

REMEDY = "Choose one on a disk that all nodes see, or give --storage URI, for nodes that share none."


@contextlib.contextmanager
def following(plan: Plan, searcher: StudySearcher, say: Callable[[str], None]) -> Iterator[Supplies]:
    """Within the block the searcher starts as many trials as the plan's resources have room for, on a cluster at any time.

    It yields what processes need that do not see this machine's folders.

    say: called with a sentence for each node that joins or leaves.
    Raises Refused if a node of the cluster does not see the folders of the search, or its storage, before any trial.
    """
    resources, files, storage = plan.resources, searcher.study.files, plan.resources.storage
    if not resources.cluster:
        searcher.num_slots = lambda: resources.slots
        with files.at_work(supplies := offered(plan)):
            yield supplies
        return
    encoders = [Path(plan.relocated.get(folder, folder)) for folder in plan.space.encoders.values()]
    written, read = folders_of(searcher.study.folder.parent, cache_folder(), plan.inputs.data_folder, encoders)
    with reached(storage) if storage else shared(written, read, REMEDY) as check:
        each = resources.cpus_per_trial, resources.gpus_per_trial
        room = Room(*each, resources.most_gpus, check, say, resources.nodes)
        room.begin()
        searcher.num_slots = room.slots
        searcher.lost_node = lambda folder: room.lost(process.node if (process := read_process(folder)) else None)
        with files.at_work(supplies := offered(plan)):
            yield supplies
