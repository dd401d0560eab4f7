"""The figure: what stands where, that nothing is cut or runs into another, and that its import is paid by it alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from analysis.figure import draw, write_figure
from analysis.results import Results
from analysis.selection import Selection
from minbert_core.config import TrialConfig

MakeUp = Callable[..., tuple[Selection, Results]]
Tiny = Callable[..., TrialConfig]
ROOT = Path(__file__).resolve().parents[2]
SCORES = {3: {"dev": [0.8, 0.82], "test": [0.7, 0.71]}, 0: {"dev": [0.75, 0.76], "test": [0.72, 0.73]}}
LONG = {
    "together/step": "surgery_after_all",
    "gradient/gradvac/beta": 0.0123,
    "tasks/all/head": "sbert_cosine",
    "smoothness/smart/radius": 1.23e-5,
    "smoothness/smart/weight": 0.123,
    "stages": "linear_probe+single_task-para+multitask+heads_only",
}


def marks(figure: Any, label: str) -> list[float]:
    """Where the marks of a series stand, a row a configuration."""
    return [float(line.get_xdata()[0]) for line in figure.axes[0].lines if line.get_label() == label]


def test_marks_bars_and_ticks_stand_at_the_numbers(tiny: Tiny, make_up: MakeUp) -> None:
    selection, results = make_up(tiny(), SCORES, 0)
    figure = draw(selection, results)
    assert marks(figure, "dev, claimed by the search") == [0.9, 0.9]
    for split in ("dev", "test"):
        found = [results.configurations[number][split]["score"] for number in (3, 0)]
        assert marks(figure, f"{split}, fresh seeds") == [measured.mean for measured in found]
        drawn = [list(line.get_xdata()) for line in figure.axes[0].lines]
        assert all([measured.low, measured.high] in drawn for measured in found)
        assert all(measured.values in drawn for measured in found)
    assert marks(figure, "dev, fresh seeds") == pytest.approx([0.81, 0.755])  # by hand


def test_the_best_stands_on_top_and_the_baseline_is_marked(tiny: Tiny, make_up: MakeUp) -> None:
    (axes,) = draw(*make_up(tiny(), SCORES, 0)).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["003 lr=4e-05", "000 (baseline) lr=1e-05"]
    assert axes.yaxis_inverted()
    (band,) = axes.patches
    assert (band.get_y(), band.get_height()) == (0.5, 1)


@pytest.mark.parametrize(
    ("objective", "scores", "first_line"),
    [
        ("norm", SCORES, "norm on dev and test"),
        ("mean", {3: {"dev": [0.8]}}, "mean on dev"),
        ("sst", SCORES, "sst (accuracy) on dev and test"),
        ("sts", SCORES, "sts ((r + 1)/2 of Pearson's $r$) on dev and test"),
        ({"weights": {"sst": 1, "sts": 3}}, SCORES, "weighted score on dev and test"),
    ],
)
def test_the_axis_names_the_objective_and_the_splits(
    tiny: Tiny, make_up: MakeUp, objective: Any, scores: dict[int, Any], first_line: str
) -> None:
    (axes,) = draw(*make_up(tiny(objective=objective), scores)).axes
    assert axes.get_xlabel().splitlines()[0] == first_line
    several = len(scores[3]["dev"]) > 1
    assert axes.get_xlabel().splitlines()[1] == "bars: 95 % intervals over rows" + " and seeds; ticks: the seeds" * several


def test_a_test_split_without_the_objective_is_left_out(tiny: Tiny, make_up: MakeUp) -> None:
    selection, results = make_up(tiny(), SCORES, 0)
    for of in results.configurations.values():
        del of["test"]["score"]
    figure = draw(selection, results)
    assert not marks(figure, "test, fresh seeds")
    assert figure.axes[0].get_xlabel().startswith("norm on dev\n")


@pytest.mark.parametrize("num_seeds", [1, 5])
@pytest.mark.parametrize("numbers", [[3], [3, 0], [3, 5, 7, 9, 11, 0]])
@pytest.mark.parametrize("is_long", [False, True])
def test_nothing_is_cut_and_no_text_lies_on_another(
    tiny: Tiny, make_up: MakeUp, numbers: list[int], num_seeds: int, is_long: bool
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    values = [0.7 + 0.01 * seed for seed in range(num_seeds)]
    params = {n: {path: f"{value}{n}" for path, value in LONG.items()} if is_long else {"optimizer/lr": n} for n in numbers}
    scores = {n: {"dev": values, **({} if is_long else {"test": values})} for n in numbers}  # long names in low rows, too
    figure = draw(*make_up(tiny(), scores, 0 if 0 in numbers else None, params=params))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    whole = figure.bbox
    texts = [text for text in (*axes.get_yticklabels(), axes.xaxis.label, *figure.legends[0].get_texts()) if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.width and box.y1 <= whole.height
        assert inside, f"{text.get_text()!r} is cut"
    assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]
    assert not figure.legends[0].get_window_extent().overlaps(axes.get_window_extent())
    assert axes.get_window_extent().width > 0.5 * whole.width  # the names leave room
    assert any("…" in text.get_text() for text in texts) == is_long


def test_a_dollar_in_a_name_is_no_formula(tiny: Tiny, make_up: MakeUp, tmp_path: Path) -> None:
    write_figure(*make_up(tiny(), {3: SCORES[3]}, params={3: {"a/b": r"$\no $"}}), tmp_path)


def test_three_files_of_one_figure_are_written(tiny: Tiny, make_up: MakeUp, tmp_path: Path) -> None:
    paths = write_figure(*make_up(tiny(), SCORES, 0), tmp_path)
    svg, png, pdf = paths
    assert [path.name for path in paths] == ["figure.svg", "figure.png", "figure.pdf"]
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    header = png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(header[16:20], "big") == 975  # 6.5 inches of 150 dots
    assert pdf.read_bytes().startswith(b"%PDF")


def test_matplotlib_is_imported_by_drawing_alone() -> None:
    code = "import sys, analysis.best_to_test; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
