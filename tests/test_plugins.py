"""A file of the user's joins the families: in configs, spaces, saved models and searches; another content is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minbert_core import plugins
from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config, read_config
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.model import build_model, load_model, save_model
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.knobs import knob_at
from minbert_core.settings.paths import as_written
from search.plan.folder import write_space
from search.space.__main__ import main as space_command
from search.space.space import read_space

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "plugins" / "my_head.py"
Capture = pytest.CaptureFixture[str]


Forget = Callable[[], None]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Forget) -> Path:
    shutil.copy(EXAMPLE, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_variant_of_a_plugin_is_known_wherever_its_family_is(here: Path, forget: Forget) -> None:
    config = load_config({"plugins": ["my_head.py"], "tasks": {"all": {"head": {"kind": "sharp_gated", "sharpness": 2}}}})
    assert type(config.task("sst").head).__name__ == "SharpGated"
    knob = knob_at(TrialConfig, "tasks/all/head/sharp_gated/sharpness")
    assert knob is not None
    assert knob.default == 1.0
    written = as_written(config)
    assert written["plugins"] == [f"my_head.py@{plugins._digest(EXAMPLE.read_bytes())}"]
    assert load_config(written) == config
    with pytest.raises(SettingsError, match="Unknown `tasks/all/head` kind 'sharp_gatd'; did you mean 'sharp_gated'"):
        load_config({"plugins": ["my_head.py"], "tasks": {"all": {"head": "sharp_gatd"}}})
    forget()
    with pytest.raises(SettingsError, match="Unknown `tasks/all/head` kind 'sharp_gated'"):
        load_config({"tasks": {"all": {"head": "sharp_gated"}}})


def test_a_saved_model_has_its_plugin_and_answers_in_a_new_process(
    here: Path, forget: Forget, tiny: Callable[..., TrialConfig]
) -> None:
    config = tiny(plugins=["my_head.py"], tasks={"all": {"head": "sharp_gated"}})
    inputs = open_inputs(config)
    model = build_model(config, build_encoder(config, inputs))
    save_model(model, config, here / "best", inputs.encoder_folder)
    forget()
    (here / "my_head.py").unlink()
    loaded, _ = load_model(here / "best")
    for name, tensor in loaded.heads.state_dict().items():
        assert torch.equal(tensor, model.heads.state_dict()[name])
    forget()
    (here / "best" / "plugins" / "my_head.py").write_bytes(EXAMPLE.read_bytes() + b"\n# mine\n")
    with pytest.raises(SettingsError, match=r"my_head\.py has changed since it was recorded: its sha256 begins with "):
        load_model(here / "best")


def test_a_search_keeps_a_copy_by_which_its_trials_are_read(here: Path, forget: Forget) -> None:
    (here / "mine.yaml").write_text(
        "config:\n  data: toy\n  encoder: tiny\n  plugins: [my_head.py]\n"
        "  tasks: {all: {head: {choice: [linear, {kind: sharp_gated, sharpness: {log_uniform: [0.1, 10]}}]}}}\n"
    )
    space = read_space(here / "mine.yaml")
    trial = here / "runs" / "mine" / "trials" / "007"
    trial.mkdir(parents=True)
    write_space(here / "runs" / "mine", space.document)
    (trial / "config.yaml").write_text(f"plugins: {space.tree['plugins']}\ntasks: {{all: {{head: sharp_gated}}}}\n")
    forget()
    (here / "my_head.py").write_text("raise SystemError")
    assert read_config(trial / "config.yaml").task("sst").head.kind == "sharp_gated"
    forget()
    assert read_space(here / "runs" / "mine" / "space.yaml", name="mine").domains()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("x = 1\nx.y\n", r"bad\.py:2: the plugin cannot be run: AttributeError: 'int' object has no attribute 'y'\."),
        ("def f(:\n", r"bad\.py:1: the plugin cannot be run: SyntaxError: "),
        ("x = 1\n", r"bad\.py defines no variant\. A variant is a class with a `kind`"),
        (
            "from typing import Literal\nfrom minbert_core.methods.heads import Linear\n"
            "class Mine(Linear):\n    kind: Literal['mlp'] = 'mlp'\n",
            r"the kind 'mlp' of class Mine is that of Mlp\. Choose another\.",
        ),
        (
            "from typing import Literal\nfrom minbert_core.settings.models import Variant\n"
            "class Mine(Variant):\n    kind: Literal['mine'] = 'mine'\n",
            r"class Mine belongs to no family\. Let it inherit from ",
        ),
        (None, r"`plugins` names bad\.py, but there is no such file in "),
    ],
)
def test_a_plugin_that_cannot_join_gets_a_sentence_with_file_and_line(code: str | None, sentence: str, here: Path) -> None:
    if code is not None:
        (here / "bad.py").write_text(code)
    (here / "my.yaml").write_text("data: toy\nplugins: [bad.py]\n")
    with pytest.raises(SettingsError, match=rf"my\.yaml:2: .*{sentence}"):
        read_config(here / "my.yaml")


def test_the_example_passes_the_check_and_a_broken_one_does_not(
    here: Path, small_toy_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_toy_cache))
    assert space_command(["--check", "my_head.py"]) == 0
    assert capsys.readouterr().out.startswith("head 'sharp_gated': builds, trains, repeats")
    broken = EXAMPLE.read_text().replace("return logits_BK", "return logits_BK.detach() + 0 * features_BF.sum()")
    (here / "broken.py").write_text(broken)
    assert space_command(["--check", "broken.py"]) == 1
    assert "no gradient reaches sst.gate.weight" in capsys.readouterr().out
