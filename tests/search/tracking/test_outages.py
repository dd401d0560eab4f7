"""An MLflow that is away, slow or emptied, and what it holds in the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from search.tracking import outage
from search.tracking.runs import Runs
from search.tracking.tracker import Tracker
from tests.search.tracking.reading import START, begin, history, pages, record

WRITES = ("create_run", "create_experiment", "log_batch", "log_inputs", "log_artifact", "set_tag", "set_experiment_tag")
WRITES += ("delete_tag", "update_run", "set_terminated")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outage, "UNTOLD_SECONDS", 0)


@pytest.fixture
def client_class() -> Any:
    from mlflow import MlflowClient

    return MlflowClient


def fault(code: str, message: str) -> Exception:
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    return MlflowException(message, error_code=databricks_pb2.ErrorCode.Value(code))


def refused(*_: Any, **__: Any) -> None:
    raise fault("INTERNAL_ERROR", "no answer") from ConnectionRefusedError(111, "Connection refused")


def whole(tracker: Tracker, folder: Path) -> None:
    """Report a search of two trials."""
    for number in range(2):
        begin(tracker, number, folder)
        tracker.submit(Runs.records, number, [record(160, dev_sst=0.4), record(480, dev_sst=0.5)])
        tracker.submit(Runs.trial_ended, number, "FINISHED", "complete", START + 1000)
        tracker.submit(Runs.best, number + 1, {"best/norm": 0.5}, START)


def written(tracker: Tracker) -> None:
    """Wait until a tracker has written all that it was told."""
    while tracker._writer.is_behind or tracker._calls.qsize():
        threading.Event().wait(0.01)


def assert_whole(uri: str) -> None:
    parent, children, _ = pages(uri)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/norm"] == 0.5
    assert {number: run.info.status for number, run in children.items()} == {0: "FINISHED", 1: "FINISHED"}
    for number in range(2):
        assert history(uri, number, "dev/sst") == [(160, 0.4), (480, 0.5)]


def test_an_outage_is_one_line_its_end_another_and_nothing_is_lacking(
    track: Callable[..., Tracker],
    uri: str,
    tmp_path: Path,
    said: list[str],
    client_class: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tracker = track()
    written(tracker)
    with monkeypatch.context() as away:
        for name in (*WRITES, "search_runs", "get_experiment_by_name"):
            away.setattr(client_class, name, refused)
        whole(tracker, tmp_path)
        while not said:
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)  # some more tries
    assert tracker.close("FINISHED"), tracker.error
    away_line, back_line = said
    assert away_line.startswith(f"MLflow at {uri} does not answer (Connection refused). Training continues")
    assert back_line.startswith("MLflow is back after ")
    assert_whole(uri)
    assert capfd.readouterr() == ("", "")


def test_a_run_that_was_created_though_the_answer_was_lost_is_not_created_twice(
    track: Callable[..., Tracker], uri: str, tmp_path: Path, client_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run, num_lost = client_class.create_run, 0

    def create_and_lose(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal num_lost
        created = create_run(self, *args, **kwargs)
        num_lost += 1
        if num_lost < 4:  # the parent and both trials
            refused()
        return created

    monkeypatch.setattr(client_class, "create_run", create_and_lose)
    tracker = track()
    whole(tracker, tmp_path)
    assert tracker.close("FINISHED"), tracker.error
    assert num_lost == 3
    assert_whole(uri)


def test_a_database_that_an_empty_one_replaces_is_written_again(
    laid_out: Path, track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    tracker = track()
    whole(tracker, tmp_path)
    written(tracker)
    (tmp_path / "fresh.db").write_bytes(laid_out.read_bytes())
    os.replace(tmp_path / "fresh.db", tmp_path / "mlflow.db")
    assert tracker.close("FINISHED"), tracker.error
    assert_whole(uri)


def test_a_run_that_someone_deletes_while_it_is_written_is_created_again(
    track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    tracker = track()
    whole(tracker, tmp_path)
    written(tracker)
    _, children, client = pages(uri)
    client.delete_run(children[1].info.run_id)
    tracker.submit(Runs.records, 1, [record(960, dev_sst=0.6)])
    assert tracker.close("FINISHED"), tracker.error
    assert history(uri, 1, "dev/sst") == [(160, 0.4), (480, 0.5), (960, 0.6)]


def test_a_value_that_mlflow_refuses_ends_the_recording_with_the_reason(
    track: Callable[..., Tracker], tmp_path: Path, said: list[str], uri: str
) -> None:
    tracker = track()
    begin(tracker, 0, tmp_path)
    tracker.submit(Runs.records, 0, [{"kind": "dev", "examples": 1, "time_ms": 1, "a[0]": 1.0}])
    assert not tracker.close("FINISHED")
    assert str(tracker.error).startswith(f'MLflow stopped recording to {uri}: Invalid value "a[0]"')
    assert said == [f"{tracker.error} Training continues. metrics.jsonl keeps all, and the same command logs it again."]


def test_what_mlflow_holds_costs_no_call(
    track: Callable[..., Tracker], uri: str, tmp_path: Path, client_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = track()
    whole(first, tmp_path)
    assert first.close("FINISHED")
    calls: list[str] = []
    for name in WRITES:
        method = getattr(client_class, name)
        monkeypatch.setattr(client_class, name, lambda *a, _n=name, _m=method, **k: (calls.append(_n), _m(*a, **k))[1])
    second = track(True)
    whole(second, tmp_path)
    written(second)
    assert sorted(calls) == ["log_artifact", "update_run"]  # plan.json, which may have changed; RUNNING again
    assert second.close("FINISHED"), second.error
    assert_whole(uri)


def test_after_an_interrupt_all_runs_end_before_measurements_are_written(
    track: Callable[..., Tracker], uri: str, tmp_path: Path, client_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = track()
    for number in range(2):
        begin(tracker, number, tmp_path)
    written(tracker)
    log_batch, set_terminated = client_class.log_batch, client_class.set_terminated
    order: list[str] = []

    def slow_metrics(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("metrics"):
            order.append("metrics")
            tracker._closing.wait(30)  # the first call returns only when the search was interrupted
        return log_batch(self, *args, **kwargs)

    def end(self: Any, *args: Any, **kwargs: Any) -> Any:
        order.append("end")
        return set_terminated(self, *args, **kwargs)

    monkeypatch.setattr(client_class, "log_batch", slow_metrics)
    monkeypatch.setattr(client_class, "set_terminated", end)
    for number in range(2):
        tracker.submit(Runs.records, number, [record(160, dev_sst=0.4)])
    while not order:
        threading.Event().wait(0.01)
    assert tracker.close("KILLED", 20), tracker.error
    assert order == ["metrics", "end", "end", "end", "metrics"]
    parent, children, _ = pages(uri)
    assert {parent.info.status, *(run.info.status for run in children.values())} == {"KILLED"}
    assert history(uri, 1, "dev/sst") == [(160, 0.4)]


def test_a_server_that_answers_500_is_waited_for_and_then_named(
    track: Callable[..., Tracker], said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        uri = f"http://127.0.0.1:{server.server_port}"
        tracker = track(uri=uri)
        assert not tracker.close("FINISHED", timeout_seconds=0.5)
        assert tracker.error == f"MLflow had not written everything to {uri} after 0.5 s (too many 500 error responses)."
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(said) == 1
    assert capfd.readouterr() == ("", "")
