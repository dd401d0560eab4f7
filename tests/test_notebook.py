"""Searches in a notebook: examples/colab.ipynb from its first cell to its last, and a second time; then README's block."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = """\
import asyncio, sys, types
from unittest.mock import Mock

class ZMQInteractiveShell:  # by this name Ray tells that it is in a notebook
    events = Mock()

def shown(*_, **__):
    print("OUTPUT CLEARED")

display = types.ModuleType("IPython.display")
display.HTML = display.clear_output = display.display = shown
sys.modules |= {"IPython": types.ModuleType("IPython"), "IPython.display": display}
sys.modules["IPython"].get_ipython = ZMQInteractiveShell
sys.modules["IPython"].version_info = (9, 0)

async def typed(cells):  # a notebook's cells run in its event loop
    names = {"__name__": "__main__"}
    for cell in cells:
        print("CELL")
        exec(cell, names)

"""


def test_the_eight_cells_and_readmes_block_run_in_a_notebooks_event_loop_without_a_main_guard(
    tmp_path: Path, store: Path, small_toy_cache: Path
) -> None:
    notebook = json.loads((ROOT / "examples" / "colab.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 8
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    [block] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert "3_000" in block
    again = ["os.chdir('..')", cells[1], cells[3], cells[4]]
    for long, short in (("9_000", "300"), ("3_000", "300"), ("trials=8", "trials=1"), ("trials=3", "trials=1")):
        cells, block = [cell.replace(long, short) for cell in cells], block.replace(long, short)
    every = [*cells, *again, "os.chdir('..')", block]
    (tmp_path / "script.py").write_text(f"{NOTEBOOK}asyncio.run(typed({every!r}))\n", encoding="utf-8")
    shutil.copy(store, tmp_path / "mlflow.db")
    own = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(small_toy_cache), "CUDA_VISIBLE_DEVICES": ""}
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
    assert "OUTPUT CLEARED" not in done.stdout
    assert "Traceback" not in done.stderr
    assert (tmp_path / "minbert" / "runs" / "colab" / "report.html").stat().st_size > 10_000
    assert len((tmp_path / "minbert" / "out.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert not (tmp_path / "minbert" / "mlflow.db").exists()
    told = done.stdout.rpartition("CELL\n")[2]
    assert told.startswith("search    rates: ")
    names, *rows = told[told.index("trial  ") :].strip().splitlines()[:3]
    assert names.split() == ["trial", "score", "status", "optimizer/lr"]
    assert {row.split()[3] for row in rows} == {"completed"}
    assert (tmp_path / "runs" / "rates" / "best").exists()
