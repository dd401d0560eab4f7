"""MLflow leads to the answer: the score comes first, results and report are artifacts, and an address opens the charts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from search.tracking.artifacts import add_artifact
from search.tracking.experiment import compare_lines
from search.tracking.runs import Runs
from search.tracking.tracker import Tracker
from tests.search.tracking.reading import begin, pages, record


def test_the_score_is_the_first_metric_of_a_run_which_colours_the_charts(
    track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    tracker = track()
    begin(tracker, 0, tmp_path)
    trained = record(160, "train", train_lr=1e-5) | {"passes": 160}
    tracker.submit(Runs.records, 0, [trained, record(160, dev_sst=0.25, dev_score=0.5) | {"passes": 160}])
    tracker.submit(Runs.best, 1, {"best/sst": 0.25, "best/score": 0.5}, 0)
    assert tracker.close("FINISHED")
    parent, children, _ = pages(uri)
    assert next(metric.key for metric in children[0].data.to_proto().metrics) == "dev/score"
    assert next(metric.key for metric in parent.data.to_proto().metrics) == "best/score"


def test_results_become_artifacts_and_a_later_command_adds_the_report(
    track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "sst-dev-output.csv").write_text("id,answer\n")
    (tmp_path / "report.html").write_text("<!DOCTYPE html>")
    tracker = track()
    tracker.submit(Runs.add_results, [tmp_path / "config.yaml", tmp_path / "predictions"])
    assert tracker.close("FINISHED")
    assert add_artifact(uri, "smart", None, tmp_path / "report.html") is None
    parent, _, client = pages(uri)
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"plan.json", "config.yaml", "predictions", "report.html"}
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "predictions")] == [
        "predictions/sst-dev-output.csv"
    ]
    assert "has no run of gradvac" in str(add_artifact(uri, "gradvac", None, tmp_path / "report.html"))


def test_the_second_line_is_the_address_of_the_charts_best_score_first(
    track: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    assert len(compare_lines(uri, "smart")) == 1  # no experiment yet
    assert track().close("FINISHED")
    parent, *_ = pages(uri)
    _, address = compare_lines(uri, "smart")
    own = f"/#/experiments/{parent.info.experiment_id}/runs?workflowType=machine_learning&orderByKey=metrics.%60dev%2Fscore%60"
    assert address.strip().startswith("http://127.0.0.1:500")
    assert own in address
    assert compare_lines("http://box:5000", "smart") == ["compare   http://box:5000"]
    assert compare_lines("http://box:5000", "smart", "7")[1].strip().startswith("http://box:5000/#/experiments/7/runs?")
    (tmp_path / "folder.db").mkdir()  # as a database that this user may not read
    for name in ("absent.db", "folder.db"):
        assert len(compare_lines(uri.replace("mlflow.db", name), "smart")) == 1
