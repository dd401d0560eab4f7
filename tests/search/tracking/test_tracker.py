"""MLflow as a reader of its pages would find it, on real SQLite stores."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from search.tracking import outage
from search.tracking.artifacts import has_store
from search.tracking.experiment import compare_lines
from search.tracking.runs import Runs, SearchRecord
from search.tracking.store import (
    dashboard_command,
    database_of,
    parse_tracking_uri,
    prepare_store,
    sqlite_uri,
    store_fault,
    store_uri,
    ui_command,
)
from search.tracking.tracker import Tracker
from tests.search.tracking.reading import START, begin, history, pages, record

ROOT = Path(__file__).resolve().parents[3]
PREPARE = "import sys; from search.tracking.store import prepare_store; prepare_store(sys.argv[1])"


def test_a_search_of_three_trials_leaves_a_healthy_tree(
    track: Callable[..., Tracker], uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = track()
    for number in range(3):
        begin(tracker, number, tmp_path)
        tracker.submit(Runs.records, number, [record(160, "train", train_lr=1e-5), record(160, dev_sst=number / 4)])
    tracker.submit(Runs.trial_ended, 0, "FINISHED", "complete", START + 5000)
    tracker.submit(Runs.trial_ended, 1, "FINISHED", "asha at rung 1", START + 2000)
    tracker.submit(Runs.trial_ended, 2, "FAILED", "the loss is not finite", START + 3000)
    tracker.submit(Runs.best, 3, {"best/norm": 0.5}, START + 5000)
    tracker.submit(Runs.note, "It pays.")
    assert tracker.close("FINISHED")

    parent, children, client = pages(uri)
    assert parent.info.run_name == "smart"
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"trials": "3"}
    assert parent.data.metrics == {"best/norm": 0.5}
    assert parent.data.tags["data/sst-train"] == "ab12"
    assert parent.data.tags["mlflow.note.content"] == "It pays."
    assert client.get_experiment(parent.info.experiment_id).tags["mlflow.note.content"] == "It pays."
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["plan.json"]
    assert (tmp_path / "mlartifacts" / "smart").is_dir()
    assert {number: run.info.status for number, run in children.items()} == {0: "FINISHED", 1: "FINISHED", 2: "FAILED"}
    child = children[1]
    assert child.info.run_name == "001 smart"
    assert (child.info.start_time, child.info.end_time) == (START, START + 2000)
    assert child.data.params == {"optimizer/lr": "2e-05"}
    assert child.data.metrics == {"train/lr": 1e-5, "dev/sst": 0.25, "seconds": 1.0}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["stop_reason"] == "asha at rung 1"
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= child.data.tags.keys()
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["config.yaml"]
    assert capfd.readouterr() == ("", "")


def test_the_x_axis_is_examples_and_the_time_is_that_of_measurement(
    track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    tracker = track()
    begin(tracker, 0, tmp_path)
    tracker.submit(Runs.records, 0, [record(320, dev_sst=0.5)])
    assert tracker.close("FINISHED")
    _, children, client = pages(uri)
    (point,) = client.get_metric_history(children[0].info.run_id, "dev/sst")
    assert (point.step, point.timestamp) == (320, START + 320)


def test_what_is_pretrained_before_the_trials_has_its_curves_on_the_search_s_own_page(
    track: Callable[..., Tracker], uri: str
) -> None:
    tracker = track()
    for key, loss in (("3f2a9c01ab", 2.0), ("77aa01bccd", 3.0)):
        own = {"kind": "pretrain", "stage": "mlm", "key": key, "examples": 0, "time_ms": 1, "seconds_left": 1.0}
        tracker.submit(Runs.pretrained, [own | {"pretrain/examples": 500, "pretrain/mlm_loss": loss}])
    assert tracker.close("FINISHED")
    parent, *_ = pages(uri)
    found = {name: value for name, value in parent.data.metrics.items() if "loss" in name}
    assert found == {"pretrain/3f2a9c01/mlm_loss": 2.0, "pretrain/77aa01bc/mlm_loss": 3.0}


def test_pretraining_is_measured_at_its_texts_and_does_not_hold_up_what_follows(
    track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    tracker = track()
    begin(tracker, 0, tmp_path)
    words = {"stage": "mlm", "key": "3f2a", "notes": ["a fresh head"]}
    before = [record(0, "pretrain") | words | {"pretrain/examples": at, "pretrain/mlm_loss": 1 / at} for at in (500, 1000)]
    tracker.submit(Runs.records, 0, [*before, record(16, "train", train_lr=1e-5)])
    assert tracker.close("FINISHED")
    assert history(uri, 0, "pretrain/mlm_loss") == [(500, 1 / 500), (1000, 1 / 1000)]
    assert history(uri, 0, "seconds") == [(16, 1.0)]


def test_what_is_not_finite_is_left_out(track: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    tracker = track()
    begin(tracker, 0, tmp_path)
    tracker.submit(Runs.records, 0, [record(16, dev_sst=math.nan, dev_para=math.inf, dev_sts=0.1)])
    assert tracker.close("FINISHED")
    assert pages(uri)[1][0].data.metrics == {"dev/sts": 0.1, "seconds": 1.0}


def test_more_than_a_batch_holds_arrives_whole(track: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    tracker = track(params={f"knob/{i}": i for i in range(230)}, note="long " * 5000)
    begin(tracker, 0, tmp_path)
    tracker.submit(Runs.records, 0, [record(16 * i, "train", train_loss=1 / (i + 1), train_lr=1e-5) for i in range(700)])
    assert tracker.close("FINISHED")
    assert len(history(uri, 0, "train/loss")) == 700
    assert len(pages(uri)[0].data.params) == 230


def test_resume_goes_on_in_the_same_runs_and_a_replay_changes_nothing(
    track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    first = track()
    for number in range(2):
        begin(first, number, tmp_path)
        first.submit(Runs.records, number, [record(160, dev_sst=0.4), record(480, dev_sst=0.5)])
    first.submit(Runs.trial_ended, 0, "FINISHED", "complete", START + 1000)
    first.submit(Runs.trial_ended, 1, "KILLED", "interrupted", START + 1000)
    first.submit(Runs.best, 1, {"best/norm": 0.5}, START)
    assert first.close("KILLED")
    before = pages(uri)

    second = track(resume=True, params={"trials": 5})
    for number in range(3):  # 0 and 1 are told again, 2 is new
        begin(second, number, tmp_path)
        second.submit(Runs.records, number, [record(160, dev_sst=0.4), record(480, dev_sst=0.5)])
    second.submit(Runs.trial_ended, 0, "FINISHED", "complete", START + 1000)
    second.submit(Runs.best, 1, {"best/norm": 0.5}, START)
    again = record(480, dev_sst=0.51) | {"time_ms": START + 9000}  # trial 1 repeats what it did after its last saved state
    second.submit(Runs.records, 1, [again, record(1440, dev_sst=0.6)])
    deadline = time.monotonic() + 30
    parent, children, client = pages(uri)
    while "stop_reason" in children[1].data.tags and time.monotonic() < deadline:  # the thread writes it last, when it can
        parent, children, client = pages(uri)
    assert [one.info.status for one in (parent, children[0], children[1])] == ["RUNNING", "FINISHED", "RUNNING"]
    assert "stop_reason" not in children[1].data.tags
    second.submit(Runs.trial_ended, 1, "FINISHED", "complete", START + 9999)
    second.submit(Runs.trial_ended, 2, "FINISHED", "complete", START + 9999)
    assert second.close("FINISHED")

    parent, children, client = pages(uri)
    assert parent.info.run_id == before[0].info.run_id
    assert [children[number].info.run_id for number in (0, 1)] == [before[1][number].info.run_id for number in (0, 1)]
    assert {run.info.status for run in children.values()} == {parent.info.status} == {"FINISHED"}
    assert history(uri, 0, "dev/sst") == [(160, 0.4), (480, 0.5)]
    assert history(uri, 1, "dev/sst") == [(160, 0.4), (480, 0.5), (1440, 0.6)]
    assert len(client.get_metric_history(parent.info.run_id, "best/norm")) == 1
    assert (parent.data.params["trials"], parent.data.tags["trials"]) == ("3", "5"), "MLflow's params are for ever"
    assert children[0].info.end_time == START + 1000


def test_resume_with_an_empty_store_writes_a_whole_tree(track: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    tracker = track(resume=True)
    begin(tracker, 4, tmp_path)
    tracker.submit(Runs.trial_ended, 4, "FINISHED", "complete", START + 9)
    assert tracker.close("FINISHED")
    assert pages(uri)[1].keys() == {4}


def test_a_store_that_was_moved_gets_its_files_at_its_new_place(
    track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    tracker = track()
    begin(tracker, 0, tmp_path)
    assert tracker.close("KILLED")
    new = tmp_path / "elsewhere"
    new.mkdir()
    shutil.move(tmp_path / "mlflow.db", new)
    shutil.rmtree(tmp_path / "mlartifacts")  # of the other machine
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # of this process; a search goes on in another

    moved = store_uri(new / "runs")
    tracker = track(resume=True, uri=moved)
    begin(tracker, 0, tmp_path)
    assert tracker.close("FINISHED")
    parent, children, client = pages(moved)
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["plan.json"]
    assert [file.path for file in client.list_artifacts(children[0].info.run_id)] == ["config.yaml"]
    assert children[0].info.artifact_uri.startswith((new / "mlartifacts" / "smart").as_uri())
    assert not (tmp_path / "mlartifacts").exists()


def test_a_trial_left_open_ends_with_the_search(track: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    tracker = track()
    begin(tracker, 0, tmp_path)
    assert tracker.close("KILLED")
    parent, children, _ = pages(uri)
    assert (parent.info.status, children[0].info.status) == ("KILLED", "KILLED")


def test_an_experiment_in_the_bin_is_taken_back(track: Callable[..., Tracker], uri: str) -> None:
    assert track().close("FINISHED")
    _, _, client = pages(uri)
    client.delete_experiment(client.get_experiment_by_name("smart").experiment_id)
    assert track(resume=True).close("FINISHED")
    assert pages(uri)[0].info.status == "FINISHED"


def test_a_dead_store_is_an_error_to_read_and_none_to_catch(track: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    tracker = track()
    begin(tracker, 0, tmp_path)
    tracker.submit(Runs.records, 0, [record(16, dev_sst=0.1)])
    assert not tracker.close("FINISHED")
    assert tracker.error is not None
    assert tracker.error.startswith(f"MLflow stopped recording to {uri}: ")
    tracker.submit(Runs.records, 0, [record(32, dev_sst=0.1)])  # still no exception
    assert not tracker.close("FINISHED", timeout_seconds=1)


def test_a_store_that_is_busy_for_a_while_loses_nothing(
    track: Callable[..., Tracker], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = track()
    begin(tracker, 0, tmp_path)
    tried: list[int] = []
    log_batch = _client_class().log_batch

    def busy_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

        if kwargs.get("metrics") and not tried:
            tried.append(1)
            raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)
        return log_batch(self, *args, **kwargs)

    monkeypatch.setattr(_client_class(), "log_batch", busy_once)
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.01)
    tracker.submit(Runs.records, 0, [record(16, dev_sst=0.1)])
    assert tracker.close("FINISHED"), tracker.error
    assert tried
    assert history(uri, 0, "dev/sst") == [(16, 0.1)]


def test_a_search_and_its_trials_name_the_data_sets_that_they_read(
    track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    digests = {"sst-train": "ab" * 32, "sst-dev": "cd" * 32}
    for resume in (False, True):  # told again, it names them once
        tracker = track(resume, datasets=digests, num_rows={"sst-train": 8544})
        begin(tracker, 0, tmp_path)
        assert tracker.close("FINISHED"), tracker.error
    parent, children, _ = pages(uri)
    for run in (parent, children[0]):
        inputs = {found.dataset.name: found for found in run.inputs.dataset_inputs}
        assert sorted(inputs) == ["sst-dev", "sst-train"]
        assert inputs["sst-train"].dataset.digest == "abababababab"
        assert json.loads(inputs["sst-train"].dataset.profile) == {"num_rows": 8544}
        assert [(tag.key, tag.value) for tag in inputs["sst-dev"].tags] == [("mlflow.data.context", "dev")]


def test_a_search_goes_on_in_its_own_runs_though_another_has_its_name(track: Callable[..., Tracker], uri: str) -> None:
    assert track(search_id="mine").close("KILLED")
    assert track(search_id="theirs").close("FINISHED")  # on a server that many log to
    assert track(True, search_id="mine").close("FINISHED")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("smart").experiment_id])
    assert {run.data.tags["search_id"]: run.info.status for run in runs} == {"mine": "FINISHED", "theirs": "FINISHED"}
    assert len(runs) == 2


def test_a_replay_asks_for_no_metrics_history(
    track: Callable[..., Tracker], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = track()
    begin(first, 0, tmp_path)
    first.submit(Runs.records, 0, [record(16, dev_sst=0.1), record(32, dev_sst=0.2)])
    assert first.close("KILLED")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a query a metric: minutes for a thousand trials")

    with monkeypatch.context() as patch:
        patch.setattr(_client_class(), "get_metric_history", refuse)
        second = track(True)
        begin(second, 0, tmp_path)
        second.submit(Runs.records, 0, [record(16, dev_sst=0.1), record(32, dev_sst=0.2), record(48, dev_sst=0.3)])
        assert second.close("FINISHED"), second.error
    assert history(uri, 0, "dev/sst") == [(16, 0.1), (32, 0.2), (48, 0.3)]


def test_a_locked_store_neither_raises_nor_holds_up_the_search(track: Callable[..., Tracker], tmp_path: Path) -> None:
    lock = sqlite3.connect(tmp_path / "mlflow.db")
    lock.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    tracker = track()
    for number in range(50):
        begin(tracker, number, tmp_path)
    assert time.monotonic() - began < 0.5
    assert not tracker.close("FINISHED", timeout_seconds=0.5)
    assert tracker.error is not None
    assert "after 0.5 s" in tracker.error
    lock.rollback()
    lock.close()
    tracker._thread.join(30)  # it writes what is left, and touches nothing once the folder is gone


def test_close_before_start_says_that_nothing_was_recorded(uri: str) -> None:
    tracker = Tracker(SearchRecord(uri, "smart"))
    assert not tracker.close("FINISHED")
    assert tracker.error == "MLflow was never started, so nothing was recorded."


def test_with_the_address_none_nothing_is_recorded_and_nothing_is_missing(tmp_path: Path) -> None:
    assert parse_tracking_uri("none") == "none"
    assert store_fault("none") is None
    tracker = Tracker(SearchRecord("none", "smart"))
    tracker.start()
    tracker.submit(Runs.best, 1, {}, 0)
    assert tracker.close("FINISHED")
    assert tracker.error is None
    assert not has_store("none")
    assert compare_lines("none", "smart") == ["compare   no records in MLflow (--tracking-uri none)"]


def test_a_pickled_tracker_is_empty(uri: str) -> None:
    copy = pickle.loads(pickle.dumps(Tracker(SearchRecord(uri, "smart"))))  # noqa: S301  our own bytes
    assert vars(copy) == {}


def test_importing_the_modules_does_not_import_mlflow() -> None:
    modules = "search.tracking.tracker, search.tracking.artifacts, search.tracking.experiment"
    code = f"import sys, {modules}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_two_processes_that_prepare_one_store_both_succeed(tmp_path: Path) -> None:
    uri = store_uri(tmp_path / "runs")
    both = [subprocess.Popen([sys.executable, "-c", PREPARE, uri], cwd=ROOT) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    tracker = Tracker(SearchRecord(uri, "smart"))
    tracker.start()
    assert tracker.close("FINISHED"), tracker.error


def test_a_process_killed_while_it_prepares_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PREPARE, store_uri(tmp_path / "runs")], cwd=ROOT)
    while not list(tmp_path.glob("mlflow.db-new-*")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not ours")
    prepare_store(store_uri(tmp_path / "runs"))
    assert (tmp_path / "mlflow.db").read_text() == "not ours"


def test_the_line_for_the_page_names_the_store_and_a_program_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = tmp_path / "a venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "mlflow").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", "/nowhere")
    uri = store_uri(tmp_path / "runs")
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    words = shlex.split(ui_command(uri, tmp_path))
    assert words == ["a venv/bin/mlflow", "ui", "--backend-store-uri", uri, "--port", "5000"]
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ui_command(uri, tmp_path) == f"mlflow ui --backend-store-uri {uri} --port 5001"


def test_a_server_is_named_by_its_address(tmp_path: Path) -> None:
    assert ui_command("http://box:5000", tmp_path) == "http://box:5000"
    assert ui_command("http://me:secret@box:5000/?token=secret", tmp_path) == "http://***@box:5000/?***"


def test_the_line_for_the_dashboard_names_the_journal_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "my runs" / "smart" / "study.journal"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert dashboard_command(journal, tmp_path) == "optuna-dashboard 'my runs/smart/study.journal'"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    line = dashboard_command(journal, tmp_path / "elsewhere")
    assert line == f"optuna-dashboard '{journal}' (pip install optuna-dashboard)"


@pytest.mark.parametrize("name", ["plain", "a b", "who?", "100%20", "run #1", "100%"])
def test_an_address_leads_back_to_its_file_whatever_its_folder_is_called(name: str) -> None:
    assert database_of(sqlite_uri(Path("/home") / name / "mlflow.db")) == Path("/home") / name / "mlflow.db"


def test_a_store_is_where_it_was_asked_for_whatever_its_folder_is_called(
    laid_out: Path, track: Callable[..., Tracker], tmp_path: Path
) -> None:
    folder = tmp_path / "who? 100%20 #1"
    folder.mkdir()
    shutil.copy(laid_out, folder)
    uri = store_uri(folder / "runs")
    for resume in (False, True):
        tracker = track(uri=uri, resume=resume)
        begin(tracker, 0, tmp_path)
        assert tracker.close("FINISHED"), tracker.error
    parent, children, client = pages(uri)
    assert [*children] == [0]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["plan.json"]
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM experiments WHERE name = 'smart'").fetchone() == (1,)
    assert [*tmp_path.rglob("mlartifacts")] == [folder / "mlartifacts"]


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("http://box:5000/", "http://box:5000"),
        ("https://box/mlflow", "https://box/mlflow"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:///~/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("sqlite:////100%2520/mlflow.db", "sqlite:////100%2520/mlflow.db"),
    ],
)
def test_a_store_is_a_server_or_a_file(text: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_tracking_uri(text) == uri.format(here=tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mlruns", r"MLflow 3 no longer logs to folders\. Got 'mlruns'\. In a file there: sqlite:////.*/mlruns/mlflow\.db"),
        ("file:///data/mlruns", r"no longer logs to folders\. .* sqlite:////data/mlruns/mlflow\.db"),
        ("sqlite:////a?b/m.db", r"A path in an address is percent-encoded\. Got .* For a file: sqlite:////a%3Fb/m\.db"),
        (
            "postgresql://box/mlflow",
            r"A search logs to an MLflow server, http\(s\)://…, to a file, sqlite:///…, or to none\. Got",
        ),
        ("http://", r"An MLflow server's address is http\(s\)://HOST:PORT\. Got 'http://'\."),
        ("http://me:secret@box", r"holds no password and no token\. Got 'http://\*\*\*@box'\. Set MLFLOW_TRACKING_TOKEN, or"),
        ("https://box/?token=secret", r"Got 'https://box/\?\*\*\*'\. Set MLFLOW_TRACKING_TOKEN"),
        ("https://box/#secret", r"Got 'https://box/'\. Set MLFLOW_TRACKING_TOKEN"),
        ("postgresql://me:secret@box/mlflow?password=secret", r"Got 'postgresql://\*\*\*@box/mlflow\?\*\*\*'\."),
    ],
)
def test_what_mlflow_does_not_log_to_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        parse_tracking_uri(text)
    assert "secret" not in str(refused.value)


class Answers(BaseHTTPRequestHandler):
    """A server that answers all requests alike."""

    status, kind = 200, "application/json"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        (200, "application/json", None),
        (200, "text/html", r"is not an MLflow server \(HTTP 200 for /api"),
        (404, "application/json", r"is not an MLflow server \(HTTP 404 for /api"),
        (401, "text/plain", r"needs a login\. Set MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_what_answers_is_asked_whether_it_is_an_mlflow_server(status: int, kind: str, sentence: str | None) -> None:
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (Answers,), {"status": status, "kind": kind}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        fault = store_fault(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (fault is None) if sentence is None else re.search(sentence, str(fault))


def test_a_server_that_is_not_there_is_one_sentence(unused_port: int) -> None:
    uri = f"http://127.0.0.1:{unused_port}"
    assert store_fault(uri) == (
        f"No MLflow server answers at {uri} (Connection refused). Start it, or give another store with --tracking-uri."
    )


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path, laid_out: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is no database")
    assert (
        store_fault(f"sqlite:///{tmp_path}/notes.txt")
        == f"{tmp_path}/notes.txt is not an SQLite database, so MLflow cannot log there."
    )
    assert "is a folder" in str(store_fault(f"sqlite:///{tmp_path}"))
    assert store_fault(f"sqlite:///{laid_out}") is None
    assert store_fault(f"sqlite:///{tmp_path}/new.db") is None


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_mlflow_and_alembic_are_quiet(laid_out: Path) -> None:
    assert logging.getLogger("mlflow").level == logging.getLogger("alembic").level == logging.WARNING


def _client_class() -> Any:
    from mlflow import MlflowClient

    return MlflowClient
