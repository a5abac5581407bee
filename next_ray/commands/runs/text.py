"""How the commands about runs write sizes, times and shares, and where their tables go."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

WIDE = 160
"""Columns of a table that no terminal shows."""


def size(num_bytes: int) -> str:
    """In the largest unit of which there is one, three digits."""
    value, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 999.5:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"


def accuracy(interval: Mapping[str, float] | None) -> str:
    """Percent with its 95 % interval; a dash where nothing was measured."""
    if interval is None:
        return "-"
    return f"{100 * interval['mean']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def new_table(title: str | None, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def show(*parts: Any) -> None:
    """Print tables and sentences to stdout, nothing of what a store says taken for markup."""
    console = Console(width=None if sys.stdout.isatty() else WIDE, markup=False, highlight=False, emoji=False)
    for part in parts:
        console.print(part)


def show_json(content: Any) -> None:
    """Print plain data."""
    print(json.dumps(content, indent=2, allow_nan=False))
