"""The installation: what make runs in each of its ways, with an interpreter that writes down what it is asked to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which("make")
TOOLS = ("sh", "rm", "mkdir", "touch", "cp", "basename", "dirname")
# answers for `python3` and, copied by `-m venv`, for `.venv/bin/python`
PYTHON = """\
#!/bin/sh
[ "$1" = -c ] && exit ${TOO_OLD:-0}
[ "$1" = --version ] && { echo Python 3.9.1; exit; }
echo "$(basename "$0") $*" >> log
[ "$2" = venv ] && mkdir -p .venv/bin && cp "$0" .venv/bin/python
[ "$2" = search.environment ] && echo numpy==1
[ "$2" = pip ] && exit ${PIP_FAILS:-0}
exit 0
"""
UV = """\
#!/bin/sh
echo "uv $*" >> log
[ "$1" = venv ] && mkdir -p .venv/bin && cp "$(dirname "$0")/python3" .venv/bin/python
exit 0
"""
PIP = "python -m pip install --quiet --disable-pip-version-check"
TESTS = "python -m pytest -n 3 --dist loadfile --no-loadscope-reorder"
PINNED = "-e .[dev] -c constraints.txt"

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


class Checkout:
    """A folder with the Makefile, on a machine that has its few tools, `python3`, and `uv` once it is put there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder / "checkout", folder / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.put("python3", PYTHON)

    def put(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def make(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(MAKE), *words]
        where = {"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/"), **environment}
        return subprocess.run(command, cwd=self.folder, env=where, capture_output=True, text=True, check=False)

    def asked(self) -> list[str]:
        """What the interpreters and uv were asked to do since the last question, in order."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def with_venv(checkout: Checkout) -> Checkout:
    """A checkout whose user made a .venv before make was typed."""
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(checkout.bin / "python3", checkout.folder / ".venv" / "bin" / "python")
    return checkout


def test_pip_builds_the_environment_once_from_the_pins(checkout: Checkout) -> None:
    assert checkout.make("test").returncode == 0
    assert checkout.asked() == ["python3 -m venv .venv", f"{PIP} {PINNED}", TESTS]
    checkout.make("test")
    assert checkout.asked() == [TESTS]


def test_uv_is_used_where_it_is_installed(checkout: Checkout) -> None:
    checkout.put("uv", UV)
    assert checkout.make("test").returncode == 0
    venv, install, tests = checkout.asked()
    assert venv == "uv venv --quiet --allow-existing --python python3 .venv"
    assert install == f"uv pip install --quiet --python .venv/bin/python {PINNED}"
    assert tests == TESTS


@pytest.mark.parametrize(
    ("uv", "option"), [("", "--extra-index-url https://download.pytorch.org/whl/cpu"), (UV, "--torch-backend cpu")]
)
def test_torch_without_cuda_is_one_word(checkout: Checkout, uv: str, option: str) -> None:
    if uv:
        checkout.put("uv", uv)
    checkout.make("test", "TORCH=cpu")
    assert checkout.asked()[1].endswith(f" {option} {PINNED}")


def test_another_interpreter_can_be_named(checkout: Checkout) -> None:
    checkout.put("python3.12", PYTHON)
    checkout.make("test", "PYTHON=python3.12")
    assert checkout.asked()[0] == "python3.12 -m venv .venv"


def test_changed_pins_build_the_environment_again(checkout: Checkout) -> None:
    checkout.make("test")
    (checkout.folder / ".venv" / "left-over").touch()
    os.utime(checkout.folder / ".venv" / ".ready", (0, 0))
    checkout.asked()
    checkout.make("test")
    assert checkout.asked()[0] == "python3 -m venv .venv"
    assert not (checkout.folder / ".venv" / "left-over").exists()


def test_an_interrupted_install_is_begun_again(checkout: Checkout) -> None:
    assert checkout.make("test", PIP_FAILS="1").returncode != 0
    checkout.asked()
    assert checkout.make("test").returncode == 0
    assert checkout.asked() == ["python3 -m venv .venv", f"{PIP} {PINNED}", TESTS]


def test_a_venv_of_the_user_is_added_to_and_never_cleared(with_venv: Checkout) -> None:
    mine = with_venv.folder / ".venv" / "mine"
    mine.touch()
    assert with_venv.make("test").returncode == 0
    pins, install, _ = with_venv.asked()
    assert pins == "python -m search.environment --pins"
    assert install == f"{PIP} -e .[dev] -c .venv/pins.txt"
    assert (with_venv.folder / ".venv" / "pins.txt").read_text() == "numpy==1\n"
    assert mine.exists()


def test_clean_removes_the_environment_made_here(checkout: Checkout) -> None:
    checkout.make("test")
    assert checkout.make("clean").returncode == 0
    assert not (checkout.folder / ".venv").exists()


def test_clean_keeps_a_venv_of_the_user(with_venv: Checkout) -> None:
    with_venv.make("test")
    assert "it is kept" in with_venv.make("clean").stdout
    assert (with_venv.folder / ".venv" / "bin" / "python").exists()


@pytest.mark.parametrize(("verb", "extra"), [("demo", ""), ("test", " dev"), ("check", " dev")])
def test_the_current_environment_is_asked_for_what_it_lacks_and_nothing_is_installed(
    checkout: Checkout, verb: str, extra: str
) -> None:
    checkout.put("uv", UV)
    checkout.make(verb, "ENV=current")
    asked = checkout.asked()
    assert asked[0] == f"python3 -m search.environment --missing{extra}"
    assert not [line for line in asked if "install" in line or "venv" in line]
    assert not (checkout.folder / ".venv").exists()


def test_the_shell_s_own_variable_ENV_is_not_ours(checkout: Checkout) -> None:
    assert checkout.make("test", ENV="/etc/profile").returncode == 0
    assert checkout.asked()[0] == "python3 -m venv .venv"


def test_an_unknown_ENV_is_refused(checkout: Checkout) -> None:
    refused = checkout.make("test", "ENV=conda")
    assert refused.returncode != 0
    assert "ENV='conda' is unknown. ENV=current takes the python on the PATH" in refused.stderr


@pytest.mark.parametrize("words", [(), ("ENV=current",), ("PYTHON=nowhere",)])
def test_a_python_that_is_too_old_or_not_there_is_refused_before_anything_is_made(
    checkout: Checkout, words: tuple[str, ...]
) -> None:
    refused = checkout.make("test", *words, TOO_OLD="1")
    assert refused.returncode != 0
    assert "minbert-search needs Python 3.11 or newer; '" in refused.stderr
    assert ("nowhere" if "PYTHON=nowhere" in words else "Python 3.9.1") in refused.stderr
    assert checkout.asked() == []
    assert not (checkout.folder / ".venv").exists()


def test_every_requirement_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines)
    for requirement in requirements:
        assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), requirement
