"""Text for messages: counts, durations, values, suggestions for unknown names, invisible characters."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any


def counted(number: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun: `1 row`, `2 rows`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def shown(value: Any) -> str:
    """Format a value as YAML writes it, at most 100 characters: null, true, [1, 2], {kind: sum}; text is quoted."""
    text = ""
    for part in _parts(value):  # no more than needed: aliases can make a short document's value huge
        text += part
        if len(text) > 100:
            return text[:99] + "…"
    return text


def _parts(value: Any) -> Iterator[str]:
    if value is None:
        yield "null"
    elif isinstance(value, dict):
        yield "{"
        for i, (key, item) in enumerate(value.items()):
            yield f"{', ' * (i > 0)}{key}: "
            yield from _parts(item)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for i, item in enumerate(value):
            yield ", " * (i > 0)
            yield from _parts(item)
        yield "]"
    else:
        yield str(value).lower() if isinstance(value, bool) else repr(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: `; did you mean 'x'? Known: a, x.`"""
    names = sorted(known)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    known = f" Known: {', '.join(names)}." if names else ""
    return (f"; did you mean '{near[0]}'?" if near else ".") + of_invisible(word) + known


def invisible(text: str) -> str:
    """Return the end of a sentence that names the first invisible character of a text; "" if every character is visible."""
    for i, character in enumerate(text):
        if not character.isprintable():
            name = "TAB" if character == "\t" else unicodedata.name(character, "control character")
            where = f"after '{text[max(0, i - 20) : i]}'" if i else "at its start"
            return f"holds an invisible character (U+{ord(character):04X} {name}) {where}. Type it again."
    return ""


def of_invisible(value: object) -> str:
    """Return a sentence about the first invisible character of a value; "" if there is none, or if the value is not text."""
    hidden = invisible(value) if isinstance(value, str) else ""
    return f" It {hidden}" if hidden else ""


def duration(seconds: float) -> str:
    """Format a duration: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
