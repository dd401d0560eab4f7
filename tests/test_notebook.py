"""examples/colab.ipynb runs from its first cell to its last, and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_eight_cells_run_in_order_and_a_second_time(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "examples" / "colab.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 8
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    script = "\n".join(cells).replace("9_000", "300").replace("trials=8", "trials=2")  # a shorter budget
    again = "\n".join([cells[1], cells[3], cells[4]])
    (tmp_path / "script.py").write_text(f"{script}\nos.chdir('..')\n{again}", encoding="utf-8")
    own = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "minbert" / "runs" / "colab" / "report.html").stat().st_size > 10_000
    assert len((tmp_path / "minbert" / "out.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert not (tmp_path / "minbert" / "mlflow.db").exists()
