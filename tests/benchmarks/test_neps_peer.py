"""NePS searches the same drawn functions as our methods, by the same clock. Skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import neps_peer

CURVES = Path(neps_peer.__file__).with_name("curves.parquet")


@pytest.mark.filterwarnings("default")  # NePS's packages warn of each other
def test_a_method_of_neps_is_measured_next_to_ours(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("neps", reason="NePS is an extra, in an environment of its own")
    arguments = [str(CURVES), "--budget", "6", "--repetitions", "2", "--methods", "asha", "--ours", "random+asha"]
    assert neps_peer.main(arguments) == 0
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in capsys.readouterr().out.splitlines() if "|" in line}
    assert {"random", "random+asha", "NePS asha"} <= rows.keys()
    begun, whole = rows["NePS asha"][-2].strip(" )").split(" (")
    assert 6 <= float(begun) <= 54  # each trains for a ninth of a trial at least
    assert 0 < float(whole) <= float(begun)
