"""The dev/test firewall: a search opens no test file.

Its proof: directories stand in place of the test files, so whoever opened one would fail, and an audit hook in the driver and
in every worker writes down each such attempt. That the hook would notice is shown, too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minbert_core.config import TrialConfig
from minbert_core.data.tasks import TASKS
from minbert_core.data.toy import toy_folder
from tests.search.searching import ROOT, assert_healthy, assert_whole, rungs

TEST_FILES = [task.files["test"] for task in TASKS.values()]
SPACE = """\
trials: 2
rungs: [1, 3, 9]
baselines: [{}]
config:
  budget: {examples: 600}
  optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}
"""
HOOK = """\
import os, sys

WHO = "worker" if any("default_worker" in word for word in sys.orig_argv) else "driver"

def note(event, arguments):
    path = os.fsdecode(arguments[0]) if event == "open" and isinstance(arguments[0], (str, bytes)) else ""
    if "test-student" in path or path.endswith("-dev.csv"):
        file = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, f"{WHO} {os.path.basename(path)}\\n".encode())
        os.close(file)

sys.addaudithook(note)
"""


@pytest.fixture
def watched(tmp_path: Path, cache: Path) -> dict[str, str]:
    """The environment of a process that writes down the files it opens."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OPENED": str(tmp_path / "opened")}


def opened(folder: Path) -> set[str]:
    return set((folder / "opened").read_text().splitlines())


def test_the_hook_notices_who_opens_a_test_file(tmp_path: Path, cache: Path, watched: dict[str, str]) -> None:
    load = "import sys; from pathlib import Path; from analysis import test_split; from minbert_core.data import tasks; "
    load += "[test_split.load_test_split(Path(sys.argv[1]), task) for task in tasks.TASKS.values()]"
    subprocess.run([sys.executable, "-c", load, toy_folder(cache / "minbert")], env=watched, check=True)
    assert opened(tmp_path) == {f"driver {name}" for name in TEST_FILES}


def test_a_search_opens_no_test_file_runs_its_baselines_to_the_end_and_prints_its_own_lines_only(
    tmp_path: Path, data: Path, encoder: Path, watched: dict[str, str], store: Path
) -> None:
    """Neither the course's test files nor that of a task of one's own."""
    own_test = "mine-test-student.jsonl"
    for name in (*TEST_FILES, own_test):
        (data / name).mkdir()
    rows = [{"text": f"the actor is {word}", "label": int(word == "great")} for word in ("great", "awful") for _ in range(20)]
    (data / "mine.jsonl").write_text(
        "".join(json.dumps(row | {"text": f"{row['text']} {i}"}) + "\n" for i, row in enumerate(rows))
    )
    shutil.copy(store, tmp_path / "mlflow.db")
    own = {"mine": {"kind": "binary", "files": {"train": "mine.jsonl", "test": own_test}, "text": "text"}}
    (tmp_path / "small.yaml").write_text(SPACE)
    command = [sys.executable, "-m", "search.run", "--space", "small.yaml", "--data", str(data), "--encoder", str(encoder)]
    command += ["--gpus", "0", "--set", f"own_tasks={json.dumps(own)}", "--set", "train_on=[sst, para, sts, mine]"]
    done = subprocess.run(command, cwd=tmp_path, env=watched, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = opened(tmp_path)
    assert {line for line in seen if "test" in line} == set()
    dev_files = [TASKS[name].files["dev"] for name in TrialConfig().train_on]
    assert seen == {f"{who} {name}" for who in ("driver", "worker") for name in dev_files}  # the hook was there, in both

    trials = assert_whole(tmp_path / "runs" / "small", 2)
    assert_healthy(tmp_path, "small", trials)
    assert [trial.baseline for trial in trials] == [0, None]
    assert (trials[0].status, rungs(trials[0])) == ("completed", [1, 3, 9])  # a baseline runs to the end
    # quiet: the plan, then our own lines, then the table; no box, progress bar or warning of anybody else's
    events = done.stdout[done.stdout.index("\nmlflow ") :].strip().splitlines()[1:]
    closing = next(i for i, line in enumerate(events) if not line)
    event = re.compile(r"\[\d\d:\d\d:\d\d\] 00[01] (started|at|completed|stopped)")
    assert all(event.match(line) for line in events[:closing]), done.stdout
    assert events[closing + 1].startswith("2 trials: ")
    assert events[-1] == "next      python analysis/best_to_test.py --search small"
