"""CONTRIBUTING.md does what it says: its example is followed in a copy of the tree, what it names is there."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import typing
import warnings
from pathlib import Path

import pytest
import yaml

from minbert_core.data.tasks import TaskKind
from search.shipped import SCHEMA
from search.space.file import SpaceSettings
from search.space.schema import schema_line

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def code(language: str) -> list[str]:
    """The code blocks of CONTRIBUTING.md in a language, first to last."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


# ------------------------------------------------------------------------------------------------ the example, followed


@pytest.fixture
def newcomer(tmp_path: Path) -> Path:
    """A copy of the packages and the battery, as one has it before the example."""
    files = [path for package in ("minbert_core", "search") for path in (ROOT / package).rglob("*.py")]
    files += [ROOT / "pyproject.toml", ROOT / "tests/conftest.py", ROOT / "tests/methods/battery.py"]
    files += (ROOT / "tests/methods").glob("test_laws*.py")
    for path in files:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return tmp_path


def add_head(root: Path, text: str, in_union: bool = True) -> None:
    """Write the example's head above the union at the end of heads.py, and name it there."""
    heads = root / "minbert_core/methods/heads.py"
    before, union, after = heads.read_text(encoding="utf-8").partition("\nHead = Annotated[")
    assert union, "heads.py has no union of that name"
    named = re.sub(r"^([^,]+)", r"\1 | Gated", after) if in_union else after
    heads.write_text(f"{before}\n{text}\n{union}{named}", encoding="utf-8")


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True)


def run_laws(root: Path, file: str) -> subprocess.CompletedProcess[str]:
    return run(root, "-m", "pytest", "-p", "no:cacheprovider", "-k", "gated", f"tests/methods/{file}")


def test_the_files_of_the_example_are_read(newcomer: Path) -> None:
    add_head(newcomer, code("python")[0])
    config, space = code("yaml")
    (newcomer / "gated.yaml").write_text(config, encoding="utf-8")
    (newcomer / "spaces.yaml").write_text(space, encoding="utf-8")
    reads = "from pathlib import Path as P; from minbert_core.config_checks import read_config; "
    reads += "from search.space.space import read_space"
    done = run(newcomer, "-c", f"{reads}; read_config(P('gated.yaml')); read_space(P('spaces.yaml'))")
    assert done.returncode == 0, done.stderr


def test_a_law_that_the_example_breaks_is_reported_as_the_guide_says(newcomer: Path) -> None:
    told = re.search(r"^    head 'gated'.*\n    law: .*\n", TEXT, re.MULTILINE)[0].replace("\n    ", "\n").strip()
    add_head(newcomer, code("python")[0].replace("return logits_BK", "return logits_BK.detach()"))
    done = run_laws(newcomer, "test_laws_of_heads.py")
    assert done.returncode == 1
    assert told in done.stdout
    assert "Traceback" not in done.stdout


def test_a_head_that_no_union_names_is_reported(newcomer: Path) -> None:
    add_head(newcomer, code("python")[0], in_union=False)
    done = run_laws(newcomer, "test_laws.py")
    assert done.returncode == 1
    assert "Gated 'gated': it is in no union: no config can name it" in done.stdout


def test_a_variant_is_one_class_and_one_name_and_keeps_every_law(newcomer: Path) -> None:
    """No other file asks for it but the schema and README's table, which the guide's commands write."""
    add_head(newcomer, code("python")[0])
    gradients = newcomer / "minbert_core/methods/gradients.py"
    before, union, after = gradients.read_text(encoding="utf-8").partition("\nGradientMethod = Annotated[")
    again = f"class Again{before.partition('class Sum')[2].partition('class ')[0]}".replace('"sum"', '"again"')
    gradients.write_text(f"{before}\n{again}{union}{after.replace('GradVac', 'GradVac | Again', 1)}", encoding="utf-8")
    tests = [
        "tests/test_config.py",
        "tests/search/space/test_schema.py",
        "tests/search/space/test_main.py",
        "tests/test_readme.py",
    ]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for path in [*(ROOT / "spaces").rglob("*.*"), *pages, *(ROOT / name for name in tests), *(ROOT / "examples").rglob("*.py")]:
        copy = newcomer / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    commands = re.findall(r"^    python -m (search\.space --\w+)", TEXT, re.MULTILINE)
    assert commands, "CONTRIBUTING.md names no command of search.space"
    typed = "import sys; from search.space.__main__ import main; sys.exit(any([main([word]) for word in sys.argv[1:]]))"
    done = run(newcomer, "-c", typed, *(command.split()[1] for command in commands))  # in one process, for their imports
    assert done.returncode == 0, done.stderr
    slow = "not narrow and not by_name and not pydantic"
    left = f"not example and not loader and not searched and not link and not point and {slow}"  # of other files, or slow
    chosen = f"gated or (not laws and {left})"
    done = run(newcomer, "-m", "pytest", "-vv", "-p", "no:cacheprovider", *tests, "tests/methods", "-k", chosen)
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(re.findall(r"/test_laws.*gated.* PASSED", done.stdout)) > 20  # all that are over heads, and over all variants


def test_the_space_of_the_example_may_stay_among_the_shipped_ones() -> None:
    space = code("yaml")[1]
    assert space.splitlines()[0] == schema_line(SCHEMA)
    written = yaml.safe_load(space)
    settings = SpaceSettings.model_validate({key: written[key] for key in ("about", "trials")})
    assert not settings.trial_scheduler.warning(settings.rungs, settings.trials, num_baselines=1, num_recipes=1)


# -------------------------------------------------------------------------------------------------------- what it names


def test_every_place_that_asks_for_the_kind_of_a_task_is_named() -> None:
    kinds = set(typing.get_args(TaskKind))
    section = re.search(r"\*\*A new kind of task\*\*.*?\n\n", TEXT, re.DOTALL)[0]
    for path in [path for package in ("minbert_core", "search", "analysis") for path in (ROOT / package).rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if kinds & {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}:
            name = path.relative_to(ROOT / path.relative_to(ROOT).parts[0])
            assert f"`{name}`" in section, f"{path.relative_to(ROOT)} asks for the kind of a task"


def test_the_files_that_are_named_are_there() -> None:
    for name in re.findall(r"`([\w/]+\.(?:py|md))`", TEXT):
        if name != "utils.py":
            places = [ROOT, ROOT / "minbert_core", ROOT / "minbert_core/methods", ROOT / "analysis"]
            assert any((place / name).exists() for place in places), f"CONTRIBUTING.md names {name}"


# ------------------------------------------------------------------------------------------------ what else a project has


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", version)
    assert citation["license"] == PROJECT["project"]["license"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_package_is_installed_and_says_that_it_is_typed() -> None:
    found = {path.parent.relative_to(ROOT).as_posix() for name in ("minbert_core", "search", "analysis")
             for path in (ROOT / name).rglob("*.py")}  # fmt: skip
    packages = PROJECT["tool"]["setuptools"]["packages"]
    spaces = {"search/spaces", "search/spaces/papers"}  # package-dir makes them of spaces/
    assert {name.replace(".", "/") for name in packages} == found | spaces
    assert PROJECT["tool"]["setuptools"]["package-data"]["*"] == ["py.typed"]
    assert all((ROOT / name / "py.typed").exists() for name in packages if "." not in name)


@pytest.mark.parametrize("category", [UserWarning, DeprecationWarning, FutureWarning, RuntimeWarning, ResourceWarning])
@pytest.mark.parametrize("module", ["minbert_core.step", "search.run", "analysis.runs", __name__])
def test_a_warning_of_ours_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="of ours"):
        warnings.warn_explicit("of ours", category, "file.py", 1, module=module)


@pytest.mark.parametrize(
    ("module", "category", "is_error"),
    [
        ("torch.nn.functional", UserWarning, True),  # a shape that our call has broadcast
        ("torch.nn.functional", FutureWarning, False),
        ("torch.cuda", UserWarning, False),
        ("raymond", UserWarning, True),
        ("ray", UserWarning, False),
        ("mlflow.store.tracking", DeprecationWarning, False),
        ("sqlalchemy.orm", DeprecationWarning, False),
    ],
)
def test_what_a_newer_version_deprecates_within_itself_is_no_error(
    module: str, category: type[Warning], is_error: bool
) -> None:
    with warnings.catch_warnings(record=True) as told:
        if is_error:
            with pytest.raises(category):
                warnings.warn_explicit("of theirs", category, "file.py", 1, module=module)
        else:
            warnings.warn_explicit("of theirs", category, "file.py", 1, module=module)
            assert len(told) == 1


def test_the_tests_carry_the_name_that_the_warnings_are_told_apart_by() -> None:
    assert __name__.startswith("tests.")
