"""Parallel coordinates: a line per trial through its parameters and its scores. A parameter that the trial's branch lacks has a
separate place below the axis, so that branches are seen; optuna-dashboard leaves such trials out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.page.blocks import Figure, Panel
from analysis.page.charts import HOVER, Spec, chart, colour, faintness, lit, tooltip
from analysis.plots import unit
from analysis.rungs import last_rung
from analysis.table import Facts, Parameter, Table, Trial
from search.report.words import describe, short, short_names
from search.space.domains import GOLDEN

# in parts of an axis: where a line passes that has no value there; how far equal labels are apart
MISSING, JITTER = -0.13, 0.03
AXIS_WIDTH, HEIGHT = 92, 300  # pixels
FIT = 11  # axes on a page of full width
TEXT_ROOM = 0.04  # of an axis, above and below


@dataclass(frozen=True)
class Axis:
    """One axis: its name, each trial's place in [0, 1] and its text (no entry: no value), and labels at places."""

    name: str
    places: dict[int, float]
    texts: dict[int, str]
    labels: dict[float, str]


def parallel(table: Table, groups: dict[int, str], names: Sequence[str], title: str) -> Figure:
    """Draw the trials of a search. groups: trial -> the branch whose colour it has; names: the branches in order."""
    [facts] = table.searches.values()
    axes = _axes(table, facts)
    rows = [row for trial in table.trials for row in _rows(trial, axes, groups[trial.number])]
    order = [axis.name for axis in axes]
    axis = {"labelAngle": 0, "orient": "top", "ticks": False, "domain": False, "labelLimit": AXIS_WIDTH}
    point = {"type": "point", "padding": 0.35}
    across: Spec = {"field": "axis", "type": "nominal", "sort": order, "scale": point, "title": None, "axis": axis}
    scale = {"domain": [MISSING - TEXT_ROOM, 1 + TEXT_ROOM], "nice": False, "zero": False}
    up = {"field": "at", "type": "quantitative", "axis": None, "scale": scale}
    place = {"x": across, "y": up, "color": colour(names, title)}
    faint = {**place, "opacity": lit(1, faintness(len(table.trials)))}
    line = {**faint, "detail": {"field": "trial"}, "order": {"field": "order"}, "strokeWidth": lit(4, 1.3)}
    points = {**faint, "size": lit(80, 14), "tooltip": tooltip("trial", "status", "parameters", "value")}
    layer: list[Spec] = [
        {"data": {"values": [{"axis": name, "at": 0, "to": 1} for name in order]},
         "mark": {"type": "rule", "color": "var(--soft)"}, "encoding": {"x": across, "y": up, "y2": {"field": "to"}}},
        {"mark": "line", "encoding": line},
        {"mark": {"type": "point", "filled": True}, "params": [HOVER], "encoding": points},
        *_labels(axes, across, up),
    ]  # fmt: skip
    note = (
        "Lines that pass at “none” belong to branches without that parameter, or to trials that were stopped before that rung. "
        "Point at a line: it names the trial."
    )
    wide = " Scroll sideways to see all axes." if len(axes) > FIT else ""
    return Figure(
        f"Every trial as a line through its parameters and its score ({unit('score', facts.objective, facts.metrics)})"
        + (f", coloured by {title}" if title else ""),
        [Panel(chart(rows, layer, HEIGHT))],
        _numbers(table, facts),
        note + wide,
        AXIS_WIDTH * len(axes),
    )  # fmt: skip


def _axes(table: Table, facts: Facts) -> list[Axis]:
    """Return an axis per parameter that differs between trials, choices first, and one for the first and the last rung."""
    differing = [of for of in facts.parameters.values() if len({t.params.get(of.path) for t in table.trials}) > 1]
    names = short_names(of.path for of in differing)
    made = [_of_parameter(of, names[of.path], table.trials) for of in sorted(differing, key=lambda of: not of.labels)]
    rungs = dict.fromkeys((min(t.evaluations[0]["rung"] for t in table.trials if t.evaluations), last_rung(table.trials)))
    for rung in rungs:
        known = {t.number: value for t in table.trials if (value := t.at(rung)) is not None and math.isfinite(value)}
        if known:
            made.append(_of_numbers(f"score, rung {rung}", known, short, is_log=False))
    return made


def _of_parameter(parameter: Parameter, name: str, trials: Sequence[Trial]) -> Axis:
    taken = {t.number: t.params[parameter.path] for t in trials if parameter.path in t.params}
    if not parameter.labels:
        numbers = {number: float(value) for number, value in taken.items()}
        is_log = parameter.kind == "log_uniform" and min(numbers.values()) > 0
        return _of_numbers(name, numbers, lambda value: f"{value:.2g}", is_log)
    known = [str(label) for label in parameter.labels if str(label) in set(map(str, taken.values()))]
    at = {label: (i + 0.5) / len(known) for i, label in enumerate(known)}
    places = {n: at[str(value)] + JITTER * 2 * ((n * GOLDEN) % 1 - 0.5) for n, value in taken.items()}
    return Axis(name, places, {n: str(value) for n, value in taken.items()}, {at[label]: label for label in known})


def _of_numbers(name: str, numbers: dict[int, float], text: Any, is_log: bool) -> Axis:
    position = math.log if is_log else float
    low, high = min(numbers.values()), max(numbers.values())
    width = position(high) - position(low) or 1.0
    places = {n: (position(value) - position(low)) / width for n, value in numbers.items()}
    labels = {0.0: text(low), 1.0: text(high)} if high > low else {0.0: text(low)}
    return Axis(name, places, {n: f"{value:.4g}" for n, value in numbers.items()}, labels)


def _rows(trial: Trial, axes: Sequence[Axis], group: str) -> list[dict[str, Any]]:
    about = {"trial": f"{trial.number:03d}", "status": trial.status, "parameters": describe(trial.params), "group": group}
    return [
        {**about, "axis": axis.name, "order": i, "at": axis.places.get(trial.number, MISSING),
         "value": f"{axis.name}: {axis.texts.get(trial.number, 'none')}"}
        for i, axis in enumerate(axes)
    ]  # fmt: skip


def _labels(axes: Sequence[Axis], across: Spec, up: Spec) -> list[Spec]:
    """Write the labels of each axis next to it, on a ground that keeps them legible above the lines."""
    rows = [{"axis": axis.name, "at": at, "text": text} for axis in axes for at, text in axis.labels.items()]
    lacking = [axis for axis in axes if len(axis.places) < max(len(axis.places) for axis in axes)]
    rows += [{"axis": axis.name, "at": MISSING, "text": "none"} for axis in lacking]
    encoding = {"x": across, "y": up, "text": {"field": "text"}}
    mark = {"type": "text", "align": "left", "dx": 5, "fontSize": 11, "limit": AXIS_WIDTH - 12}
    ground = {**mark, "stroke": "var(--page)", "strokeWidth": 4, "strokeJoin": "round"}
    return [{"data": {"values": rows}, "mark": of, "encoding": encoding} for of in (ground, {**mark, "color": "var(--ink)"})]


def _numbers(table: Table, facts: Facts) -> list[dict[str, Any]]:
    return [
        {"trial": f"{t.number:03d}", "status": t.status, **{path: t.params.get(path) for path in facts.parameters},
         **{f"score at rung {entry['rung']}": float(entry["dev/score"]) for entry in t.evaluations}}
        for t in table.trials
    ]  # fmt: skip
