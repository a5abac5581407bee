"""`next-ray runs prune RUN --keep N`: delete old checkpoints that nothing needs any more."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.runs.opening import RUN_HELP, add_store_options, opened

if TYPE_CHECKING:
    from next_ray.store.checkpoints import CheckpointStore
    from next_ray.types import Manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and prune; returns the exit code."""
    return ended(lambda: _run(argv), "some checkpoints may be deleted, those that are there are whole; the same command goes on")


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "runs prune",
        "RUN --keep N [options]",
        "Delete the checkpoints before the newest N trained ones. What resuming needs stays: the present trajectory and both ends of every "
        "jump. A run that a driver writes is refused.",
        ["tiny --keep 3 --dry-run", "s3://bucket/runs/tiny --keep 1"],
    )
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("--keep", type=_positive, required=True, metavar="N", help="trained checkpoints to keep, the newest ones")
    parser.add_argument("--dry-run", action="store_true", help="say what would be deleted")
    add_store_options(parser)
    return parser


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1 on")
    return int(word)


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    from next_ray.commands.progress import shown
    from next_ray.errors import StoreError
    from next_ray.store.lease import Lease
    from next_ray.store.retention import expendable

    with opened(arguments.run, arguments) as store, shown() as progress:
        progress(f"reading {store.url}", 0, None)
        if arguments.dry_run:
            manifests = store.manifests()
            _say(manifests, expendable(manifests, arguments.keep, needed(store)), "would be deleted; nothing was")
            return
        with Lease(store.storage, store.run):  # nobody resumes the run meanwhile
            manifests = store.manifests()
            doomed = expendable(manifests, arguments.keep, needed(store))
            progress(f"deleting {len(doomed)} checkpoints", 0, None)
            if doomed and not store.retain(arguments.keep, needed(store)):
                raise StoreError(f"Another process deletes from {store.url} just now. Nothing was deleted; try again in a minute.")
        _say(manifests, doomed, "are deleted")


def needed(store: CheckpointStore) -> set[str]:
    """Ids that going on from the newest checkpoint needs."""
    from next_ray.progress import Progress

    latest = store.latest()
    return {latest.id, *latest.parents, *Progress(**latest.metadata).kept()} if latest else set()


def _say(manifests: Sequence[Manifest], doomed: Sequence[Manifest], verb: str) -> None:
    from next_ray.commands.runs.text import show, size

    ids = {manifest.id for manifest in doomed}
    spared = {entry.path for one in manifests if one.id not in ids for entry in one.objects.values()}
    freed = {entry.path: entry.size_bytes for one in doomed for entry in one.objects.values() if entry.path not in spared}
    if not doomed:
        show(f"All {len(manifests)} checkpoints stay: nothing is older than those to keep, or it is still needed.")
        return
    show(*(f"  {manifest.id}" for manifest in doomed))
    show(f"{len(doomed)} of {len(manifests)} checkpoints ({size(sum(freed.values()))}) {verb}.")
