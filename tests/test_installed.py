"""The wheel holds what the commands need, and the console command runs the modules' own command lines."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from analysis import minbert
from minbert_core import commands
from minbert_core.commands import analysis_command
from search.options import from_keywords
from search.shipped import SPACES, shipped

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_has_every_module_space_and_template_and_the_console_command(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    build = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    source = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file() and name.split("/")[0] in (
            "minbert_core",
            "search",
            "analysis",
            "spaces",
            "pyproject.toml",
            "LICENSE",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {*archive.namelist()}
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "minbert = analysis.minbert:main" in archive.read(entry).decode()
    modules = {
        path.relative_to(ROOT).as_posix()
        for room in ("minbert_core", "search", "analysis")
        for path in (ROOT / room).rglob("*.py")
    }
    assert modules <= names
    assert {f"search/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "spaces").rglob("*.yaml")} <= names
    assert {"search/spaces/schema.json", "analysis/page/page.css", "analysis/page/page.html.j2"} <= names


def test_the_console_command_runs_the_module_s_own_command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["minbert", "train", "--no-such"])
    monkeypatch.delitem(sys.modules, "minbert_core.train.__main__", raising=False)  # of another test
    with pytest.raises(SystemExit, match="2"):
        minbert.main()
    assert capfd.readouterr().err.startswith("usage: python -m minbert_core.train CONFIG.yaml [options]")
    monkeypatch.setattr(sys, "argv", ["minbert", "serach"])
    assert minbert.main() == 2
    assert "Unknown command 'serach'; did you mean 'search'?" in capfd.readouterr().err
    monkeypatch.setattr(sys, "argv", ["minbert"])
    assert minbert.main() == 0
    assert len(capfd.readouterr().out.splitlines()) == 4 + len(minbert.COMMANDS)


def test_a_shipped_space_is_found_from_any_folder_and_a_file_of_that_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_keywords("spaces/smart.yaml", {}).space == SPACES / "smart.yaml"
    assert shipped(Path("spaces/papers/p1.yaml")).is_file()
    assert shipped(Path("spaces/mine.yaml")) == Path("spaces/mine.yaml")
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "smart.yaml").touch()
    assert from_keywords("spaces/smart.yaml", {}).space == Path("spaces/smart.yaml")


def test_a_printed_command_of_an_analysis_works_where_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert analysis_command("report", "my search") == "python analysis/report.py 'my search'"
    monkeypatch.setattr(commands, "ROOT", tmp_path)  # as in site-packages, which has no pyproject.toml
    assert analysis_command("report", "my search") == "python -m analysis.report 'my search'"
