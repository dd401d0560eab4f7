"""Everything needed to run a search again, and the command that repeats each trial."""

from __future__ import annotations

import shlex
from pathlib import Path

from analysis.page.blocks import Block, Code, Grid, Paragraph, Section
from analysis.table import Table
from search.report.words import short
from search.results import Search
from search.study.trials import best_first


def again(search: Search, table: Table) -> Section:
    """Build the section: commands, versions, data, the space, and a command per trial."""
    plan = search.plan
    facts = {
        "created": plan.created,
        "code": plan.git_commit or "not recorded",
        "python": plan.python,
        "encoder": plan.encoder,
        "data": plan.data,
        "seed": str(plan.seed),
        "machine": f"{plan.gpus:g} GPUs, {plan.cpus_per_trial} CPU cores per trial",
        **plan.versions,
    }
    sums = [[name, digest] for name, digest in plan.fingerprints.items()]
    encoders = [[path, digest] for path, digest in plan.encoder_fingerprints.items()]
    space = (search.folder / "space.yaml").read_text(encoding="utf-8")
    made: list[Block] = [
        Paragraph("The search, from its own record of the space:"),
        Code("\n".join(_commands(search))),
        Grid(["what", "value"], [[key, value] for key, value in facts.items() if value]),
    ]
    made += [Grid(["file", "sha256"], sums + encoders, "Fingerprints of the data and the encoder")] if sums + encoders else []
    made += [Code(space, "The space, as it was searched (space.yaml)"), _trials(search)]
    return Section("again", "Run it again", made)


def _commands(search: Search) -> list[str]:
    space = shown_path(search.folder / "space.yaml")
    plan = search.plan
    more = ["--trials", str(plan.trials), "--seed", str(plan.seed), "--name", f"{search.name}-again"]
    commands = [shlex.join(["python", "-m", "search.run", "--space", space, *more])]
    if plan.command:
        commands += ["# began as:", shlex.join(["python", "-m", "search.run", *plan.command])]
    return commands


def _trials(search: Search) -> Grid:
    """Build the table of all trials with their commands, best first."""
    rows = [
        [
            f"{trial.number:03d}",
            trial.status,
            short(trial.score) if trial.points else "",
            f"python -m minbert_core.train {shlex.quote(shown_path(trial.folder / 'config.yaml'))}",
        ]
        for trial in best_first(search.trials)
    ]
    return Grid(["trial", "status", "score", "repeats it"], rows, f"A command per trial ({len(rows)})")


def shown_path(path: Path) -> str:
    """Return a path as one would type it: relative to the current folder if it is inside."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
