"""`make gpu` where there is no GPU: it says so; and those of its checks that a CPU can run hold here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_run
from minbert_core import encoder
from minbert_core.data import packed
from minbert_core.data.toy import toy_folder
from minbert_core.encoder import TINY, Masks, new_encoder

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_without_a_gpu_it_says_so_writes_both_files_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_run", "--out", str(tmp_path / "gpu")])
    assert gpu_run.main() == 0
    sentence = "There is no GPU here: nothing was checked or measured."
    assert capsys.readouterr().out.startswith(sentence)
    assert sentence in (tmp_path / "gpu" / "gpu.md").read_text()
    assert json.loads((tmp_path / "gpu" / "gpu.json").read_text())["checks"] == []


def test_the_rows_and_the_profile_are_measured_on_a_cpu_too(
    tmp_path: Path, small_toy_cache: Path, transformers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy_folder(small_toy_cache / "minbert")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    words = (data / "vocab.txt").read_text(encoding="utf-8").splitlines()
    base = gpu.random_base(tmp_path, data, replace(TINY, vocab_size=len(words)))
    for name, value in (("STEP_GOALS", {4: 2.0}), ("METHOD_BATCH", 4), ("STEPS", 1), ("WORKLOADS", (("sst", "single"),))):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **_: None)  # it would take half a minute
    setting = gpu.Setting(data, base, 1, "cpu")
    rows = [row for part in (gpu.steps, gpu.methods, gpu.evaluation, gpu.compiled) for row in part(setting)]
    found = {row.what: row.figure.median for row in rows if row.figure}
    assert len(found) == len(rows) == 12
    assert all(value > 0 for value in found.values())
    assert {f"{name}, relative to the sum" for name in (*gpu.SURGERY, "SMART")} <= found.keys()
    costs = gpu.largest_costs(setting)
    assert len(costs) == gpu.LARGEST
    assert 0 < sum(share for _, _, share in costs) <= 100


@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
def test_a_compiled_layer_is_one_graph_for_all_batches_and_computes_the_same() -> None:
    """What torch's compiler makes of a layer as a GPU runs it: without a break, and once for all shapes."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    plain, compiled = (new_encoder(TINY, 0, 0.0, 0.0) for _ in range(2))
    compiled.layers[0].compile(backend=keep, dynamic=True, fullgraph=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "grid_for", lambda *_: packed.KERNEL)
        patch.setattr(encoder, "attend", encoder.attend_in_one_kernel)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            lengths = torch.randint(3, 30, (8,), generator=generator).tolist()
            batch = gpu_checks.batch_of([torch.randint(1, 999, (length,), generator=generator) for length in lengths])
            torch.testing.assert_close(compiled(batch, Masks(seed)), plain(batch, Masks(seed)))
    assert len(graphs) == 1


def test_the_tables_hold_what_was_found(tmp_path: Path) -> None:
    check = {"name": "a trial repeats", "holds": False, "seconds": 2.5, "note": "dev scores 1 and 2"}
    search = {"corpus": "toy", "trials": "as probed", "seconds": 60.0, "trials_per_hour": 720.0, "exit_code": 0}
    report = {
        "machine": {"GPU": "none"},
        "checks": [check],
        "rows": [],
        "profile": [{"what": "aten::mm", "ms": 1.5, "percent": 40.0}],
    }
    report |= {"notes": [], "searches": [search]}
    gpu_run.write(tmp_path, report)
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert "| a trial repeats | no | 2.5 | dev scores 1 and 2 |" in lines
    assert "| aten::mm | 1.50 | 40.0 |" in lines
    assert "| toy | as probed | 60 | 720 |" in lines


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_encoder_is_bert_model_on_the_cpu(precision: str, transformers: object) -> None:
    holds, note = gpu_checks.encoder_error("cpu", precision)
    assert holds, note


def test_a_trial_resumes_to_the_same_score_on_the_cpu(small_toy_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_toy_cache))
    holds, note = gpu_checks.resumes("cpu")
    assert holds, note


def test_every_variant_has_a_check_and_an_error_is_one_that_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for name, _ in gpu_checks.checks("cuda")}
    assert {"gradient: gradvac", "smoothness: smart", "adapter: pal", "loss_weights: famo", "pooling: mean"} <= names
    monkeypatch.setattr(gpu_checks, "checks", lambda _: iter([("one", lambda: 1 / 0), ("two", lambda: (True, ""))]))
    first, second = gpu_checks.run_checks("cpu")
    assert (first.holds, first.note) == (False, "ZeroDivisionError: division by zero")
    assert second.holds
