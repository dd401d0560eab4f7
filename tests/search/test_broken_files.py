"""Files of a search with anything in them: each reader gives its object or one of our errors, and soon."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minbert_core.settings.yaml import dump_yaml
from search.methods.asha import RungScheduler
from search.plan.folder import PlanRecord, read_own_space, read_plan, write_plan
from search.report.costs import branch_table, read_choices
from search.report.narrate import table
from search.report.status import show_status
from search.results import as_table, open_search
from search.space.space import make_space
from search.study.repair import repair
from search.study.study import Study

DOCUMENT: dict[str, Any] = {
    "baselines": [{}],
    "config": {"data": "toy", "encoder": "tiny", "gradient": {"choice": ["sum", "pcgrad"]}, "budget": {"examples": 900}},
}
SPACE = make_space("quick", DOCUMENT)
FILES = ("plan.json", "space.yaml", "study.journal", "trials/001/metrics.jsonl", "trials/001/trial.json", "lock")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def dev(rung: int, score: float) -> dict[str, Any]:
    facts = {"kind": "dev", "rung": rung, "examples": rung * 100, "passes": 1, "seconds": rung * 1.0, "time_ms": 1000 * rung}
    return facts | {f"dev/{name}": score for name in ("score", "sst", "norm", "mean")}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "quick"
    (folder / "trials").mkdir(parents=True)
    (folder / "space.yaml").write_text(dump_yaml(DOCUMENT))
    plain = {"trials": 3, "data": "toy", "encoders": {}, "train_on": ["sst"], "fingerprints": {}}
    write_plan(folder, PlanRecord(name="quick", space_name="quick", about="", created="", **plain))
    study = Study(folder, SPACE, 0)
    for score in (0.5, 0.7, 0.6):
        trial = study.ask()
        records = [dev(1, score), dev(3, score)]
        (trial.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        for record in records:
            study.report(trial.number, [record])
        if score != 0.6:
            study.tell(trial.number, "stopped", "stopped at 3/9")
    (folder / "lock").write_text("pid 1 on elsewhere")
    return folder


def changed_values(node: Any, draw: st.DrawFn) -> Any:
    """Return a document with one value replaced, removed or added at a random place."""
    if isinstance(node, dict) and node and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(node)))
        rest = {name: child for name, child in node.items() if name != key}
        return rest if draw(st.integers(0, 5)) == 0 else {**rest, key: changed_values(node[key], draw)}
    if isinstance(node, list) and node and draw(st.booleans()):
        index = draw(st.integers(0, len(node) - 1))
        return [*node[:index], changed_values(node[index], draw), *node[index + 1 :]]
    return draw(values)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, is_lines: bool) -> bytes:
    """Return a file with bytes changed, a part cut out, or another value in one of its documents."""
    how = draw(st.sampled_from(["bytes", "cut", "value", "value", "value"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if how == "cut" or not content:
        return content[:place] + content[draw(st.integers(place, len(content))) :]
    if how == "bytes":
        return content[:place] + draw(st.binary(max_size=4)) + content[place + 1 :]
    lines = content.splitlines() if is_lines else [content]
    index = draw(st.integers(0, len(lines) - 1))
    try:
        lines[index] = json.dumps(changed_values(json.loads(lines[index]), draw)).encode()
    except ValueError:
        return draw(st.binary(max_size=20))
    return b"\n".join(lines) + b"\n"


def readers(folder: Path) -> Iterator[Any]:
    """Yield each reader of a search, as the commands use them."""
    yield lambda: read_own_space(folder, read_plan(folder))
    yield lambda: show_status(folder, "", "")

    def runs() -> None:
        search = open_search(folder)
        as_table([search])
        table(search.trials, search.tasks)
        branch_table(search.trials, read_choices(search.folder))

    def resume() -> None:
        repairs = repair(folder, SPACE, 0)
        Study(folder, SPACE, 0).restore(RungScheduler((1, 3, 9)), repairs.records)

    yield runs
    yield resume


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=12, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(data=st.data())
def test_a_reader_gives_its_object_or_a_sentence(searched: Path, name: str, data: st.DataObject) -> None:
    content = data.draw(damaged((searched / name).read_bytes(), name not in ("plan.json", "trials/001/trial.json")))
    folder = searched.with_name("broken")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(searched, folder, symlinks=True)
    (folder / name).write_bytes(content)
    for read in readers(folder):
        with contextlib.suppress(ValueError, OSError):
            read()
