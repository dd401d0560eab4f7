"""The machine under a trial: what `auto` means, threads, the cap of GPU memory, and what of it is used."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from pynvml import NVMLError_NotSupported

from minbert_core.config import Machine
from minbert_core.config_checks import load_config
from minbert_core.machine import fastest_matmul, prepare, resolve_device, resolve_precision, tokens_per_pass, usage
from minbert_core.settings.faults import SettingsError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def caps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the driver was told: a GPU is pretended at torch's border."""
    told: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", told.append)
    return told


def test_auto_device_and_precision_are_what_the_machine_has() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_precision("auto", CPU) == "float32"
    assert resolve_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize(("has_bfloat16", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_precision_of_a_gpu_is_what_it_computes_in(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, precision: str
) -> None:
    """Not what it emulates: bfloat16 is then slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or has_bfloat16)
    assert resolve_precision("auto", CUDA) == precision
    assert resolve_precision("float32", CUDA) == "float32"


def test_a_share_of_a_gpu_caps_the_memory_of_the_process(caps: list[float]) -> None:
    assert prepare(Machine(gpu_share=0.25)) == CUDA
    assert prepare(Machine(device="cuda", gpu_share=0.5)) == CUDA
    assert caps == [0.25, 0.5]


def test_a_whole_gpu_and_a_cpu_have_no_cap(caps: list[float]) -> None:
    assert prepare(Machine(device="cuda")) == CUDA
    assert prepare(Machine(device="cpu", gpu_share=0.25)) == CPU
    assert caps == []


def test_an_evaluation_s_passes_grow_with_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [tokens_per_pass(CPU)]
    for multiprocessors in (40, 132):  # a T4, an H100
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _, num=multiprocessors: SimpleNamespace(multi_processor_count=num)
        )
        sizes.append(tokens_per_pass(CUDA))
    assert sizes == [4096, 5120, 16896]


def test_a_trial_has_as_many_threads_as_its_config_says() -> None:
    try:
        prepare(Machine(device="cpu", threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_on_a_cpu_the_peak_of_resident_memory_is_told_in_gigabytes() -> None:
    """More than torch alone needs, less than a machine of our days has: a unit that is off by 1024 would show."""
    first = usage(CPU)
    assert set(first) == {"system/peak_memory_gb"}
    assert 0.1 < first["system/peak_memory_gb"] < 100
    kept = torch.ones(75_000_000)  # 0.3 GB; the peak cannot fall
    assert usage(CPU)["system/peak_memory_gb"] >= first["system/peak_memory_gb"]
    assert kept.numel() == 75_000_000


def test_on_a_gpu_memory_and_use_are_told_and_use_is_left_out_where_the_driver_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3_000_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 87)
    assert usage(CUDA) == {"system/peak_memory_gb": 3.0, "system/gpu_percent": 87.0}

    def silent(device: torch.device) -> int:
        raise NVMLError_NotSupported

    monkeypatch.setattr(torch.cuda, "utilization", silent)
    assert usage(CUDA) == {"system/peak_memory_gb": 3.0}


# --------------------------------------------------------------------------------------------------------- matrix products


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Pretends at torch's border that the other route takes so long and errs so much: seconds are told by the clock."""
    real, clock = torch.Tensor.__matmul__, [0.0]

    def pretend(seconds: float, error: float) -> None:
        def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            is_other = torch.get_float32_matmul_precision() == "medium"
            clock[0] += seconds if is_other else 1.0
            product = real(x.double(), weight.double()).to(x.dtype)  # whatever this machine's own other route rounds to
            return product + (error if is_other and x.dtype == torch.float32 else 0.0)

        monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
        monkeypatch.setattr("minbert_core.machine.time.perf_counter", lambda: clock[0])

    return pretend


@pytest.mark.parametrize(
    ("seconds", "error", "route"),
    [(0.5, 0.0, "onednn"), (0.97, 0.0, "torch"), (2.0, 0.0, "torch"), (0.1, 0.05, "torch")],
    ids=["twice as fast", "hardly faster", "slower", "fast because it rounds"],
)
def test_the_fastest_exact_route_is_taken(
    products: Callable[[float, float], None], seconds: float, error: float, route: str
) -> None:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    products(seconds, error)
    assert fastest_matmul(CPU, 1) == route
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before


def test_the_probe_finds_a_route_on_this_machine_and_none_is_sought_on_a_gpu() -> None:
    assert fastest_matmul(CPU, 1) in ("torch", "onednn")
    assert fastest_matmul(CUDA, 1) == "torch"


def test_a_trial_s_products_go_where_its_config_says_and_never_below_float32_on_a_gpu(caps: list[float]) -> None:
    try:
        prepare(Machine(device="cpu", matmul="onednn"))
        assert torch.get_float32_matmul_precision() == "medium"
        prepare(Machine(device="cuda", matmul="onednn"))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        prepare(Machine(device="cpu"))
    assert torch.get_float32_matmul_precision() == "highest"


def test_an_apple_s_gpu_is_refused_with_a_sentence() -> None:
    sentence = r"must be auto, cpu or cuda: the packed encoder has not been checked on Apple's GPUs .* Got mps\."
    with pytest.raises(ValueError, match=f"^`device` {sentence}$"):
        resolve_device("mps")
    with pytest.raises(SettingsError, match=f"^`machine/device` {sentence} Use cpu, which auto takes on a Mac\\.$"):
        load_config({"machine": {"device": "mps"}})
