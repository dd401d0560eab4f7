"""The house: imports run one way, the core knows no search engine, every file says what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("minbert_core", "search", "analysis")
LAYERS = (  # each may import those above it and its own, never in a circle; a name ending in a dot stands for a package
    ("minbert_core.clock", "minbert_core.cores", "minbert_core.memory"),
    ("minbert_core.files", "minbert_core.words", "minbert_core.seeds", "minbert_core.commands", "minbert_core.terminal"),
    ("minbert_core.settings.",),
    ("minbert_core.encoder_files",),
    ("minbert_core.data.",),
    ("minbert_core.encoder", "minbert_core.checkpoints", "minbert_core.tensor_files", "minbert_core.methods."),
    ("minbert_core.config", "minbert_core.config_checks", "minbert_core.overrides", "minbert_core.plugins"),
    ("minbert_core.model", "minbert_core.inputs", "minbert_core.machine", "minbert_core.encoder_fit", "minbert_core.settling"),
    ("minbert_core.evaluate",),
    ("minbert_core.train.",),
    ("minbert_core.predict", "minbert_core.predict_file", "minbert_core.convert"),
    ("search", "search.environment", "search.tracking.", "search.methods.", "search.options", "search.shipped"),
    ("search.cluster.",),
    ("search.space.",),
    ("search.plan.",),
    ("search.study.",),
    ("search.report.",),
    ("search.cost.", "search.results", "search.earlier", "search.papers", "search.drive"),
    ("search.run",),
    ("analysis.",),
)
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
DOOR = "analysis.test_split"
ENGINES = {"ray", "optuna", "mlflow"}


def imports(path: Path, at_top_only: bool = False) -> Iterator[str]:
    """The modules that a file imports, those inside functions too unless `at_top_only`; of our packages, the module meant."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef | ast.If) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        if at_top_only and id(node) in inner:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in MODULES else str(node.module) for name in whole}


def layer(module: str) -> int:
    found = [
        i
        for i, names in enumerate(LAYERS)
        for name in names
        if module == name or (name[-1] == "." and f"{module}.".startswith(name))
    ]
    assert len(found) == 1, f"{module} has {len(found)} places in LAYERS; give it one"
    return found[0]


@pytest.mark.parametrize("module", [module for module in MODULES if module != "minbert_core"])
def test_a_file_imports_nothing_that_comes_after_it(module: str) -> None:
    for other in imports(MODULES[module]):
        if other in MODULES:
            assert layer(other) <= layer(module), f"{module} imports {other}, which comes after it"


def test_no_imports_run_in_a_circle() -> None:
    graph = {module: MODULES.keys() & set(imports(path)) for module, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)  # static_order raises CycleError


def test_no_method_imports_another_but_stages_which_hold_their_settings() -> None:
    for module, path in MODULES.items():
        if module.startswith("minbert_core.methods.") and module != "minbert_core.methods.stages":
            others = {other for other in imports(path) if other.startswith("minbert_core.methods")}
            assert not others, f"{module} imports {others}; train hands in what two share"


def test_methods_know_of_data_only_what_a_task_is() -> None:
    for module, path in MODULES.items():
        if module.startswith("minbert_core.methods."):
            ours = {other for other in imports(path) if other.startswith("minbert_core.data")}
            assert ours <= {"minbert_core.data.tasks"}, f"{module} imports {ours}"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("minbert_core")])
def test_the_core_imports_no_search_engine_anywhere_and_transformers_only_where_it_fetches(module: str) -> None:
    anywhere = {name.partition(".")[0] for name in imports(MODULES[module])}
    at_top = {name.partition(".")[0] for name in imports(MODULES[module], at_top_only=True)}
    assert not anywhere & ENGINES
    assert "transformers" not in at_top


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("minbert_core.train.trial", {"ray", "optuna", "mlflow", "transformers", "search", "analysis"}),
        ("minbert_core.train.__main__", {"ray", "optuna", "mlflow", "transformers", "search", "analysis"}),
        ("minbert_core.data.tasks", {"torch", "pyarrow"}),
        ("minbert_core.model", {"ray", "optuna", "mlflow", "transformers", "huggingface_hub", "scipy", "rich"}),
        ("minbert_core.predict", {"torch"}),  # until its line is known to be right
        ("search.study.trainable", {"mlflow", "optuna"}),  # for workers: MLflow belongs to the driver, and takes seconds
    ],
)
def test_what_a_process_imports_in_the_end_is_as_little_as_the_files_say(module: str, forbidden: set[str]) -> None:
    code = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not forbidden & set(done.stdout.split())


def test_only_best_to_test_imports_the_door_to_the_test_split() -> None:
    benchmarks = {f"benchmarks.{path.stem}": path for path in (ROOT / "benchmarks").rglob("*.py")}
    importers = {name for name, path in (MODULES | benchmarks).items() if DOOR in imports(path)}
    assert importers == {"analysis.best_to_test"}


def test_the_core_and_a_search_only_look_whether_test_files_are_there() -> None:
    naming = set()
    for module, path in MODULES.items():
        if not module.startswith("analysis"):
            for outer in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(outer, ast.FunctionDef):
                    assert "test_split" not in outer.name, f"{module}: {outer.name} belongs to {DOOR}"
                    naming |= {outer.name} if "files['test']" in ast.unparse(outer) else set()
    assert naming == {"missing_test_files"}


@pytest.mark.parametrize("module", MODULES)
def test_a_file_says_what_it_is(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    if text.strip() or MODULES[module].name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"


def test_there_is_no_drawer_for_what_has_no_place() -> None:
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "common", "misc"}
