"""What a search may use: cores, GPUs that are free, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

from minbert_core import cores as cores_module
from minbert_core.commands import Refused
from minbert_core.cores import usable_cores
from search.plan.resources import ORDER, VISIBLE, Resources, find_resources, machine_settings, only_these


@pytest.mark.parametrize(
    ("cpus", "gpus", "cpus_per_trial", "gpus_per_trial", "slots"),
    [
        (2, 0, 1, 0, 2),
        (5, 0, 2, 0, 2),
        (8, 2, 1, 0.5, 4),
        (16, 1, 1, 0.1, 10),
        (128, 7, 1, 0.07, 98),  # 14 on each
        (8, 2, 1, 0.4, 4),  # a fifth trial would need two halves of two GPUs
        (4, 4, 2, 1, 2),  # the cores are what is short
    ],
)
def test_slots_are_what_both_cores_and_gpus_allow(
    cpus: int, gpus: float, cpus_per_trial: int, gpus_per_trial: float, slots: int
) -> None:
    assert Resources(cpus, gpus, cpus_per_trial, gpus_per_trial).slots == slots


@pytest.mark.parametrize(("present", "have", "line"), [(0, "no GPU", "run --gpus 0"), (1, "1 GPU", "run --gpus 1")])
def test_too_many_gpus_are_refused_with_the_line_that_works(
    monkeypatch: pytest.MonkeyPatch, present: int, have: str, line: str
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    with pytest.raises(Refused, match=f"--gpus 4 asks for more than this machine has \\({have}\\)") as refusal:
        find_resources("4", None, 1, "run")
    last = str(refusal.value).splitlines()[-1].strip()
    assert last == line
    assert find_resources(last.split()[-1], None, 1, "run").gpus == present


def test_auto_takes_the_gpus_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = find_resources("auto", None, 1, "run")
    assert (found.gpus, found.gpus_per_trial) == (2, 1.0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = find_resources("auto", 0.5, 1, "run")
    assert (found.gpus, found.gpus_per_trial) == (0, 0)


def test_a_trial_larger_than_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="--cpus-per-trial 100000 asks for more than this machine's"):
        find_resources("0", None, 100_000, "run")


def test_a_share_of_a_gpu_is_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    on_gpu = {"device": "cuda", "threads": 2, "precision": "bfloat16"}
    assert machine_settings(Resources(8, 1, 2, 0.25), ["tiny"]) == {**on_gpu, "gpu_share": 0.25}
    assert machine_settings(Resources(8, 2, 2, 1), ["tiny"]) == on_gpu
    assert machine_settings(Resources(8, 2, 2, 1), ["bert-base-uncased"]) == {**on_gpu, "matmul": "torch"}
    assert machine_settings(Resources(8, 0, 1, 0), ["tiny", "bert-base-uncased"])["matmul"] in ("torch", "onednn")
    assert machine_settings(Resources(8, 0, 2, 0), ["tiny"]) == {"device": "cpu", "threads": 2, "precision": "float32"}


# --------------------------------------------------------------------------------------------------------------- cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),  # docker --cpus=2
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu.max": ""}, 16),
        ({}, 16),
    ],
)
def test_a_containers_limit_counts_where_it_is_less_than_the_cores_one_is_bound_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores
    monkeypatch.setattr(cores_module, "CGROUP", tmp_path)
    assert find_resources("0", None, 1, "run").slots == cores


# ----------------------------------------------------------------------------------------------------------- GPUs in use


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """gpus(0.3, 37): a machine whose GPUs of 80 GB have so many in use, as CUDA and its driver tell it."""

    def machine(*used_gb: float) -> None:
        def seen() -> int:
            return len(os.environ[VISIBLE].split(",")) if VISIBLE in os.environ else len(used_gb)

        monkeypatch.setattr(torch.cuda, "device_count", seen)
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(used_gb))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda name: int(name.removeprefix("GPU-")))
        monkeypatch.setattr(
            pynvml, "nvmlDeviceGetMemoryInfo", lambda handle, version: SimpleNamespace(used=used_gb[handle] * 1e9, total=80e9)
        )

    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(cores_module, "CGROUP", Path("/nowhere"))
    return machine


def names(resources: Resources) -> list[str]:
    return [gpu.name for gpu in resources.taken]


def test_auto_leaves_out_the_gpus_that_others_use_and_says_so(gpus: Callable[..., None]) -> None:
    gpus(0.4, 37, 0.0, 12.4)
    found = find_resources("auto", None, 1, "run")
    assert (names(found), found.gpus, found.slots) == (["0", "2"], 2, 2)
    assert found.which_gpus == (
        ", on GPU 0, 2; left out, because others use them: GPU 1 (37 of 80 GB in use), 3 (12 of 80 GB in use)"
    )
    gpus(0.4, 0.0)
    assert find_resources("auto", None, 1, "run").which_gpus == ", on GPU 0, 1"
    assert find_resources("0", None, 1, "run").which_gpus == ""


def test_the_freest_gpus_are_taken(gpus: Callable[..., None]) -> None:
    gpus(3.5, 0.1, 2.0, 0.2)
    assert names(find_resources("2", None, 1, "run")) == ["1", "3"]
    assert names(find_resources("3", None, 1, "run")) == ["1", "2", "3"]


@pytest.mark.parametrize(("used_gb", "busy"), [(3.9, False), (4.1, True)])  # 5 % of 80 GB
def test_a_little_in_use_is_no_use(gpus: Callable[..., None], used_gb: float, busy: bool) -> None:
    gpus(used_gb, 0)
    assert names(find_resources("auto", None, 1, "run")) == (["1"] if busy else ["0", "1"])


def test_fewer_free_gpus_than_asked_for_are_refused_with_what_is_in_use(gpus: Callable[..., None]) -> None:
    gpus(0, 37, 50.6)
    with pytest.raises(Refused) as refusal:
        find_resources("2", None, 1, "run")
    assert str(refusal.value) == (
        "--gpus 2 asks for 2 GPUs, but others use 2 of this machine's 3: GPU 1 (37 of 80 GB in use), "
        "2 (51 of 80 GB in use). This works now, 1 at a time:\n  run --gpus 1\n"
        "Wait for the others, or select a busy one by its number: CUDA_VISIBLE_DEVICES=1."
    )
    gpus(37)
    with pytest.raises(Refused, match=r"^A GPU is needed, but others use this machine's only one: GPU 0 \(37"):
        find_resources("auto", None, 1, "run")  # not on the CPU without a word
    assert find_resources("0", None, 1, "run").gpus == 0


def test_gpus_that_the_user_has_named_are_taken_busy_or_not(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(37, 0, 5, 0.1)
    monkeypatch.setenv(VISIBLE, "0,2,3")
    assert names(find_resources("auto", None, 1, "run")) == ["0", "2", "3"]
    found = find_resources("2", None, 1, "run")
    assert names(found) == ["2", "3"]  # the freest of these
    assert found.which_gpus.startswith(", on GPU 2 (5 of 80 GB in use), 3; left out")
    monkeypatch.setenv(VISIBLE, "GPU-2")
    assert names(find_resources("1", None, 1, "run")) == ["GPU-2"]
    with pytest.raises(
        Refused, match=r"--gpus 2 asks for more than this machine has \(1 GPU; CUDA_VISIBLE_DEVICES=GPU-2 hides any other\)"
    ):
        find_resources("2", None, 1, "run")


def test_where_the_driver_does_not_tell_all_gpus_are_free(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(37, 37)

    def silent(*_: object, **__: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", silent)
    assert names(find_resources("auto", None, 1, "run")) == ["0", "1"]


def test_the_processes_of_a_search_see_its_gpus_and_nobody_elses_settings_change(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(37, 0, 0)
    monkeypatch.delenv(ORDER, raising=False)
    with only_these(find_resources("auto", None, 1, "run").taken):
        assert (os.environ[VISIBLE], os.environ[ORDER]) == ("1,2", "PCI_BUS_ID")
    assert VISIBLE not in os.environ
    assert ORDER not in os.environ
    monkeypatch.setenv(VISIBLE, "2,1")
    with only_these(find_resources("auto", None, 1, "run").taken):
        assert os.environ[VISIBLE] == "2,1"
        assert ORDER not in os.environ
    with only_these(()):  # on the CPU
        assert os.environ[VISIBLE] == "2,1"


def test_a_machine_without_gpus_says_how_to_learn_what_it_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(Refused, match=r"\n  run --gpus 0\n\(--dry-run first estimates the time\.\)$"):
        find_resources("4", None, 1, "run", estimate="--dry-run")
