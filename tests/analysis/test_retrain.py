"""Retraining one model: killed anywhere it goes on to the same end; what another config left is not gone on from."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis.retrain import Job, answer, make_ready, retrain
from analysis.test_split import open_test_splits
from minbert_core.config import TrialConfig
from minbert_core.data.tasks import TASKS
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.model import build_model, save_model
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml

ROOT = Path(__file__).resolve().parents[2]
WORKER = """\
import sys
from pathlib import Path
from analysis.retrain import Job, retrain
sys.exit(bool(retrain(Job(0, 0, Path(sys.argv[1])), {})))
"""


@pytest.fixture
def text(tiny: Callable[..., TrialConfig]) -> str:
    """A config of ten steps."""
    return dump_yaml(as_written(tiny()))


@pytest.fixture
def long_text(tiny: Callable[..., TrialConfig]) -> str:
    """A config of thirty steps, long enough to be killed in its middle."""
    return dump_yaml(as_written(tiny(budget={"examples": 720})))


def new_job(folder: Path, text: str) -> Job:
    job = Job(0, 0, folder)
    make_ready(job, text)
    return job


def dev_scores(job: Job) -> list[float]:
    return [record["dev/score"] for record in job.records() if record["kind"] == "dev"]


def start(job: Job) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(job.folder)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, "a minute has passed"
        time.sleep(0.01)


def test_a_killed_training_goes_on_to_the_same_end(tmp_path: Path, long_text: str) -> None:
    whole = new_job(tmp_path / "whole", long_text)
    assert retrain(whole, {}) == ""
    killed = new_job(tmp_path / "killed", long_text)
    worker = start(killed)
    wait_for(lambda: len(dev_scores(killed)) == 1)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert not killed.is_done
    make_ready(killed, long_text)
    assert retrain(killed, {}) == ""
    assert killed.is_done
    assert "resumes after" in (killed.folder / "log.txt").read_text()
    assert dev_scores(killed) == dev_scores(whole)
    assert [record["step"] for record in killed.records()] == [record["step"] for record in whole.records()]
    assert (killed.folder / "best" / "heads.safetensors").read_bytes() == (
        whole.folder / "best" / "heads.safetensors"
    ).read_bytes()
    assert not (killed.folder / "state").exists()


def test_another_config_is_trained_anew(tmp_path: Path, text: str) -> None:
    job = new_job(tmp_path / "job", text)
    assert retrain(job, {}) == ""
    other = text.replace("lr: 0.001", "lr: 0.002")
    assert other != text
    make_ready(job, other)
    assert not job.is_done
    assert sorted(path.name for path in job.folder.iterdir()) == ["config.yaml", "log.txt"]


def test_a_finished_one_stays_as_it_is(tmp_path: Path, text: str) -> None:
    job = new_job(tmp_path / "job", text)
    assert retrain(job, {}) == ""
    (job.folder / "state").mkdir()  # its worker was killed before it had cleared up
    before = (job.folder / "metrics.jsonl").stat().st_mtime_ns
    make_ready(job, text)
    assert job.is_done
    assert not (job.folder / "state").exists()
    assert retrain(job, {}) == ""
    assert (job.folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_finished_one_stays_whatever_the_machine_but_not_in_another_precision(tmp_path: Path, text: str) -> None:
    """A command with other threads, or a probe that found torch's products faster than oneDNN's, trained it again."""
    job = new_job(tmp_path / "job", text)
    assert retrain(job, {}) == ""
    document = yaml.safe_load(text)
    document["machine"] = document.get("machine", {}) | {"matmul": "onednn", "threads": 2, "gpu_share": 0.5}
    make_ready(job, yaml.safe_dump(document))
    assert job.is_done
    document["machine"]["precision"] = "bfloat16"
    make_ready(job, yaml.safe_dump(document))
    assert not job.is_done


def test_a_snapshot_that_cannot_be_read_is_not_gone_on_from(tmp_path: Path, text: str) -> None:
    job = new_job(tmp_path / "job", text)
    (job.folder / "state").mkdir()
    (job.folder / "state" / "snapshot.pt").write_bytes(b"half")
    (job.folder / "metrics.jsonl").write_text(json.dumps({"kind": "dev", "step": 1, "dev/score": 9.0}) + "\n")
    assert retrain(job, {}) == ""
    assert "is not a complete snapshot" in (job.folder / "log.txt").read_text()
    assert len(dev_scores(job)) == 3
    assert max(dev_scores(job)) < 1


def test_a_worker_that_outlives_its_driver_is_waited_for(tmp_path: Path, long_text: str) -> None:
    job = new_job(tmp_path / "job", long_text)
    worker = start(job)
    wait_for(lambda: bool(job.records()))
    assert retrain(job, {}) == ""  # returns once the other is done, and trains nothing itself
    assert worker.wait() == 0
    assert (job.folder / "log.txt").read_text().count(" starts") == 1


def test_a_worker_answers_test_from_the_drivers_splits_and_opens_no_test_file(
    tmp_path: Path, tiny: Callable[..., TrialConfig], make_encoder: Callable[[Path, Path], None]
) -> None:
    config, folder = tiny(train_on=["sst", "para"]), tmp_path / "data"
    shutil.copytree(open_inputs(config).data_folder, folder)
    make_encoder(tmp_path / "encoder", folder / "vocab.txt")
    config = tiny(train_on=["sst", "para"], data=str(folder), encoder=str(tmp_path / "encoder"))
    inputs, ledger = open_inputs(config), tmp_path / "ledger.jsonl"
    save_model(build_model(config, build_encoder(config, inputs)), config, tmp_path / "model", inputs.encoder_folder)
    tokenizers = {"mine": inputs.tokenizer}
    tests = open_test_splits([TASKS["sst"]], folder, tokenizers, ledger, {"models": ["000-kept"]})["mine"]
    assert ledger.read_text() == '{"models": ["000-kept"]}\n'
    for task in TASKS.values():
        (folder / task.files["test"]).unlink()
    answer(tmp_path / "model", {}, {name: copy.copy(split) for name, split in tests.items()}, tmp_path / "out")
    names = {path.name: len(np.load(path)) for path in (tmp_path / "out").iterdir()}
    assert names == {"sst-dev.npy": 40, "sst-test.npy": 10, "para-dev.npy": 40}


def test_a_failure_is_a_reason(tmp_path: Path, text: str) -> None:
    job = new_job(tmp_path / "job", text.replace("lr: 0.001", "lr: 1.0e+30"))
    reason = retrain(job, {})
    assert reason
    assert not job.is_done
    assert "Traceback" in (job.folder / "log.txt").read_text()
