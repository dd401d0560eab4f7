"""What a search with a storage offers to its nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from minbert_core.commands import Refused
from minbert_core.config_checks import load_config
from search.plan.offered import files_of


def test_the_files_that_trials_read_are_listed_and_texts_outside_the_data_folder_refused(tmp_path: Path) -> None:
    def of(text: str) -> list[str]:
        stages = [{"kind": "mlm", "texts": [text], "epochs": 1}, {"kind": "multitask"}]
        config = load_config({"data": str(tmp_path), "encoder": "bert-base-uncased", "train_on": ["sst"], "stages": stages})
        return files_of([config], tmp_path)

    assert of("wiki/part.txt") == ["ids-sst-dev.csv", "ids-sst-train.csv", "wiki/part.txt"]
    for text in ("../wiki.txt", "wiki/../../wiki.txt", "/wiki.txt"):
        with pytest.raises(Refused, match=r"the texts of a stage have to be in the data folder.*Got .*wiki\.txt\."):
            of(text)
