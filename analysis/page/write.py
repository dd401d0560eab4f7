"""One HTML file that needs no network: the template, the style sheet, Vega-Lite's programs and the figures in one text.

Vega-Lite (BSD licence) draws the figures as SVG in the browser. Its bundle has 0.9 MB. That of plotly 7.1 has 4.8 MB; pip has
no smaller one. That of bokeh 3.9 has 1.3 MB, but draws on a canvas, whose colours do not follow those of the page, and which
prints as pixels (measured 2026-11).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup, escape

from analysis.page.blocks import Figure, Section
from analysis.page.charts import CONFIG

VEGA_LITE = "6.1"  # in 6.4 the tooltip of the nearest point shows `undefined` for text
SCHEMA = f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE.partition('.')[0]}.json"  # a name; nothing is fetched


@dataclass(frozen=True)
class Page:
    """A page: its title, the question, the answer in sentences, notes about its state, a line about its origin, sections."""

    title: str
    question: str
    answer: list[str]
    notes: list[str]
    origin: str
    sections: list[Section]


def html(page: Page) -> str:
    """Render a page as one HTML document."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["marked"] = _marked
    specs = [full_spec(panel.spec) for figure in figures(page) for panel in figure.panels]
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE) if specs else ""
    return environment.get_template("page.html.j2").render(page=page, specs=[_quoted(spec) for spec in specs], script=script)


def figures(page: Page) -> list[Figure]:
    """Return the figures of a page, in their order."""
    return [block for section in page.sections for block in section.blocks if isinstance(block, Figure)]


def full_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Complete a specification by the page's colours and fonts."""
    return {"$schema": SCHEMA, "config": CONFIG, **spec}


def _marked(text: str) -> Markup:
    """Show what is between two backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _quoted(spec: dict[str, Any]) -> str:
    """Write a specification as JSON for a script: numbers that are not finite are null, and no tag in it can end the script."""
    text = json.dumps(_finite(spec), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
