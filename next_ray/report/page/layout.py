"""Figures, tables and cards: every picture has its numbers as a table behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from next_ray.report.page.data import RunData
from next_ray.report.page.markup import Markup, joined, tag
from next_ray.report.text import percent

LETTERS = "ABCDEF"
"""Runs that are compared are called by these, which tells them apart without colour."""

MANY_ROWS = 400
"""A table with more rows shows every n-th, and says so."""


@dataclass(frozen=True)
class Table:
    """Titles of the columns and cells; cells that are no text stand on the right. The first column heads its row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


def figure(
    name: str, heading: str, picture: Markup | None, caption: object, table: Table | None, level: int, key: Markup | None = None
) -> Markup:
    """A picture under its heading, with a key, a sentence, and its numbers to unfold."""
    behind = None
    if table is not None and table.rows:
        behind = tag("details", tag("summary", "Numbers as a table"), scrolled(table, heading), class_="numbers")
    return tag(
        "figure",
        tag(f"h{level}", heading, id=f"{name}-heading"),
        picture,
        key,
        tag("figcaption", caption) if caption else None,
        behind,
        aria_labelledby=f"{name}-heading",
    )


def scrolled(table: Table, label: str) -> Markup:
    """A table in a region of its own that scrolls, with the keyboard too."""
    every = -(-len(table.rows) // MANY_ROWS) or 1
    rows = [row for i, row in enumerate(table.rows) if i % every == 0 or i == len(table.rows) - 1]
    caption = f"{table.caption} Every {every}th row.".strip() if every > 1 else table.caption
    numeric = [all(not isinstance(row[i], str) or row[i] in ("", "-") for row in rows) for i in range(len(table.columns))]
    head = tag("tr", *(tag("th", title, scope="col", class_="n" if n else None) for title, n in zip(table.columns, numeric, strict=True)))
    body = [tag("tr", *(_cell(cell, n, i == 0) for i, (cell, n) in enumerate(zip(row, numeric, strict=True)))) for row in rows]
    whole = tag("table", tag("thead", head), tag("tbody", *body), aria_label=label)
    region = tag("div", whole, class_="wide", tabindex=0, role="region", aria_label=f"Table: {label}")
    return joined(region, soft(caption)) if caption else region


def _cell(cell: object, numeric: bool, heads: bool) -> Markup:
    shown = cell if isinstance(cell, str) else "" if cell is None else _number(cell)
    return tag("th" if heads else "td", shown, scope="row" if heads else None, class_="n" if numeric else None)


def _number(value: Any) -> str:
    if isinstance(value, Shown):
        return value.words
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Shown:
    """A number with its own way to be written, for a table."""

    words: str


def share(value: float | None) -> Shown | None:
    """A share as a percentage."""
    return None if value is None else Shown(percent(value))


def interval(found: Mapping[str, float] | None, sign: bool = False) -> Shown | None:
    """Mean and 95 % interval in percent (or points, with their sign)."""
    if found is None:
        return None
    if sign:
        return Shown(f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]")
    return Shown(f"{percent(found['mean'])} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]")


def callout(lines: Sequence[object], label: str) -> Markup:
    """Sentences that stand out, the first of them most."""
    rest = tag("ul", *(tag("li", line) for line in lines[1:])) if len(lines) > 1 else None
    return tag("div", tag("p", lines[0]), rest, class_="verdict", role="group", aria_label=label)


def section(name: str, heading: object, level: int, *content: object) -> Markup:
    """A part of the page with a heading that the contents lead to."""
    return tag("section", tag(f"h{level}", heading, id=name), *content, aria_labelledby=name)


def grid(*figures: object) -> Markup:
    """Figures side by side where there is room."""
    return tag("div", *figures, class_="grid")


def letter(number: int) -> Markup:
    """A run's letter in its colour."""
    return tag("span", LETTERS[number], class_=f"letter s{number}")


def called(runs: Sequence[RunData], number: int) -> str:
    """What a run is called in a key: its letter and name where there are several, else nothing but its name."""
    return f"{LETTERS[number]}: {runs[number].name}" if len(runs) > 1 else runs[number].name


def soft(*words: object) -> Markup:
    """A remark."""
    return tag("p", *words, class_="soft")


def when(stamp: str) -> str:
    """A manifest's `YYYY-MM-DDThh:mm:ssZ` as people read it."""
    return stamp.replace("T", " ").replace("Z", " UTC")


def notes(lines: Sequence[str]) -> Markup:
    """Remarks, one a paragraph."""
    return joined(*(soft(line) for line in lines))
