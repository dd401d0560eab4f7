"""The record of a search as TensorBoard reads it: a folder per trial in `runs/NAME/tensorboard`, next to MLflow's record.

    tensorboard --logdir runs/smart/tensorboard

The x of a curve is the number of examples. A trial's file is written again from its own records when it ends, and when its
search is resumed. So a kill leaves no gap and no point twice. A fault, such as a full disk, ends this record, not the search.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from minbert_core.files import message
from search.study.trials import TrialResult
from search.tracking.runs import Record, points_of

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

FOLDER = "tensorboard"  # in that of the search
Arguments = ParamSpec("Arguments")


class Boards:
    """The listener of a search that writes TensorBoard's files."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say, self.is_on = folder / FOLDER, say, True
        self.files: dict[int, EventsWriter] = {}  # of the trials that run

    def pretrained(self, record: dict[str, Any]) -> None:
        """Do nothing: only trials have a folder."""

    def replay(self, trials: list[TrialResult]) -> None:
        for trial in trials:
            if trial.status == "running":
                self.started(trial, resumed=True)
            else:
                self.ended(trial)

    def started(self, trial: TrialResult, resumed: bool) -> None:
        self._unless_at_fault(self._begin, trial)

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        self._unless_at_fault(self._add, trial.number, new)

    def paused(self, trial: TrialResult, why: str) -> None:
        """Do nothing: its curve continues later."""

    def retried(self, trial: TrialResult, why: str) -> None:
        """Do nothing: what it measures again is known."""

    def ended(self, trial: TrialResult) -> None:
        self._unless_at_fault(self._end, trial)

    def _unless_at_fault(self, method: Callable[Arguments, None], *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        """Call a method; after its first fault, which is said, call none."""
        if not self.is_on:
            return
        try:
            method(*args, **kwargs)
        except OSError as error:
            self.is_on = False
            self.say(f"{message(error)} TensorBoard's files end here. Training continues; --resume writes them.")

    def _begin(self, trial: TrialResult) -> None:
        """Write the file of a trial, from its first record on; it stays open."""
        from tensorboardX.event_file_writer import EventsWriter  # here, because it takes a quarter of a second

        if file := self.files.pop(trial.number, None):
            file.close()
        place = self.folder / f"{trial.number:03d}"
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
        self.files[trial.number] = EventsWriter(str(place / "events"))
        self._add(trial.number, trial.records)

    def _add(self, number: int, records: Sequence[Record]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for record in records:
            for key, value, examples, time_ms in points_of(record):
                event = Event(summary=scalar(key, value), step=examples, wall_time=time_ms / 1000)
                self.files[number].write_event(event)
        self.files[number].flush()

    def _end(self, trial: TrialResult) -> None:
        """Write the whole file, then the parameters with the best scores, which TensorBoard shows under HPARAMS."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import hparams

        self._begin(trial)
        file = self.files.pop(trial.number)
        scores = {key: 0.0 for key in trial.best if key.startswith("dev/")} if trial.points else {}
        params = {path: value if isinstance(value, bool | int | float) else str(value) for path, value in trial.params.items()}
        for summary in hparams(params, scores):
            file.write_event(Event(summary=summary))
        file.close()
