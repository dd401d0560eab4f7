"""The report for a bug report, what it masks, and what an environment lacks."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from search import environment, run
from search.environment import masked, missing, missing_sentence, open_pins, own_version, report, without_secrets

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variables that the report tells: other tests import what sets some, and its column is as wide as they are."""
    for name in list(os.environ):
        if name.startswith(("RAY_", "CUDA_", "MLFLOW_", "SLURM_")):
            monkeypatch.delenv(name)


def without(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Let installed packages seem to have other versions; None: not installed."""

    def version(name: str) -> str:
        found = versions[name] if name in versions else metadata.version(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(environment, "version", version)


# ----------------------------------------------------------------------------------------------------------- the report


def test_the_report_names_versions_hardware_places_and_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter2@db/mlflow")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("EDITOR", "ed")
    assert run.main(["--env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = dict(line.split("  ", 1) for line in lines)
    names = [
        "minbert-search",
        "python",
        "platform",
        "commit",
        *environment.PACKAGES,
        "driver",
        "CUDA",
        "CPU",
        "cores",
        "memory",
    ]
    assert not {*names, "disk", "encoders", "token files"} - told.keys()
    assert told["ray"].strip() == metadata.version("ray")
    assert told["RAY_ADDRESS"].strip() == "head:6379"
    assert told["MLFLOW_TRACKING_URI"].strip() == "postgresql://***@db/mlflow"
    assert told["SLURM_JOB_ID"].strip() == "17"
    assert "EDITOR" not in told


def test_the_report_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_A_LONG_NAME", "1")
    lines = report()
    column = len("MLFLOW_A_LONG_NAME") + 2
    assert lines[2] == "platform".ljust(column) + platform.platform()
    assert all(line[column - 1] == " " != line[column] for line in lines)


def test_a_part_that_fails_is_told_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # its import fails
    lines = report()
    assert [line for line in lines if line.startswith("cuda ")] == [
        "cuda            failed: ModuleNotFoundError: import of torch halted; None in sys.modules"
    ]
    assert [line for line in lines if line.startswith("memory ")]


def test_a_driver_s_fault_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def init() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    assert "driver          gives no further details: RM has detected an NVML/RM version mismatch." in report()


def test_an_absent_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, transformers=None)
    assert "transformers    not installed" in report()


def test_a_setting_of_several_lines_stays_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_COMMENT", "two\nlines")
    assert any(line.endswith(r"'two\nlines'") for line in report())


@pytest.mark.parametrize(
    ("arguments", "code", "told"), [([], 0, "torch "), (["--missing"], 1, "This adds it:"), (["--pins"], 0, "torch==")]
)
def test_it_answers_where_nothing_at_all_is_installed(arguments: list[str], code: int, told: str) -> None:
    command = [sys.executable, "-S", "-m", "search.environment", *arguments]  # -S: without site-packages
    done = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"minbert-search {own_version()}\n"


# ----------------------------------------------------------------------------------------------------------- the masking


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("MLFLOW_TRACKING_PASSWORD", "hunter2", "***"),
        ("MLFLOW_TRACKING_TOKEN", "x", "***"),
        ("SLURM_JWT_KEY", "x", "***"),
        ("MLFLOW_TRACKING_URI", "https://me:p@ss/w@host:5000/x", "https://***@host:5000/x"),
        ("MLFLOW_TRACKING_URI", "mysql://db/x?user=me&password=hunter2&ssl=1", "mysql://db/x?user=me&password=***&ssl=1"),
        ("MLFLOW_RUN_CONTEXT", '{"api_key": "hunter2", "a": 1}', '{"api_key": ***, "a": 1}'),
        ("MLFLOW_X", "hf_AbCdEfGhIjKlMnOpQrSt1234", "***"),
        ("MLFLOW_X", "bearer eyJhbGciOiJIUzI1NiIsInR5cCI6.eyJzdWIiOiIxMjM0NTY3ODkw", "bearer ***.***"),
    ],
)
def test_what_looks_like_a_password_or_a_token_is_masked(name: str, value: str, shown: str) -> None:
    assert masked(name, value) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no answer from postgresql://me:p@ss/w@box/db today", "no answer from postgresql://***@box/db today"),
        ("http://box/?token=hunter2&x=1 (refused)", "http://box/?*** (refused)"),
        ("Max retries exceeded with url: /api?token=hunter2", "Max retries exceeded with url: /api?***"),
        ("sqlite:////home/me@work/R&D #1/mlflow.db", "sqlite:////home/me@work/R&D #1/mlflow.db"),
        ("Is the disk full? See http://box:5000.", "Is the disk full? See http://box:5000."),
    ],
)
def test_an_address_in_a_sentence_is_shown_without_its_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUDA_VISIBLE_DEVICES", "GPU-8f3c1d2e-aaaa-bbbb-cccc-0123456789ab"),
        ("SLURM_JOB_NODELIST", "gpu[01-20]"),
        ("SLURM_SUBMIT_DIR", "/home/me/minbert"),
        ("MLFLOW_TRACKING_URI", "sqlite:////home/me/mlflow.db"),
        ("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true"),
    ],
)
def test_what_helps_a_reader_is_shown(name: str, value: str) -> None:
    assert masked(name, value) == value


# ------------------------------------------------------------------------------------------------------- what is missing


def test_nothing_is_missing_here() -> None:
    assert missing("dev") == []
    assert missing_sentence("dev") == ""


def test_what_is_missing_is_named_with_a_command_that_leaves_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, optuna=None, torch="2.9.1+cu128", rich="12.1")
    sentence, command = missing_sentence().splitlines()
    assert (
        sentence
        == f"The environment of {sys.executable} lacks optuna>=5.0,<6, rich>=13. This adds it and keeps torch as it is:"
    )
    assert shlex.split(command) == [
        *(sys.executable, "-m", "pip", "install"),
        *("optuna>=5.0,<6", "rich>=13", "torch==2.9.1+cu128"),
    ]


def test_a_torch_that_is_too_old_is_the_user_s_to_update(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, torch="2.6.0+cu124")
    assert "lacks torch>=2.8. Its torch is 2.6.0+cu124. Update it" in missing_sentence()
    assert "pip" not in missing_sentence()


@pytest.mark.parametrize(
    ("name", "version", "met"),
    [
        ("torch", "2.8.0", True),
        ("torch", "2.8.0a0+34c6371d24.nv25.08", True),  # NVIDIA's images: a pre-release by its name only
        ("torch", "2.10.0", True),
        ("torch", "2.7.1", False),
        ("optuna", "5.9", True),
        ("optuna", "6.0", False),
    ],
)
def test_a_version_is_held_against_its_range(monkeypatch: pytest.MonkeyPatch, name: str, version: str, met: bool) -> None:
    without(monkeypatch, **{name: version})
    assert (missing() == []) is met


def test_an_extra_s_packages_are_needed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, tensorboardX=None)  # of ray[tune]; plain ray does without
    assert missing() == ["ray[tune]>=2.55,<3"]


def test_the_dev_packages_are_asked_for_only_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, torchjd=None)
    assert missing() == []
    assert missing("dev") == ["torchjd>=0.18,<0.19"]


def test_only_what_is_not_installed_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, torch=None, numpy="1.0")
    names = [line.partition("==")[0] for line in open_pins()]
    assert "torch" in names
    assert "numpy" not in names
    assert "ray" not in names


def test_an_installed_copy_inside_another_checkout_has_no_commit(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@home"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    shutil.copy(Path(environment.__file__), tmp_path / "environment.py")
    code = "import environment; print(repr(environment.git_commit()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "''\n"
