"""The page's figures, from the rows of the analyses: curves, rungs, conflicts, importance, groups of trials.

Each has its numbers with it. The pointer names a trial and its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from analysis.anova import Explained, Sample
from analysis.compare import Comparison
from analysis.compare_plots import budget_rows, distribution_rows, front_rows
from analysis.conflicts import COSINE, SHARE, pairs_of, series
from analysis.curve_plots import curve_rows, named_trials
from analysis.importance_plots import marginal_rows, share_rows
from analysis.page.blocks import Figure, Panel
from analysis.page.charts import GROUP, Spec, chart, colour, faintness, intervals, lines, scatter, tooltip, x, y
from analysis.plots import unit
from analysis.rungs import RankCorrelation
from analysis.table import Table, Trial
from search.report.words import describe, short_names
from search.space.domains import GOLDEN

EXAMPLES = "examples shown"
MOST_POINTS = 40  # of a line of training records
MOST_PARAMETERS = 12  # panels of the trials over their parameters


class Drawn:
    """One search as the figures show it: the colour of each trial, by the branches of one choice, and its words.

    names: the branches in their order; empty if fewer than two were evaluated, and all trials then have one colour.
    """

    def __init__(self, table: Table, choice: str, names: Sequence[str]) -> None:
        choice = choice if names else ""
        self.table, self.title, self.names = table, choice.rpartition("/")[2], list(names) or ["trials"]
        [self.facts] = table.searches.values()
        self.groups = {t.number: str(t.params.get(choice, "none")) if choice else "trials" for t in table.trials}
        self.about = {
            t.number: {"trial": f"{t.number:03d}", GROUP: self.groups[t.number], "status": t.status,
                       "parameters": describe(t.params)}
            for t in table.trials
        }  # fmt: skip

    def unit(self, target: str) -> str:
        return unit(target, self.facts.objective, self.facts.metrics)

    # ------------------------------------------------------------------------------------------------------ over time

    def curves(self) -> Figure:
        """Draw a panel per target: the dev metric of each trial over its examples."""
        panels, faint = [], faintness(len(self.table.trials))
        for target in self.table.targets:
            key = f"dev/{target}"
            rows = [
                {**self.about[trial.number], "examples": entry["examples"], "rung": entry["rung"], "value": entry[key]}
                for trial in self.table.trials for entry in trial.evaluations if key in entry
            ]  # fmt: skip
            panels.append(self._lines(rows, self.unit(target), target, "status", "rung", faint=faint))
        return Figure(
            "Learning curves on dev: one line per trial, up to the rung where it ended", panels, curve_rows(self.table),
            "Point at a line: it names the trial.",
        )  # fmt: skip

    def losses(self) -> Figure:
        """Draw a panel per task: the training losses of the best trials."""
        trials = named_trials(self.table)
        keys = {task: f"train/{task}_loss" for task in self.facts.tasks}
        panels, rows = self._records(trials, keys, lambda _: "mean training loss")
        return Figure(f"Training losses of the best trials ({_numbers(trials)})", panels, rows)

    def conflicts(self) -> Figure:
        """Draw for each pair of tasks the mean cosine of their gradients and the share of conflicting steps."""
        pairs = pairs_of(self.table.trials)
        recorded = [t for t in self.table.trials if any(COSINE + pairs[0] in record for record in t.training)]
        best = [t for t in named_trials(self.table) if t in recorded] or recorded[:5]
        keys = {
            f"{pair}, {word}": prefix + pair for pair in pairs for word, prefix in (("cosine", COSINE), ("conflicts", SHARE))
        }
        panels, rows = self._records(
            best, keys, lambda name: "mean cosine of gradients" if name.endswith("cosine") else "share of steps"
        )
        title = f"How much the gradients of two tasks conflict in the best trials that record it ({_numbers(best)})"
        return Figure(title, panels, rows, "Below a cosine of 0 the tasks pull in opposite directions; such a step conflicts.")

    def _records(
        self, trials: Sequence[Trial], keys: dict[str, str], axis: Callable[[str], str]
    ) -> tuple[list[Panel], list[dict[str, Any]]]:
        """Draw a panel per training record: a line per trial, thinned to MOST_POINTS."""
        panels, table = [], []
        for name, key in keys.items():
            rows = []
            for trial in trials:
                examples, values = series(trial, key)
                step = -(-len(examples) // MOST_POINTS) or 1
                for at, value in list(zip(examples.tolist(), values.tolist(), strict=True))[::step]:
                    rows.append({**self.about[trial.number], "examples": int(at), "value": value})
                    table.append({"trial": f"{trial.number:03d}", "figure": name, "examples": int(at), "value": value})
            panels.append(self._lines(rows, axis(name), name, "value", faint=0.85))
        return panels, table

    def _lines(self, rows: list[dict[str, Any]], axis: str, title: str, *shown: str, faint: float) -> Panel:
        across = x("examples", EXAMPLES, scale={"zero": True}, axis={"format": "~s"})
        return Panel(lines(rows, across, y("value", axis), self.names, self.title, "parameters", *shown, faint=faint), title)

    # -------------------------------------------------------------------------------------------------- over parameters

    def shares(self, overall: Sequence[Explained]) -> Figure:
        """Draw a panel per target: the share of each parameter, filled where it exceeds those of shuffled scores."""
        names = short_names(share.path for share in overall[0].shares)
        rows = share_rows(list(overall))
        panels = []
        for of in overall:
            own = [
                {"name": names[s.path], "share": s.share, "low": s.low, "high": s.high, "p": s.p, "matters": s.matters}
                for s in of.shares
            ]
            doubt = f"; {of.doubt.partition(':')[0]}" if of.doubt else ""
            title = f"{of.target}, {of.num_trials} trials{doubt}"
            bars = intervals(own, list(names.values()), "share (fraction)", "low", "share", "high", "matters")
            panels.append(Panel(bars, title))
        return Figure(
            f"Which parameters separate the best trials from the others, at rung {overall[0].rung}", panels, rows,
            "Filled bars exceed the shares of shuffled scores; hollow ones can be chance. Lines: 95 % bootstrap intervals.",
        )  # fmt: skip

    def marginals(self, of: Sample) -> Figure:
        """Draw a panel per parameter: each trial's value there and its score at the rung."""
        names = short_names(parameter.path for parameter in of.parameters)
        panels = []
        for parameter in of.parameters[:MOST_PARAMETERS]:
            rows = [
                {**self.about[t.number], "at": t.params[parameter.path], "value": float(value)}
                for t, value in zip(of.trials, of.values, strict=True) if parameter.path in t.params
            ]  # fmt: skip
            up = y("value", self.unit(of.target))
            if parameter.labels:
                shown = [str(label) for label in parameter.labels]
                panels.append(Panel(self._over_labels(rows, shown, names[parameter.path], up), names[parameter.path]))
                continue
            is_log = parameter.kind == "log_uniform" and min(row["at"] for row in rows) > 0
            scale: Spec = {"padding": 6} | ({"type": "log", "nice": False} if is_log else {"zero": False})
            kind = "log scale" if is_log else "value"
            across = x("at", f"{names[parameter.path]} ({kind})", scale=scale, axis={"format": "~g"})
            drawn = scatter(rows, across, up, self.names, self.title, "parameters", "at", "value")
            panels.append(Panel(drawn, names[parameter.path]))
        left_out = len(of.parameters) - len(panels)
        note = f"{left_out} more parameters are in the table only." if left_out else ""
        return Figure(f"Each trial's score at rung {of.rung} over each parameter", panels, marginal_rows(of), note)

    def _over_labels(self, rows: list[dict[str, Any]], labels: list[str], name: str, up: Spec) -> Spec:
        for i, row in enumerate(rows):
            row["jitter"] = 0.5 * ((i * GOLDEN) % 1 - 0.5)
        across = {"field": "at", "type": "nominal", "sort": labels, "title": f"{name} (choice)", "axis": {"labelAngle": 0}}
        drawn = scatter(rows, across, up, self.names, self.title, "parameters", "at", "value")
        drawn["layer"][0]["encoding"]["xOffset"] = {"field": "jitter", "type": "quantitative", "scale": {"domain": [-0.5, 0.5]}}
        return drawn

    # ---------------------------------------------------------------------------------------------------------- rungs

    def correlations(self, found: Sequence[RankCorrelation]) -> Figure:
        """Draw a panel per recipe: Spearman's correlation of each rung with a later one, per target."""
        panels = []
        for recipe in dict.fromkeys(of.recipe for of in found):
            own = [of for of in found if of.recipe == recipe and of.spearman is not None]
            if not own:
                continue
            rows = [{**vars(of), GROUP: of.target} for of in own]
            targets = list(dict.fromkeys(of.target for of in own))
            across = {"field": "rung", "type": "ordinal", "title": "rung", "axis": {"labelAngle": 0}}
            offset = {"field": GROUP, "sort": targets}
            up = y("spearman", "Spearman's rank correlation", scale={"domain": [-1, 1]})
            place = {"x": across, "xOffset": offset, "color": colour(targets, "target")}
            line = {"mark": "rule", "encoding": {**place, "y": {**up, "field": "low"}, "y2": {"field": "high"}}}
            shown = tooltip("target", "rung", "last", "num_trials", "spearman", "low", "high")
            point = {"mark": {"type": "point", "filled": True, "size": 70}, "encoding": {**place, "y": up, "tooltip": shown}}
            panels.append(Panel(chart(rows, [line, point]), f"{recipe}, with rung {own[0].last}"))
        return Figure(
            "How well the order of the trials at a rung predicts that at a later one", panels, [vars(of) for of in found],
            "1: the same order; 0: no relation. Lines: 95 % intervals.",
        )  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- groups

    def distributions(self, found: Comparison, targets: Sequence[str]) -> Figure:
        """Draw a panel per target: each group's trials at the rung, their median marked."""
        names = [group.name for group in found.groups]
        table = distribution_rows(found.table, found.groups, found.rung)
        panels = []
        for target in targets:
            rows = [
                {
                    **self.about[row["trial"]],
                    GROUP: row["group"],
                    "value": row["value"],
                    "jitter": 0.7 * ((i * GOLDEN) % 1 - 0.5),
                }
                for i, row in enumerate(row for row in table if row["target"] == target)
            ]
            up = {"field": GROUP, "type": "nominal", "sort": names, "title": None, "axis": {"ticks": False, "domain": False}}
            drawn = scatter(rows, x("value", self.unit(target)), up, names, "", "group", "value", "parameters")
            encoding = drawn["layer"][0]["encoding"]
            encoding["yOffset"] = {"field": "jitter", "type": "quantitative", "scale": {"domain": [-0.5, 0.5]}}
            encoding["color"]["legend"] = encoding["shape"]["legend"] = None
            median = {"x": {"aggregate": "median", "field": "value", "type": "quantitative"}, "y": up}
            drawn["layer"].append(
                {"mark": {"type": "tick", "thickness": 3, "size": 26, "color": "var(--ink)"}, "encoding": median}
            )
            panels.append(Panel(drawn | {"height": 50 + 44 * len(names)}, target))
        return Figure(
            f"How the groups' trials score at rung {found.rung}", panels, [row for row in table if row["target"] in targets],
            "Points: trials. Thick mark: the median of a group.",
        )  # fmt: skip

    def budgets(self, found: Comparison) -> Figure:
        """Draw the best score to expect of each group over examples and over seconds."""
        names = [group.name for group in found.groups]
        table = budget_rows(found.groups, found.rung)
        panels = []
        for measure in ("examples", "seconds"):
            rows = [
                {GROUP: r["group"], "budget": r["budget"], "best": r["expected best"]} for r in table if r["unit"] == measure
            ]
            across = x("budget", f"{measure}, all trials together", axis={"format": "~s"}, scale={"zero": True})
            up = y("best", f"best {self.unit('score')}")
            encoding = {"x": across, "y": up, "color": colour(names, ""), "tooltip": tooltip(GROUP, "budget", "best")}
            mark = {"type": "line", "strokeWidth": 2.2, "tooltip": True}
            panels.append(Panel(chart(rows, [{"mark": mark, "encoding": encoding}]), f"equal {measure}"))
        return Figure(f"The best score to expect of each group, by budget (trials up to rung {found.rung})", panels, table)

    def front(self, found: Comparison) -> Figure:
        """Draw a panel per pair of tasks: all trials at their best evaluation, large where no other trial beats them."""
        table = front_rows(found.points)
        rows = [{**self.about[r["trial"]], **{t: r[t] for t in found.table.tasks}, "front": r["front"]} for r in table]
        panels = []
        for first, second in combinations(found.table.tasks, 2):
            drawn = scatter(
                rows,
                x(first, self.unit(first)),
                y(second, self.unit(second)),
                self.names,
                self.title,
                "parameters",
                first,
                second,
            )
            at = drawn["layer"][0]["encoding"]
            at["fillOpacity"] = {"condition": {"test": "datum.front", "value": 0.95}, "value": 0}
            drawn["layer"][0]["mark"] |= {"filled": False, "fill": None, "strokeWidth": 1.5}
            at["fill"] = {**at["color"], "legend": None}
            panels.append(Panel(drawn, f"{first} and {second}"))
        return Figure(
            "Where the tasks trade off: every trial at its best evaluation", panels, table,
            f"Filled: no other trial is as good on {', '.join(found.table.tasks)} and better on one.",
        )  # fmt: skip


def _numbers(trials: Sequence[Trial]) -> str:
    return ", ".join(f"{trial.number:03d}" for trial in trials)
