"""What README.md and the pages of docs/ show, done."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from search.space.space import read_space
from search.space.table import methods_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_between_pages_leads_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if not link.startswith("http")]
    assert [link for link, *_ in links if not (folder / link).exists()] == []
    for link, _, section in links:
        headings = re.findall(r"^#+ (.*)$", (folder / link).read_text(encoding="utf-8"), re.MULTILINE) if section else []
        assert not section or section in {heading.lower().replace(" ", "-") for heading in headings}, f"{link}#{section}"


@pytest.mark.parametrize(
    "block", [block for page in PAGES.values() for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
)
def test_every_space_that_a_page_shows_is_sound(block: str, tmp_path: Path, forget: Callable[[], None]) -> None:
    (tmp_path / "shown.yaml").write_text(block, encoding="utf-8")
    read_space(tmp_path / "shown.yaml")


def test_the_table_of_methods_is_that_of_the_classes() -> None:
    assert "\n".join(methods_table()) in README, "out of date: run `python -m search.space --table`"


def test_it_fits_three_screens() -> None:
    assert len(README.splitlines()) <= 160
