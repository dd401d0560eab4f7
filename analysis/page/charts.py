"""Vega-Lite specifications of the page's drawings: marks, scales and what happens under the pointer. They hold no numbers
that an analysis has not computed.

Colours are names of the page's style sheet, which has them for light and dark: `var(--c1)` to `var(--c7)` are those of Okabe &
Ito 2008, which colour-blind readers can tell apart. Marks differ in shape too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]

NUM_COLOURS = 7
COLOURS = [f"var(--c{i + 1})" for i in range(NUM_COLOURS)]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
HEIGHT = 210  # pixels of a panel
GROUP = "group"  # the field that a row's colour stands for
FONT = "system-ui, sans-serif"
CONFIG: Spec = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)", "titleColor": "var(--ink)", "gridColor": "var(--line)", "domainColor": "var(--line)",
        "tickColor": "var(--line)", "labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": "normal", "labelLimit": 130,
        "titleLimit": 330,
    },
    "legend": {
        "labelColor": "var(--ink)", "titleColor": "var(--soft)", "labelFontSize": 11.5, "titleFontSize": 11.5,
        "titleFontWeight": "normal", "orient": "top", "symbolStrokeWidth": 2, "labelLimit": 220, "direction": "horizontal",
        "offset": 4,
    },
    "text": {"color": "var(--ink)", "fontSize": 11},
    "rule": {"color": "var(--ink)"},
    "point": {"size": 46},
}  # fmt: skip
HOVER = {
    "name": "hover",
    "select": {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": ["trial"], "nearest": True},
}


def chart(rows: Sequence[Mapping[str, Any]], layer: Sequence[Spec], height: int = HEIGHT, **more: Any) -> Spec:
    """Build a drawing as wide as its place on the page."""
    for encoding in (of["encoding"] for of in layer if "data" not in of):
        _widen(encoding, rows)
    size = {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}
    return {"data": {"values": list(rows)}, **size, "layer": list(layer), **more}


def _widen(encoding: Spec, rows: Sequence[Mapping[str, Any]]) -> None:
    """Give an axis on which all values are equal a range around them; Vega would label it 0."""
    for channel in ("x", "y"):
        of = encoding.get(channel, {})
        values = {row.get(of.get("field")) for row in rows}
        if of.get("type") == "quantitative" and "domain" not in (of.get("scale") or {}) and len(values) == 1:
            value = float(values.pop() or 0)
            ends = [value / 2, value * 2] if of["scale"].get("type") == "log" else [value - 0.05, value + 0.05]
            encoding[channel] = of | {"scale": of["scale"] | {"domain": sorted(ends), "nice": False}}


def x(name: str, title: str, **more: Any) -> Spec:
    """Return the encoding of a number along the horizontal axis."""
    axis = {"tickCount": 5, "labelOverlap": True} | more.pop("axis", {})
    return {
        "field": name,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False, "nice": True, "padding": 6},
        "axis": axis,
    } | more


def y(name: str, title: str, **more: Any) -> Spec:
    """Return the encoding of a number along the vertical axis."""
    return x(name, title, **more)


def colour(groups: Sequence[str], title: str) -> Spec:
    """Return the encoding of the groups as colours; a single group has no legend."""
    domain = list(groups)
    legend = {"title": title, "columns": 4} if len(domain) > 1 else None
    colours = [COLOURS[i % NUM_COLOURS] for i in range(len(domain))]
    return {"field": GROUP, "type": "nominal", "scale": {"domain": domain, "range": colours}, "legend": legend}


def shape(groups: Sequence[str], title: str) -> Spec:
    """Return the encoding of the groups as shapes, in the same legend as their colours."""
    return {**colour(groups, title), "scale": {"domain": list(groups), "range": [SHAPES[i % 7] for i in range(len(groups))]}}


def tooltip(*names: str) -> list[Spec]:
    """Return what is shown under the pointer: fields by their own names."""
    return [{"field": name, "title": name} for name in names]


def lit(bright: float, faint: float) -> Spec:
    """Return an encoding that is `bright` for the trial under the pointer, else `faint`."""
    return {"condition": {"param": "hover", "empty": False, "value": bright}, "value": faint}


def scatter(rows: Sequence[Mapping[str, Any]], across: Spec, up: Spec, groups: Sequence[str], title: str, *shown: str) -> Spec:
    """Draw a point per row, by group; the pointer names the trial."""
    encoding = {
        "x": across, "y": up, "color": colour(groups, title), "shape": shape(groups, title), "opacity": lit(1, 0.75),
        "size": lit(130, 46), "tooltip": tooltip("trial", *shown),
    }  # fmt: skip
    return chart(rows, [{"mark": {"type": "point", "filled": True}, "params": [HOVER], "encoding": encoding}])


def faintness(num_trials: int) -> float:
    """Return the opacity of a line among so many that none hides the others."""
    return max(0.12, min(0.6, 14 / max(1, num_trials)))


def lines(
    rows: Sequence[Mapping[str, Any]], across: Spec, up: Spec, groups: Sequence[str], title: str, *shown: str, faint: float
) -> Spec:
    """Draw a line per trial, by group; the pointer names the trial and lifts its line."""
    place = {"x": across, "y": up, "color": colour(groups, title)}
    line = {**place, "detail": {"field": "trial"}, "opacity": lit(1, faint), "strokeWidth": lit(3.5, 1.4)}
    points = {**place, "opacity": lit(1, faint), "size": lit(90, 26), "tooltip": tooltip("trial", *shown)}
    return chart(
        rows,
        [
            {"mark": {"type": "line", "interpolate": "linear"}, "encoding": line},
            {"mark": {"type": "point", "filled": True}, "params": [HOVER], "encoding": points},
        ],
    )


def intervals(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str, low: str, middle: str, high: str, filled: str
) -> Spec:
    """Draw a bar per name from 0 to `middle`, with its interval as a line; hollow where `filled` is false."""
    up = {"field": "name", "type": "nominal", "sort": list(names), "title": None, "axis": {"ticks": False, "domain": False}}
    fill = {"condition": {"test": f"datum['{filled}']", "value": "var(--c1)"}, "value": "transparent"}
    bar = {"mark": {"type": "bar", "stroke": "var(--c1)", "strokeWidth": 1.2, "height": 13}, "encoding": {
        "x": x(middle, title, scale={"domain": [0, 1]}), "y": up, "fill": fill, "tooltip": tooltip("name", middle, low, high),
    }}  # fmt: skip
    line = {"mark": {"type": "rule", "strokeWidth": 1.4}, "encoding": {"x": x(low, title), "x2": {"field": high}, "y": up}}
    return chart(rows, [bar, line], 40 + 24 * len(names))
