"""`next-ray runs COMMAND ...`: what lies in a checkpoint store, and what to do with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from next_ray.commands.parser import program
from next_ray.commands.table import Command, Table

TABLE = Table(
    (
        Command("list", "next_ray.commands.runs.listing", "the runs of a store: steps, accuracy, size, state"),
        Command("show", "next_ray.commands.runs.showing", "one run: checkpoints, accuracies, jumps, who writes it"),
        Command("diff", "next_ray.commands.runs.differing", "what two runs have different in settings and results"),
        Command("prune", "next_ray.commands.runs.pruning", "delete old checkpoints of a run that nothing needs"),
        Command("fork", "next_ray.commands.runs.forking", "a new run that begins at a checkpoint of another one"),
        Command("verify", "next_ray.commands.runs.verifying", "read every object and compare its sha256"),
    ),
    "RUN is a name in the store (--store URL; default: that of the embedded run),\n"
    "or a run's folder or URL. RUN@24 is its checkpoint of step 24. Commands:",
    ("list s3://bucket/runs", "show tiny", "diff tiny tiny-baseline", "prune tiny --keep 3 --dry-run", "fork tiny@24 tiny-again"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Find the command and do it; returns the exit code."""
    return TABLE.dispatch(list(sys.argv[1:] if argv is None else argv), program("runs"))
