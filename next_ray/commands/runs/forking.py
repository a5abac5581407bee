"""`next-ray runs fork RUN@STEP NEW`: a run of its own that begins where another one was."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.runs.opening import RUN_HELP, add_store_options, exists, located, opened

if TYPE_CHECKING:
    from next_ray.commands.progress import Progress as Shown
    from next_ray.store.checkpoints import CheckpointStore
    from next_ray.types import Manifest

UNDONE = ("rolled_back", "why")
"""What an attempt's record says of a jump that was taken back."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and fork; returns the exit code."""
    return ended(lambda: _run(argv), "what was copied is removed again")


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "runs fork",
        "RUN[@STEP] NEW [options]",
        "A new run that begins at a checkpoint: learner state, progress, its trajectory and the log up to there are copied. "
        "Train it with any settings that keep the model: next-ray run run.name=NEW ...",
        ["tiny@24 tiny-again", "s3://bucket/runs/tiny@24-jumped on"],
    )
    parser.add_argument("run", metavar="RUN[@STEP]", help=f"{RUN_HELP}; @24, @24-jumped: that checkpoint, else the newest")
    parser.add_argument("new", metavar="NEW", help="name of the new run, in the same store, or its folder or URL")
    add_store_options(parser)
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    from next_ray.checkpoints.open import run_and_checkpoint
    from next_ray.commands.progress import shown
    from next_ray.errors import CheckpointFormatError
    from next_ray.store.checkpoints import RESUMABLE

    run, wanted = run_and_checkpoint(arguments.run)
    with opened(run, arguments) as source, shown() as progress:
        progress(f"reading {source.url}", 0, None)
        begin = source.manifest(wanted) if wanted else source.latest()
        if begin is None or begin.kind not in RESUMABLE:
            raise CheckpointFormatError(f"{source.url} holds no {'such ' if begin else ''}checkpoint to train on from.")
        with _new_run(source, arguments) as target:
            note = fork(source, begin, target, progress)
    print(f"{target.url} begins at {begin.id} of {source.url}.{note}")
    print(f"Train it with the settings of the run and any of your own: run.name={target.run} store.url={target.storage.url}")
    print(f"`next-ray runs show {target.url} --config > {target.run}.yaml` writes them down; then: next-ray run {target.run}.yaml")


@contextmanager
def _new_run(source: CheckpointStore, arguments: argparse.Namespace) -> Iterator[CheckpointStore]:
    """An empty run under a lease; what was written is deleted when the block does not come to its end."""
    from next_ray.checkpoints.store_run import store_of
    from next_ray.errors import StoreError
    from next_ray.store.lease import Lease

    place = arguments.new if "/" in arguments.new else located(f"{source.storage.url}/{arguments.new}", None)
    with store_of(place, arguments.endpoint_url) as target:
        if exists(target):
            raise StoreError(f"There is a run {target.run!r} in {target.storage.url} already. Choose another name.")
        with Lease(target.storage, target.run) as lease:
            try:
                yield target
            except BaseException:
                for path in target.storage.list(target.run):
                    if not path.endswith("/lease.json"):
                        target.storage.delete(path)
                raise
            lease.renew()  # raises where somebody took the run meanwhile


def fork(source: CheckpointStore, begin: Manifest, target: CheckpointStore, shown: Shown) -> str:
    """Copy what a driver needs to go on from `begin`; returns what the user should know beyond that, or nothing.

    The checkpoint itself comes first: a copy that is killed then lacks what its progress names, and no driver goes on from it unnoticed.

    Raises:
        StoreError: a checkpoint that it needs is gone.
    """
    from next_ray.progress import Progress
    from next_ray.store.layout import CONFIG, FORKED

    progress = Progress(**begin.metadata)
    there = {manifest.id: manifest for manifest in source.manifests()}
    note = ""
    if lost := [one for one in progress.trajectory if one not in there]:
        progress = replace(progress)
        progress.begin_trajectory()
        note = f" {lost[0]} of its trajectory is deleted by now, so that it begins a new one."
    members = [there.get(one) or source.manifest(one) for one in dict.fromkeys(progress.kept()) if one != begin.id]
    target.claim_identity(source.identity())
    target.put_json(FORKED, {"run": source.url, "checkpoint": begin.id, "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")})
    if kept := source.get_json(CONFIG):
        config = dict(kept["config"])
        config["run"], config["store"] = {**config["run"], "name": target.run}, {**config["store"], "url": target.storage.url}
        target.put_json(CONFIG, {**kept, "config": config})
    for number, manifest in enumerate([begin, *members]):
        shown("copying checkpoints", number, 1 + len(members))
        metadata = progress.to_json() if manifest is begin else manifest.metadata
        state = source.load_state(manifest)
        target.commit(manifest.step, manifest.kind, state, manifest.parents, manifest.base_fingerprint, metadata)
    _copy_log(source, target, progress.step, progress.tried, shown)
    return note


def _copy_log(source: CheckpointStore, target: CheckpointStore, step: int, tried: int, shown: Shown) -> None:
    """Tables up to the step, and the attempts to jump that its progress knows of."""
    from next_ray.store.layout import TABLES

    prefix = f"{source.run}/{TABLES}/"
    for name in dict.fromkeys(path.removeprefix(prefix).partition("/")[0] for path in source.storage.list(prefix.rstrip("/"))):
        shown(f"copying the table {name}", 0, None)
        if rows := source.read_table(name, step):
            target.write_table(name, rows[0]["step"], max(row["step"] for row in rows), rows)
    for path in source.list_json("attempts"):
        attempt: dict[str, Any] = source.get_json(path)
        if attempt["step"] <= tried:
            is_undone = attempt.get("rolled_back", step) > step
            target.put_json(path, {name: value for name, value in attempt.items() if not (is_undone and name in UNDONE)})
