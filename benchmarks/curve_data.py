"""The data of recorded curves: the course's training files, and a part of the dev rows."""

from __future__ import annotations

from pathlib import Path

from minbert_core.data.tasks import TASKS

TRAIN_ON = ("sst", "para", "sts")
DEV_ROWS = 300  # per task; the same rows for every trial, so that differences between trials are of the trials


def reduced_data(data: Path, folder: Path, dev_rows: int) -> Path:
    """Make a folder with links to the training files, and dev files of at most `dev_rows` evenly spaced rows. Return it."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for task in (TASKS[name] for name in TRAIN_ON):
            (folder / task.file("train")).symlink_to((data / task.file("train")).absolute())
            head, *rows = (data / task.file("dev")).read_text(encoding="utf-8").splitlines(keepends=True)
            step = max(1.0, len(rows) / dev_rows)
            kept = [rows[int(i * step)] for i in range(min(dev_rows, len(rows)))]
            (folder / task.file("dev")).write_text(head + "".join(kept), encoding="utf-8")
    return folder.absolute()
