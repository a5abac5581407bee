"""What a command is doing, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how many of how many are done; None: nobody knows how many."""


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr)


@contextmanager
def shown() -> Iterator[Progress]:
    """A line with a bar that disappears at the end; without a terminal one plain line for every new activity."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said: set[str] = set()

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in said:
                said.add(what)
                say(what)

        yield tell
        return
    columns = (rich_progress.SpinnerColumn(), "{task.description}", rich_progress.BarColumn(), rich_progress.TimeElapsedColumn())
    on_screen = sys.stdout.isatty()  # what is printed meanwhile goes above the bar; a file or pipe gets it as ever
    with rich_progress.Progress(*columns, console=console, transient=True, redirect_stdout=on_screen) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show
