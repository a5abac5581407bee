"""`next-ray runs list [STORE]`: the runs of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from next_ray.commands.ending import ended, printable
from next_ray.commands.parser import Parser
from next_ray.commands.runs.opening import default_store

if TYPE_CHECKING:
    from next_ray.commands.runs.facts import RunFacts
    from next_ray.store.storage import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and list; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was changed")


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "runs list",
        "[STORE] [options]",
        "The runs of a store. A run is running while a driver holds its lease, finished when its final table is there, stopped otherwise.",
        ["", "file:///data/runs", "s3://bucket/runs --json"],
    )
    parser.add_argument("store", nargs="?", metavar="STORE", help="store.url of the runs (default: the default store)")
    parser.add_argument("--endpoint-url", metavar="URL", help="S3 server other than AWS")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    from next_ray.commands.progress import shown
    from next_ray.commands.runs.text import show_json
    from next_ray.store.storage import Storage

    with Storage(_as_url(arguments.store or default_store()), arguments.endpoint_url) as storage:
        with shown() as progress:
            progress(f"reading {storage.url}", 0, None)
            names = storage.runs()
            rows = []
            for number, name in enumerate(names):
                progress("reading runs", number, len(names))
                rows += _row(storage, name)
        if arguments.json:
            show_json([row.to_json() for row in rows])
        else:
            _show(storage.url, rows)


def _as_url(store: str) -> str:
    return store if "://" in store else f"file://{store}" if store.startswith(("/", "~")) else f"file://./{store}"


def _row(storage: Storage, name: str) -> list[RunFacts]:
    """None for a folder that is no run; what is damaged is said in its row, and hides no other one."""
    from next_ray.commands.runs.facts import DAMAGED, RunFacts, facts_of
    from next_ray.commands.runs.opening import exists
    from next_ray.errors import StoreError
    from next_ray.store.checkpoints import CheckpointStore

    try:
        store = CheckpointStore(storage, name)
        return [facts_of(store)] if exists(store) else []
    except StoreError as error:
        return [RunFacts(name, 0, None, None, None, 0, DAMAGED, printable(str(error)))]


def _show(url: str, rows: Sequence[RunFacts]) -> None:
    from next_ray.commands.runs.text import accuracy, new_table, show, size

    if not rows:
        show(f"No runs in {url}.")
        return
    table = new_table(None, "run", "steps", "last checkpoint", "accuracy [95 %]", "size", "state", right=("steps", "size"))
    for row in rows:
        last = f"{row.last_checkpoint} {row.committed_at}" if row.last_checkpoint else "-"
        table.add_row(row.run, str(row.steps), last, accuracy(row.accuracy), size(row.size_bytes), row.state)
    show(table, *(f"{row.run}: {row.detail}" for row in rows if row.detail))
