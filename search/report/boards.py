"""The record of a search as TensorBoard reads it: a folder per trial in `runs/NAME/tensorboard`, next to MLflow's record.

    tensorboard --logdir runs/smart/tensorboard

The x of a curve is the number of examples. While a search runs, its files only grow, by the points that they lack: an open
TensorBoard sees each point once, also of a trial that is retried and measures some again. A resumed search writes them from the
trials' records. A fault, such as a full disk, ends this record, not the search.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from minbert_core.files import message
from search.study.listeners import OtherRecord
from search.study.trials import TrialResult
from search.tracking.runs import points_of

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

FOLDER = "tensorboard"  # in that of the search
Arguments = ParamSpec("Arguments")


class Boards(OtherRecord):
    """The listener of a search that writes TensorBoard's files."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say, self.is_on = folder / FOLDER, say, True
        self.files: dict[int, EventsWriter] = {}  # of the trials that have not ended
        self.written: dict[int, set[tuple[str, int]]] = {}  # the metrics and x in each of these files

    def started(self, trial: TrialResult, resumed: bool) -> None:
        self._unless_at_fault(self._write, trial)

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        self._unless_at_fault(self._write, trial)

    def ended(self, trial: TrialResult) -> None:
        self._unless_at_fault(self._end, trial)

    def close(self, was_interrupted: bool) -> None:
        """Close the files of the trials that have not ended."""
        self._unless_at_fault(self._close)

    def _close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()

    def _unless_at_fault(self, method: Callable[Arguments, None], *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        """Call a method; after its first fault, which is said, call none."""
        if not self.is_on:
            return
        try:
            method(*args, **kwargs)
        except OSError as error:
            self.is_on = False
            self.say(f"{message(error)} TensorBoard's files end here. Training continues; --resume writes them.")

    def _begin(self, number: int) -> None:
        """Begin the file of a trial, in place of one that an earlier process has left."""
        from tensorboardX.event_file_writer import EventsWriter  # here, because it takes a quarter of a second

        place = self.folder / f"{number:03d}"
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
        self.files[number], self.written[number] = EventsWriter(str(place / "events")), set()

    def _write(self, trial: TrialResult) -> None:
        """Add the points of a trial that its file lacks."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        if trial.number not in self.files:
            self._begin(trial.number)
        file, written = self.files[trial.number], self.written[trial.number]
        for record in trial.records:
            for key, value, x, time_ms in points_of(record):
                if (key, x) not in written:
                    written.add((key, x))
                    file.write_event(Event(summary=scalar(key, value), step=x, wall_time=time_ms / 1000))
        file.flush()

    def _end(self, trial: TrialResult) -> None:
        """Write what the file lacks, then the parameters and the names of the scores, which TensorBoard shows under HPARAMS."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import hparams

        self._write(trial)
        file = self.files.pop(trial.number)
        del self.written[trial.number]
        scores = {key: 0.0 for key in trial.best if key.startswith("dev/")} if trial.points else {}
        params = {path: value if isinstance(value, bool | int | float) else str(value) for path, value in trial.params.items()}
        for summary in hparams(params, scores):
            file.write_event(Event(summary=summary))
        file.close()
