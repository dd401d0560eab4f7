"""Further pretraining before the first trial. Inside a trial, it would block the slots of all trials that begin with it.

    branches, baselines -> known_chains -> one Pretrainer each (Ray, with a trial's cores and share of a GPU) -> records

The result is cached (minbert_core/train/pretraining.py), where every trial finds it. A stopped pretraining resumes from there.
If the sampler chooses values of the pretraining itself, it is unknown beforehand, and the first trial that begins with it runs
it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from minbert_core.commands import Refused
from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.inputs import Inputs, open_inputs
from minbert_core.methods.stages import Pretraining
from minbert_core.settings.paths import as_written
from minbert_core.train.pretrained import Pretrained, Record, find
from minbert_core.train.pretraining import run_pretraining
from search.cluster.inputs import Supplies, bring_pretrained, send_pretrained
from search.plan.relocated import relocated_config
from search.plan.resources import Resources, cause_of
from search.space.domains import Domain, Range
from search.space.space import Sample, Space

KINDS = "|".join(stage.model_fields["kind"].default for stage in get_args(get_args(Pretraining)[0]))
VALUES = ("encoder/", "max_length", "machine/micro_batch_tokens")  # what determines its weights in addition to the stage
LOOK_SECONDS = 0.5  # between two checks whether to stop
STOP_SECONDS = 30  # for a stopped one to save its state: a step, and a file of the weights and the moments of AdamW


@dataclass(frozen=True)
class Chain:
    """The further pretrainings that a trial begins with, one after the other, and a config that begins with them."""

    config: TrialConfig  # with its current folders
    inputs: Inputs
    ones: list[Pretrained]


def chains(points: Iterable[Sample], relocated: Mapping[str, str]) -> list[Chain]:
    """Return the chains of some points, once each, without those that are the start of another."""
    by_key: dict[str, Chain] = {}
    configs = {_what_decides(config): config for point in points if (config := point.config()).pretraining}
    for config in configs.values():  # few, because finding one reads its texts
        local = relocated_config(config, relocated)
        inputs = open_inputs(local)
        ones = find(local, inputs)
        by_key.setdefault(ones[-1].key, Chain(local, inputs, ones))
    begins = {one.key for chain in by_key.values() for one in chain.ones[:-1]}
    return [chain for key, chain in by_key.items() if key not in begins]


def _what_decides(config: TrialConfig) -> tuple[Hashable, ...]:
    """Return a key of a config's chain. Configs of one space with equal keys have equal chains."""
    return config.encoder, config.pretraining, config.max_length, config.train_on, config.machine


def known_chains(
    branches: Iterable[Sample], baselines: Iterable[Sample], space: Space, relocated: Mapping[str, str]
) -> list[Chain]:
    """Return the chains known before the sampler chooses: those of baselines, and of branches that leave no value open."""
    domains = space.domains()
    known = [point for point in branches if not any(_decides(name, domains[name][0]) for name in point.params)]
    return chains([*known, *baselines], relocated)


def _decides(name: str, domain: Domain) -> bool:
    """Return whether a searched parameter is a value that determines a pretraining's weights, not a branch of the space."""
    is_own = re.match(rf"stages/\d+/({KINDS})/", name) is not None
    return is_own or (isinstance(domain, Range) and name.startswith(VALUES))


# ---------------------------------------------------------------------------------------------------------------- making


class Pretrainer:
    """A chain in its own process, record by record. `stop` works during `next`, as it runs in another thread."""

    def __init__(self, document: dict[str, Any], supplies: Supplies) -> None:
        self.document, self.supplies = document, supplies
        self.stopped = threading.Event()
        self.records: Iterator[Record] | None = None

    def next(self) -> Record | None:
        """Return the next record; None at the end, or once it is stopped and its state saved."""
        if self.records is None:
            config = relocated_config(load_config(self.document), self.supplies.fetched())
            inputs = open_inputs(config)
            self.ones = find(config, inputs)
            if self.supplies.uri:
                bring_pretrained(self.supplies.storage, self.ones)
            self.records = run_pretraining(self.ones, config, inputs, self.stopped.is_set)
        record = next(self.records, None)
        if record is None and self.supplies.uri:
            send_pretrained(self.supplies.storage, self.ones)
        return record

    def stop(self) -> None:
        self.stopped.set()


def make_chains(
    known: Iterable[Chain],
    resources: Resources,
    listen: Callable[[Record], None],
    is_stopped: Callable[[], bool],
    supplies: Supplies | None = None,
) -> bool:
    """Run the chains that are not cached yet, as many at a time as trials. Return whether all are done. Ray must run.

    listen: receives each record. is_stopped: called twice per second. supplies: for nodes that do not see this one's folders.
    Raises Refused if a chain fails.
    """
    import ray

    actor: Any = ray.remote(concurrency_groups={"stop": 1})(Pretrainer)  # type: ignore[call-overload]  # unknown to its stubs
    remote = actor.options(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial)
    missing = [chain for chain in known if not all(one.is_cached for one in chain.ones)]
    makers = {remote.remote(as_written(chain.config), supplies or Supplies()): chain for chain in missing}
    asked, training = {maker.next.remote(): maker for maker in makers}, set[Any]()
    try:
        while asked and not is_stopped():
            for done in ray.wait(list(asked), timeout=LOOK_SECONDS)[0]:
                maker = asked.pop(done)
                if (record := _record(done, makers[maker])) is not None:
                    listen(record)
                    asked[maker.next.remote()] = maker
                    training.add(maker)
                else:
                    ray.kill(maker)  # its cores are for the next chain
        stopping = [done for done, maker in asked.items() if maker in training]  # the others have nothing to save
        for done in stopping:
            asked[done].stop.options(concurrency_group="stop").remote()
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
        return not asked
    finally:
        for maker in makers:
            ray.kill(maker)


def _record(done: Any, chain: Chain) -> Record | None:
    """Return the record from a Pretrainer.  Raises Refused if it failed."""
    import ray

    try:
        record: Record | None = ray.get(done)
    except ray.exceptions.RayError as error:
        names = " or ".join(one.name for one in chain.ones if not one.is_cached)
        raise Refused(f"The further pretraining {names} failed, so no trial was started: {cause_of(error)}") from None
    return record
