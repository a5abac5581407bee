"""`next-ray runs diff RUN RUN2`: what two runs were told otherwise, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.runs.opening import RUN_HELP, add_store_options, opened
from next_ray.commands.runs.showing import outcome, whole
from next_ray.settings.flat import differing

if TYPE_CHECKING:
    from rich.table import Table

OWN_KEYS = ("run.name", "run.output_dir")
"""Settings that two runs never share and that change nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and compare; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was changed")


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "runs diff",
        "RUN RUN2 [options]",
        "What two runs have different: settings (of the driver that was last started), and results side by side.",
        ["tiny tiny-baseline", "tiny s3://bucket/runs/tiny --json"],
    )
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("other", metavar="RUN2", help="the run that it is compared with")
    add_store_options(parser)
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    from next_ray.commands.progress import shown
    from next_ray.commands.runs.text import show, show_json

    found = []
    for place in (arguments.run, arguments.other):
        with opened(place, arguments) as store, shown() as progress:
            progress(f"reading {store.url}", 0, None)
            found.append(whole(store))
    first, second = found
    difference = {
        "runs": [first["url"], second["url"]],
        "settings": differing([first["config"], second["config"]], OWN_KEYS) if first["config"] and second["config"] else None,
        "results": {name: list(values) for name, *values in zip(_NAMES, _results(first), _results(second), strict=True)},
    }
    if arguments.json:
        show_json(difference)
    else:
        show(*_parts(difference, _titles(first, second)))


_NAMES = ("state", "steps", "accuracy", "base accuracy", "jumps", "checkpoints", "size")


def _results(found: Mapping[str, Any]) -> tuple[str, ...]:
    from next_ray.commands.runs.text import accuracy, size

    base = found["models"][0]["avg_at_k"] if found["models"] else None
    jumps = [f"{outcome(attempt)} (step {attempt.get('step')})" for attempt in found["attempts"]]
    sizes = str(len(found["checkpoints"])), size(found["size_bytes"])
    return found["state"], str(found["steps"]), accuracy(found["accuracy"]), accuracy(base), "; ".join(jumps) or "none tried", *sizes


def _titles(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, str]:
    """The runs' names, or their addresses where the names are the same."""
    return (first["run"], second["run"]) if first["run"] != second["run"] else (first["url"], second["url"])


def _parts(difference: Mapping[str, Any], titles: tuple[str, str]) -> Iterator[Table | str]:
    from next_ray.commands.runs.text import new_table

    if difference["settings"] is None:
        yield "Settings cannot be compared: a run that was last started by an earlier version keeps none in its store."
    elif not difference["settings"]:
        yield "Both have the same settings."
    else:
        table = new_table("Settings", "key", *titles)
        for key, (ours, theirs) in difference["settings"].items():
            table.add_row(key, _shown(ours), _shown(theirs))
        yield table
    table = new_table("\nResults", "", *titles)
    for name, (ours, theirs) in difference["results"].items():
        table.add_row(name, ours, theirs)
    yield table


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
