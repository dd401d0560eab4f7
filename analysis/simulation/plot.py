"""The drawing of simulate.py: regret over the budget, per method, with intervals; a panel per kind of curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.plots import COLOURS, Plot, label, legend, panels
from analysis.simulation.measures import Measures, shares

TITLES = {"recorded": "recorded curves, drawn at random", "fitted": "curves of a fitted surrogate"}
STYLES = ("-", "--", ":")  # once the colours are used up


def draw_regrets(measured: Mapping[str, Sequence[Measures]], name: str, budget: float) -> Plot:
    """Draw the mean regret of each method with its 95 % interval. budget: in full trials."""
    figure, axes = panels(
        f"{name}: how far the best so far falls short of the best, in simulated searches", len(measured), 2, 2.6
    )
    names = list(dict.fromkeys(each.name for of in measured.values() for each in of))
    x, rows = shares() * budget, []
    for panel, (kind, of_kind) in zip(axes, measured.items(), strict=True):
        for each in of_kind:
            i = names.index(each.name)
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            panel.plot(x, each.regret_G, style, color=colour, linewidth=1.4, label=each.name)
            panel.fill_between(x, each.low_G, each.high_G, color=colour, alpha=0.15, linewidth=0)
            columns = zip(x, each.regret_G, each.low_G, each.high_G, strict=True)
            rows += [
                {"curves": kind, "method": each.name, "full_trials": a, "regret": b, "low": c, "high": d}
                for a, b, c, d in columns
            ]
        panel.set_xlim(0, budget)
        panel.set_ylim(bottom=min(0, *(float(each.regret_G.min()) for each in of_kind)))
        label(panel, "budget, in full trials", "regret, score on dev", TITLES[kind])
    legend(figure, axes, 3)
    return Plot("regret", figure, rows)
