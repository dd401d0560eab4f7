"""Row 14: sentences per second of a whole file, compared with transformers' pipeline("text-classification", batch_size=32).

Ours is the command's own function, which loads a model, reads a CSV file and writes one with answers and probabilities. The
pipeline loads its model from a folder and gets the same sentences as a list, in the order of the file. Both have all threads.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.peers import texts, transformers
from benchmarks.rounds import Row, alternate, milliseconds, ratio
from minbert_core.config_checks import load_config
from minbert_core.cores import usable_cores
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.model import build_model, save_model
from minbert_core.predict_file import predict_file

LIKE_THE_PEER = {"tasks": {"all": {"pooling": "pooler"}}, "machine": {"device": "cpu"}}  # BertForSequenceClassification


def rows(data: Path, encoder: Path, rounds: int) -> Iterator[Row]:
    """Yield the ratio of the seconds, peer to ours, for the dev sentences of SST."""
    sentences = [example[0] for example in texts(data, "sst", "dev")[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = load_config({"data": str(data), "encoder": str(encoder), "train_on": ["sst"], **LIKE_THE_PEER})
        inputs = open_inputs(config)
        save_model(build_model(config, build_encoder(config, inputs)), config, folder / "model", inputs.encoder_folder)
        with (folder / "in.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["sentence"], *([sentence] for sentence in sentences)])
        library = transformers()
        model = library.BertForSequenceClassification.from_pretrained(encoder, num_labels=5)
        tokenizer = library.AutoTokenizer.from_pretrained(encoder)
        model.save_pretrained(folder / "library")
        tokenizer.save_pretrained(folder / "library")

        def ours() -> None:
            (folder / "out.csv").unlink(missing_ok=True)
            with contextlib.redirect_stdout(io.StringIO()):
                predict_file(folder / "model", folder / "in.csv", folder / "out.csv", [])

        def peer() -> None:
            torch.set_float32_matmul_precision("highest")  # its default; ours may choose oneDNN, after a probe
            classify = library.pipeline("text-classification", model=str(folder / "library"), device="cpu")
            classify(sentences, batch_size=32, truncation=True, top_k=None)

        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        times = alternate({"ours": ours, "peer": peer}, rounds, warm_up=1)
    yield Row(
        number=14,
        what="prediction of a file",
        setting=f"{encoder.name}, {len(sentences):,} sentences of SST dev, {usable_cores()} threads, loading included",
        goal=(">=", 2.0),
        figure=ratio(times, "peer", "ours"),
        details=milliseconds(times),
    )
