"""The environment of a search: a description for bug reports, and the packages that are missing.

    python -m search.run --env               the report
    python -m search.environment             the report, also where an import of the search fails
    python -m search.environment --missing   nothing, or the missing packages and the command that adds them (exit code 1)
    python -m search.environment --pins      the lines of constraints.txt for packages that are not installed yet

At the top it imports only the standard library, so that it also works in an environment without any packages.
"""

from __future__ import annotations

import argparse
import operator
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "ray", "optuna", "mlflow", "pyarrow", "pydantic", "tokenizers", "transformers", "numpy", "nvidia-ml-py")
SETTINGS = ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE")
SETTING_PREFIXES = ("MLFLOW_", "SLURM_")
GIB = 2**30

Rows = Iterator[tuple[str, str]]  # (name, text)


def report() -> list[str]:
    """Describe this environment for a bug report, as aligned lines.

    A part that fails gives its error instead of raising it. Passwords and tokens are masked.
    """
    rows = [
        row for part in (_ours, _versions, _gpus, _cuda, _cpu, _memory, _disk, _caches, _variables) for row in _guarded(part)
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def own_version() -> str:
    """Return the version of the project, installed or run from its checkout."""
    try:
        return version("minbert-search")
    except PackageNotFoundError:
        return str(_pyproject()["version"])


# ------------------------------------------------------------------------------------------------------ the report's parts


def _guarded(part: Callable[[], Rows]) -> Rows:
    """Yield the rows of a part. If it fails, the last row is the error, which may be the bug to report."""
    try:
        yield from part()
    except Exception as error:  # noqa: BLE001  a broken install can raise anything; report it
        yield part.__name__.removeprefix("_"), f"failed: {type(error).__name__}: {error}"


def _ours() -> Rows:
    yield "minbert-search", f"{own_version()} in {ROOT}"
    yield "python", f"{platform.python_version()}, {sys.executable}"
    yield "platform", platform.platform()
    yield "commit", git_commit() or "not a git checkout"


def _versions() -> Rows:
    for name in PACKAGES:
        yield name, _installed(name) or "not installed"


def _gpus() -> Rows:
    """Yield the GPUs that the driver reports, whether or not torch can use them."""
    import pynvml

    try:
        pynvml.nvmlInit()
        yield "driver", str(pynvml.nvmlSystemGetDriverVersion())
        for i in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(i)
            yield f"GPU {i}", str(pynvml.nvmlDeviceGetName(gpu))
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            yield f"GPU {i}", f"{memory.total / GIB:.1f} GiB, {memory.free / GIB:.1f} GiB free"
    except pynvml.NVMLError as error:  # no driver, or one that gives no details (a slice of a GPU, some containers)
        yield "driver", f"gives no further details: {error}"


def _cuda() -> Rows:
    """Yield the GPUs that torch can use. A difference to the driver's list is the fault."""
    import torch

    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    yield "CUDA", f"{built}; GPUs it sees: {torch.cuda.device_count()}, {'with' if bfloat16 else 'without'} bfloat16"


def _cpu() -> Rows:
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    facts = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line) if cpuinfo.exists() else {}
    facts = {name.strip(): text.strip() for name, text in facts.items()}
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    bfloat16 = sorted({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
    yield "CPU", f"{facts.get('model name') or platform.machine()}, bfloat16: {' '.join(bfloat16) or 'unknown'}"
    from minbert_core.cores import usable_cores

    yield "cores", f"{usable_cores()} usable of {os.cpu_count()}{_limit('cpu.max')}"
    import torch

    yield "torch's CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _memory() -> Rows:
    total = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB"
    meminfo = Path("/proc/meminfo")  # Linux only
    free = re.search(r"MemAvailable: +(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    yield "memory", total + (f", {int(free[1]) / 2**20:.1f} GiB free" if free else "") + _limit("memory.max")


def _limit(name: str) -> str:
    """Return a container's limit (cgroup v2) as the kernel writes it; empty without one."""
    file = Path("/sys/fs/cgroup") / name
    text = file.read_text().strip() if file.exists() else "max"
    return "" if text.startswith("max") else f", the container's {name} is {text}"


def _disk() -> Rows:
    for folder in (Path.cwd(), Path(tempfile.gettempdir()), Path("/dev/shm")):  # the last is Ray's object store on Linux
        if folder.exists():
            yield "disk", f"{shutil.disk_usage(folder).free / GIB:.1f} GiB free in {folder}"


def _caches() -> Rows:
    from huggingface_hub.constants import HF_HUB_CACHE

    yield "encoders", HF_HUB_CACHE
    from minbert_core.files import cache_folder

    yield "token files", str(cache_folder())


def _variables() -> Rows:
    for name, value in sorted(os.environ.items()):
        if name in SETTINGS or name.startswith(SETTING_PREFIXES):
            shown = masked(name, value)
            yield name, shown if shown.isprintable() else repr(shown)


def masked(name: str, value: str) -> str:
    """Return the value of an environment variable, with `***` for anything that resembles a password or a token."""
    if name == "CUDA_VISIBLE_DEVICES":  # its UUIDs look like tokens
        return value
    if re.search(r"TOKEN|PASS|SECRET|KEY|CREDENTIAL|AUTH", name, re.IGNORECASE):
        return "***"
    value = without_login(value)
    value = re.sub(r"((?:token|pass\w*|pwd|secret|key)[\"']?\s*[=:]\s*)[^&;,\s]+", r"\1***", value, flags=re.IGNORECASE)
    return re.sub(r"(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{20,}", "***", value)  # long, with letters and digits: probably a token


def without_login(text: str) -> str:
    """Return a text with `***` for user and password in an address, scheme://user:password@host. A file's path keeps its @."""
    return re.sub(r"(?<!sqlite)://\S*@", "://***@", text)


def without_secrets(text: str) -> str:
    """Return a text with `***` for everything in an address that may be secret: user, password, and what follows a `?`."""
    return re.sub(r"\?[^\s'\")]+", "?***", without_login(text))


# ------------------------------------------------------------------------------------------------------- what is missing


def missing(*extras: str) -> list[str]:
    """List the requirements of the project and of these extras that this environment does not meet: `optuna>=5.0,<6`."""
    project = _pyproject()
    wanted = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [requirement for group in wanted for requirement in group if not _is_met(requirement)]


def missing_sentence(*extras: str) -> str:
    """Name the missing packages and the command that adds them, without replacing torch; empty if none is missing."""
    lacking = missing(*extras)
    if not lacking:
        return ""
    sentence = f"The environment of {sys.executable} lacks {', '.join(lacking)}."
    torch = _installed("torch")
    if torch and any(_split(requirement)[0] == "torch" for requirement in lacking):
        return f"{sentence} Its torch is {torch}. Update it, or omit ENV=current to create a separate environment."
    pip = [sys.executable, "-m", "pip", "install"]
    if not torch:
        return f"{sentence} This adds it:\n  {shlex.join([*pip, *lacking])}"
    # pinned to its version, torch is kept, and pip rejects any package that needs another
    return f"{sentence} This adds it and keeps torch as it is:\n  {shlex.join([*pip, *lacking, f'torch=={torch}'])}"


def open_pins() -> list[str]:
    """List the lines of constraints.txt for packages that are not installed yet, so that only tested versions are added."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#") and _installed(_split(line)[0]) is None]


def _is_met(requirement: str) -> bool:
    name, extra, bounds = _split(requirement)
    present = _installed(name)
    if present is None:
        return False
    holds = {">=": operator.ge, "<": operator.lt}
    if not all(holds[sign](_numbers(present), _numbers(bound)) for sign, bound in bounds):
        return False
    of_extra = [line for line in requires(name) or [] if extra and re.search(rf"extra == .{extra}\b", line)]
    return all(_installed(_split(line)[0]) for line in of_extra)


def _split(requirement: str) -> tuple[str, str | None, list[tuple[str, str]]]:
    """Split `ray[tune]>=2.55,<3` into ("ray", "tune", [(">=", "2.55"), ("<", "3")]). The package `packaging` may be missing."""
    match = re.match(r"([\w.-]+)(?:\[(\w+)\])?([^;]*)", requirement)
    assert match, f"not a requirement: {requirement}"
    return match[1], match[2], re.findall(r"(>=|<)\s*([\d.]+)", match[3])


def _numbers(text: str) -> tuple[int, ...]:
    """Return the release of a version as numbers. `2.8.0a0+nv25.08`, as in NVIDIA's images, counts as 2.8.0."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _pyproject() -> Mapping[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def versions() -> dict[str, str]:
    """Return the versions of the packages that influence a search's results."""
    return {name: version(name) for name in ("torch", "ray", "optuna", "mlflow", "pyarrow", "tokenizers")}


def git_commit() -> str:
    """Return the commit of the code, with `+changes` if the tree differs; empty outside a checkout."""
    here = Path(__file__).resolve()
    is_tracked = ["ls-files", "--error-unmatch", here.name]  # an installed copy may be inside a checkout of something else
    try:
        _, head, changed = (
            subprocess.run(["git", *words], cwd=here.parent, capture_output=True, text=True, check=True).stdout.strip()
            for words in (is_tracked, ["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+changes" if changed else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m search.environment", description="Report this environment.")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--missing", nargs="*", choices=["dev"], help="print only missing packages, with those of the extra")
    instead.add_argument("--pins", action="store_true", help="print only the pins of packages that are not installed yet")
    options = parser.parse_args()
    if options.missing is not None:
        sys.exit(missing_sentence(*options.missing) or 0)
    print("\n".join(open_pins() if options.pins else report()))
