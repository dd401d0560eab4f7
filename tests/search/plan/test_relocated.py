"""A search's data and encoder elsewhere: found by their content, refused where it differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from minbert_core.commands import Refused
from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.data.corpus import fingerprint
from minbert_core.data.tasks import SPLITS, TASKS
from search.plan.folder import PlanRecord
from search.plan.relocated import encoder_fingerprint, find_relocated, moved, relocated_config

BARE = PlanRecord(
    name="quick", space_name="quick", about="", created="", trials=1, data="toy", train_on=[], encoders={}, fingerprints={}
)


@pytest.fixture
def record(data: Path, encoder: Path) -> PlanRecord:
    """plan.json of a search on data and encoder, as far as folders go."""
    names = ("sst", "para", "sts")
    fingerprints = {f"{n}-{s}": fingerprint(data / TASKS[n].file(s), TASKS[n]) for n in names for s in SPLITS}
    digests = {str(encoder): encoder_fingerprint(encoder)}
    return replace(
        BARE, data=str(data), fingerprints=fingerprints, encoders={"encoder": str(encoder)}, encoder_fingerprints=digests
    )


CONFIG = TrialConfig()


def test_folders_that_are_where_they_were_are_found_without_a_word(record: PlanRecord, data: Path, encoder: Path) -> None:
    relocated = find_relocated(record, CONFIG, None, None)
    assert relocated == {str(data): str(data), str(encoder): str(encoder)}
    assert moved(relocated) == {}


def test_moved_folders_are_found_where_they_are_said_to_be_and_then_again(
    record: PlanRecord, data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (data, encoder):
        shutil.move(folder, tmp_path / "elsewhere" / folder.name)
    with pytest.raises(
        Refused, match=rf"^The data of the search quick was in {data}, which is not here\. Give its folder: --data"
    ):
        find_relocated(record, CONFIG, None, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        Refused, match=rf"^The encoder of the search quick was in {encoder}, .* Give its folder: --encoder DIR$"
    ):
        find_relocated(record, CONFIG, "elsewhere/data", None)
    relocated = find_relocated(record, CONFIG, "elsewhere/data", "elsewhere/encoder")
    assert relocated == {str(folder): str(tmp_path / "elsewhere" / folder.name) for folder in (data, encoder)}
    told = replace(record, moved=moved(relocated))
    assert find_relocated(told, CONFIG, None, None) == relocated
    shutil.move(tmp_path / "elsewhere" / "data", data)  # back again
    assert find_relocated(told, CONFIG, None, None)[str(data)] == str(data)


def test_other_content_is_refused_wherever_it_lies(record: PlanRecord, data: Path, encoder: Path, tmp_path: Path) -> None:
    other_data, other_encoder = (shutil.copytree(folder, tmp_path / "other" / folder.name) for folder in (data, encoder))
    with (other_data / "sts-dev.csv").open("a") as file:
        file.write("\n")
    (other_encoder / "config.json").write_text((other_encoder / "config.json").read_text().replace("0.1", "0.2"))
    with pytest.raises(Refused, match=rf"^The data in {other_data} differs from the search's data \(sts-dev\), so its trials"):
        find_relocated(record, CONFIG, str(other_data), None)
    with pytest.raises(Refused, match=rf"^The encoder in {other_encoder} differs from the encoder of the search quick"):
        find_relocated(record, CONFIG, None, str(other_encoder))
    shutil.copytree(other_data, data, dirs_exist_ok=True)
    with pytest.raises(Refused, match=r"differs from the search's data \(sts-dev\)"):
        find_relocated(record, CONFIG, None, None)
    (encoder / "vocab.txt").write_text((encoder / "vocab.txt").read_text() + "more\n")
    with pytest.raises(Refused, match=rf"^The encoder in {encoder} differs from the search's encoder"):
        find_relocated(replace(record, data="toy"), CONFIG, None, None)


def test_a_file_that_is_no_part_of_an_encoder_does_not_change_it(encoder: Path) -> None:
    before = encoder_fingerprint(encoder)
    (encoder / "README.md").write_text("mine")
    assert encoder_fingerprint(encoder) == before


def test_of_several_encoders_one_can_be_said_to_lie_elsewhere(record: PlanRecord, encoder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(encoder, tmp_path / "other")
    (other / "vocab.txt").write_text((other / "vocab.txt").read_text() + "more\n")
    record = replace(record, data="toy")
    record.encoders["other"] = str(other)
    record.encoder_fingerprints[str(other)] = encoder_fingerprint(other)
    now = shutil.move(other, tmp_path / "now")
    assert find_relocated(record, CONFIG, None, str(now)) == {str(encoder): str(encoder), str(other): str(now)}
    shutil.move(encoder, tmp_path / "gone")
    with pytest.raises(Refused, match=rf"was in {encoder}, which is not here\. Only one can be given: link to it"):
        find_relocated(record, CONFIG, None, str(now))


def test_an_encoder_that_the_space_names_is_looked_for_by_its_name_again(
    record: PlanRecord, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    now = shutil.move(encoder, tmp_path / "elsewhere" / "encoder")
    monkeypatch.chdir(tmp_path / "elsewhere")  # `encoder`, as the space has it, is a folder here
    assert find_relocated(record, CONFIG, None, None)[str(encoder)] == str(now)


def test_toy_and_tiny_lie_nowhere(data: Path, encoder: Path) -> None:
    assert find_relocated(BARE, CONFIG, "toy", "tiny") == find_relocated(BARE, CONFIG, None, None) == {}
    with pytest.raises(Refused, match=r"is on the toy corpus, which every machine has\. Omit --data\."):
        find_relocated(BARE, CONFIG, str(data), None)
    with pytest.raises(Refused, match=r"has the tiny encoder, which every machine has\. Omit --encoder\."):
        find_relocated(BARE, CONFIG, None, str(encoder))


def test_a_config_is_opened_where_its_folders_are_and_stays_as_it_is() -> None:
    config = load_config({"data": "/old/data", "encoder": {"checkpoint": "/old/bert", "hidden_dropout": 0.3}})
    opened = relocated_config(config, {"/old/data": "/new/data", "/old/bert": "/new/bert"})
    assert (opened.data, opened.encoder.checkpoint, opened.encoder.hidden_dropout) == ("/new/data", "/new/bert", 0.3)
    assert relocated_config(opened, {}) == opened
    assert config.data == "/old/data"


def test_another_shard_is_another_encoder(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    for name in names:
        (tmp_path / name).write_text("weights")
    before = encoder_fingerprint(tmp_path)
    (tmp_path / names[1]).write_text("other weights")
    assert encoder_fingerprint(tmp_path) != before
