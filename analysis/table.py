"""The table under every analysis: one row per trial, built from searches or read from the Parquet file of `runs.py --out`.

    searches in runs/ ─► tabulate ─► pyarrow table ─► FILE.parquet
                                          └──────────────┴─► Table: trials and searches, as the analyses read them

Columns, in this order:
- those of `search.results`: search, trial, score, status, reason, baseline, recipe, rung, seconds, examples, passes, folder
- one per searched parameter, named by its path; null in trials whose branch lacks it
- best/…, last/…: the dev metrics of the best and of the last evaluation
- evaluations: a list with one entry per evaluated rung: EVALUATION, and dev/score, dev/TASK, dev/mean, dev/norm
- training: a list with one entry per record between evaluations: TRAINING, and train/TASK_loss (mean since the record before),
  train/cosine_A_B (mean cosine of two tasks' gradients), train/conflicts_A_B (share of steps with a negative cosine); in the
  last one before an evaluation train/group_cosine/A_B/GROUP (mean cosine in a parameter group since the evaluation before)

Units: seconds since the trial's start, evaluations included, and of the entry's own evaluation; examples shown so far; passes
through the encoder, counted in examples; metrics as fractions, correlations in [-1, 1]. The file's metadata hold `Facts` per
search.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from minbert_core.commands import analysis_command
from minbert_core.files import message
from search.report.costs import read_domains
from search.results import COLUMNS, Search, as_table, find_searches
from search.space.domains import Choice, Domain
from search.space.file import read_document
from search.study.trials import TrialResult, best_first

FORMAT = 1
METADATA = b"minbert searches"  # the key in the metadata of the schema
EVALUATION = {"rung": pa.int64(), "stage": pa.int64(), "step": pa.int64(), "examples": pa.int64(), "passes": pa.int64(),
              "seconds": pa.float64(), "evaluation_seconds": pa.float64()}  # fmt: skip
TRAINING = {name: kind for name, kind in EVALUATION.items() if name not in ("rung", "evaluation_seconds")}
NESTED = {"evaluations": ("dev", "dev/", EVALUATION), "training": ("train", "train/", TRAINING)}


@dataclass(frozen=True)
class Parameter:
    """A searched parameter: a choice of labels, or a range from low to high, `uniform`, `log_uniform` or `int`."""

    path: str
    kind: str
    labels: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def label(self, value: Any) -> str:
        """Return the label that a cell of the table means. A column of mixed types is text, and one of 1 and 0.5 holds 1.0."""
        return str(next((known for known in self.labels if known == value or str(known) == str(value)), value))


@dataclass(frozen=True)
class Facts:
    """The facts about one search that its trials share."""

    name: str
    about: str  # the question of the space
    planned: int  # trials
    is_running: bool
    is_toy: bool
    objective: str  # mean, norm, a task, `(r + 1)/2 of sts`, or `weighted score`
    metrics: dict[str, str]  # a task's name -> accuracy, f1, macro_f1, pearson, spearman
    parameters: dict[str, Parameter]
    gpus_per_trial: float = 0.0
    space: dict[str, Any] = field(default_factory=dict, repr=False)  # as written, for simulate.py; {}: an older file

    @property
    def tasks(self) -> list[str]:
        return list(self.metrics)

    def state(self, trials: Iterable[Trial]) -> str:
        """Return a sentence about a search that has not ended or lost trials; "" if there is nothing to say."""
        trials = list(trials)
        ended, failed = sum(t.status != "running" for t in trials), sum(t.status == "failed" for t in trials)
        running = ", and it is still running" if self.is_running else ""  # best_to_test holds the lock of an ended one, too
        parts = [f"{ended} of {self.planned} trials have ended{running}"] if ended < self.planned else []
        parts += [f"{failed} of {len(trials)} trials failed; they count up to their last evaluation"] if failed else []
        return f"{self.name}: {'; '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class Trial:
    """A row of the table. Evaluations are in the order of their rungs, training records in the order of their examples."""

    search: str
    number: int
    status: str
    baseline: int | None
    recipe: str
    seconds: float
    examples: int
    params: dict[str, Any]
    evaluations: list[dict[str, Any]] = field(repr=False, default_factory=list)
    training: list[dict[str, Any]] = field(repr=False, default_factory=list)

    @property
    def rung(self) -> int:
        """The last rung evaluated; 0 before the first."""
        return self.evaluations[-1]["rung"] if self.evaluations else 0

    def at(self, rung: int, metric: str = "score") -> float | None:
        """Return a dev metric at a rung; None if the trial was not evaluated there or does not train the task."""
        return next((entry.get(f"dev/{metric}") for entry in self.evaluations if entry["rung"] == rung), None)


@dataclass(frozen=True)
class Table:
    """The trials of one or more searches, and the facts about each search."""

    trials: list[Trial]
    searches: dict[str, Facts]

    @property
    def tasks(self) -> list[str]:
        """The tasks of all searches, each once."""
        return list(dict.fromkeys(task for facts in self.searches.values() for task in facts.tasks))

    @property
    def targets(self) -> list[str]:
        """The metrics to explain: the score, and each task if there are several."""
        return ["score", *(self.tasks if len(self.tasks) > 1 else ())]

    def of(self, search: str) -> Table:
        """Return the part of one search."""
        return Table([trial for trial in self.trials if trial.search == search], {search: self.searches[search]})

    def notes(self) -> list[str]:
        """Return a sentence per search that has not ended or has failed trials."""
        return [note for name, facts in self.searches.items() if (note := facts.state(self.of(name).trials))]


def tabulate(searches: Iterable[Search]) -> pa.Table:
    """Build the table of searches in memory, with the metadata that `Table` needs."""
    searches = list(searches)
    table = as_table(searches)
    rows = [trial for search in searches for trial in best_first(search.trials)]
    for name, (kind, prefix, fixed) in NESTED.items():
        table = table.append_column(name, _nested([_entries(trial, kind, prefix, fixed) for trial in rows], fixed))
    facts = {search.name: asdict(_facts(search)) for search in searches}
    return table.replace_schema_metadata({METADATA: json.dumps({"format": FORMAT, "searches": facts})})


def _entries(trial: TrialResult, kind: str, prefix: str, fixed: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = []
    for before, record in zip([None, *trial.records], trial.records, strict=False):
        if record["kind"] == kind:
            entries.append({key: value for key, value in record.items() if key in fixed or key.startswith(prefix)})
            if kind == "dev" and before and before["step"] == record["step"]:  # the record of the training up to here
                entries[-1]["evaluation_seconds"] = record["seconds"] - before["seconds"]
    return entries


def _nested(entries: list[list[dict[str, Any]]], fixed: Mapping[str, pa.DataType]) -> pa.Array:
    """Return a column of lists of structs: the fixed fields, then every other key as a number."""
    keys = dict.fromkeys(key for of_trial in entries for entry in of_trial for key in entry)
    fields = [*fixed.items(), *((key, pa.float64()) for key in keys if key not in fixed)]
    return pa.array(entries, pa.list_(pa.struct(fields)))


def _facts(search: Search) -> Facts:
    known = search.trials[0].config().known_tasks if search.trials else {}
    objective = search.plan.objective if isinstance(search.plan.objective, str) else "weighted score"
    if objective in known and known[objective].is_correlation:
        objective = f"(r + 1)/2 of {objective}"
    metrics = {task: known[task].metric if task in known else "score" for task in search.tasks}
    parameters = {path: _parameter(path, domain) for path, domain in read_domains(search.folder).items()}
    plan, is_running, (space, _) = search.plan, search.is_running(), read_document(search.folder / "space.yaml")
    gpus = plan.gpus_per_trial
    return Facts(search.name, plan.about, plan.trials, is_running, search.is_toy, objective, metrics, parameters, gpus, space)


def _parameter(path: str, domain: Domain) -> Parameter:
    if isinstance(domain, Choice):
        return Parameter(path, "choice", domain.labels)
    return Parameter(path, domain.kind, (), domain.low, domain.high)


def open_table(sources: Sequence[str], runs: Path) -> Table:
    """Open searches of the folder `runs` by name, and Parquet files by path, as one table; without sources, all searches.

    Raises ValueError: no such search, or a file that `runs.py` has not written.
    """
    files = [source for source in sources if source.endswith(".parquet")]
    names = [source for source in sources if source not in files]
    parts = [(Path(file).stem, read_parquet(Path(file).expanduser())) for file in files]
    if names or not files:
        parts.append(("", tabulate(find_searches(names, runs))))
    trials: list[Trial] = []
    searches: dict[str, Facts] = {}
    for stem, rows in parts:
        for facts in _read_facts(rows):
            name = facts.name if facts.name not in searches else f"{stem}:{facts.name}"  # two files of one search
            searches[name] = Facts(**{**vars(facts), "name": name})
            trials += _read_trials(rows, facts, name)
    return Table(trials, searches)


def read_parquet(path: Path) -> pa.Table:
    """Read a file of `runs.py --out`.  Raises ValueError: no such file, not Parquet, or another content."""
    try:
        rows = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}. Write it: {_write(path)}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file ({message(error)}).") from None
    written = json.loads((rows.schema.metadata or {}).get(METADATA, b"{}"))
    if written.get("format") != FORMAT:
        law = "it lacks the facts about its searches" if not written else f"its format is {written['format']}, not {FORMAT}"
        raise ValueError(f"{path} cannot be analysed: {law}. Write it again: {_write(path)}")
    return rows


def _write(path: Path) -> str:
    return analysis_command("runs", "NAME", "--out", path.name)


def _read_facts(rows: pa.Table) -> list[Facts]:
    written = json.loads(rows.schema.metadata[METADATA])["searches"].values()
    return [Facts(**{**facts, "parameters": _read_parameters(facts["parameters"])}) for facts in written]


def _read_parameters(written: dict[str, dict[str, Any]]) -> dict[str, Parameter]:
    return {path: Parameter(**{**of, "labels": tuple(of["labels"])}) for path, of in written.items()}


def _read_trials(rows: pa.Table, facts: Facts, name: str) -> list[Trial]:
    return [_trial(row, facts, name) for row in rows.to_pylist() if row["search"] == facts.name]


def _trial(row: dict[str, Any], facts: Facts, name: str) -> Trial:
    given = {path: row[path] for path in facts.parameters if row.get(path) is not None}
    params = {p: facts.parameters[p].label(value) if facts.parameters[p].labels else value for p, value in given.items()}
    lists = {key: [{k: v for k, v in entry.items() if v is not None} for entry in row[key] or []] for key in NESTED}
    return Trial(
        name, row["trial"], row["status"], row["baseline"], row["recipe"], row["seconds"], row["examples"], params, **lists
    )


def long_table(rows: pa.Table, column: str) -> pa.Table:
    """Return the entries of `evaluations` or `training` as rows: the trial's columns, without those of its end, then theirs."""
    ends = {*COLUMNS} - {"search", "trial", "status", "baseline", "recipe"}
    kept = [name for name in rows.column_names if name not in ends | {*NESTED} and not name.startswith(("best/", "last/"))]
    lists = rows[column].combine_chunks()
    repeated = rows.select(kept).take(pa.compute.list_parent_indices(lists))
    flat = pa.Table.from_struct_array(lists.flatten())
    for name in flat.column_names:
        repeated = repeated.append_column(name, flat[name])
    return repeated
