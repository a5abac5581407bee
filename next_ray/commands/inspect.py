"""What `python -m next_ray.inspect` does: open the checkpoints, measure, back test every method, show and write the result."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from next_ray.commands.accuracies import read_accuracies
from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.writing import check_file, scratch_folder, write_whole
from next_ray.errors import ConfigError

if TYPE_CHECKING:
    from next_ray.checkpoints.imported import Imported
    from next_ray.inspect.analysis import Inspection

SLOW = {"next-released": "the predictor as published is slow to fit and there for comparison; name it under --methods to try it"}
"""Methods that are tried only when they are named, and why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and inspect; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was written")


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    _check_targets(arguments.json, arguments.plots)
    imported, inspection = _inspect(arguments)
    from next_ray.inspect.console import make_console, show

    show(inspection, make_console())
    if arguments.json is not None:
        from next_ray.inspect.document import document

        _write_json(arguments.json, document(inspection, _origin(imported)))
    if arguments.plots is not None:
        _write_plots(arguments.plots, inspection)


def parser() -> Parser:
    """Of the command line."""
    from next_ray.extrapolate.methods.registry import METHODS

    parser = Parser(
        "inspect",
        "PATH [PATH ...] [options]",
        "Tell whether a trajectory of checkpoints is worth extrapolating, how far and by which method: what each would have foretold of "
        "checkpoints that are hidden from it.",
        ["grpo/checkpoint-*", "s3://bucket/runs/tiny --methods next two-point"],
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="checkpoint folders, folders of them, or one run of our store")
    add("--base", metavar="MODEL", help="what training started from; full models need its folder")
    add("--horizon", type=int, metavar="K", help="checkpoints to hide and foretell (default: a third)")
    add("--accuracies", type=Path, metavar="FILE.json", help='held-out accuracies by step: {"0": 0.31, "10": 0.35}')
    add("--json", type=Path, metavar="FILE", help="write all numbers there")
    add("--plots", type=Path, metavar="DIR", help="write the figures there as PNG files")
    more = parser.more.add_argument
    more("--methods", nargs="+", metavar="METHOD", help=f"methods to try, of {', '.join(METHODS)} (default: all but {', '.join(SLOW)})")
    more("--workers", type=int, default=0, metavar="N", help="compute the triplets on N Ray workers (default 0: in this process)")
    more("--full-spectrum", action="store_true", help="all singular values of large full-parameter modules too (slow)")
    more("--segment", type=int, metavar="STEP", help="for a run of our store that jumped: the step at which the trajectory begins")
    more("--endpoint-url", metavar="URL", help="S3 server other than AWS")
    return parser


def _inspect(arguments: argparse.Namespace) -> tuple[Imported, Inspection]:
    """Heavy libraries are imported when names and paths are known to be right."""
    from next_ray.extrapolate.methods.registry import METHODS, make

    names = list(dict.fromkeys(arguments.methods or [name for name in METHODS if name not in SLOW]))
    methods = [make(name) for name in names]
    if arguments.workers < 0:
        raise ConfigError(f"--workers is a number of Ray workers and must be at least 0, got {arguments.workers}.")
    accuracies = read_accuracies(arguments.accuracies) if arguments.accuracies is not None else None
    from next_ray.checkpoints.open import open_trajectory
    from next_ray.commands.progress import shown

    with shown() as progress:
        progress("reading checkpoints", 0, None)
        imported = open_trajectory(arguments.paths, arguments.base, segment=arguments.segment, endpoint_url=arguments.endpoint_url)
        if accuracies is not None:
            imported = imported.with_accuracies(accuracies)
        trajectory = imported.trajectory
        from next_ray.inspect.analysis import checked_horizon, inspect_trajectory

        horizon = checked_horizon(arguments.horizon, trajectory.num_checkpoints)
        if arguments.workers:
            from next_ray.commands.workers import with_sharded_triplets

            progress("singular triplets on Ray workers", 0, None)
            trajectory = with_sharded_triplets(
                trajectory, horizon, arguments.workers, arguments.paths, arguments.base, arguments.segment, arguments.endpoint_url
            )
        left_out = [f"{name} was not tried: {reason}." for name, reason in SLOW.items() if name not in names and arguments.methods is None]
        inspection = inspect_trajectory(trajectory, methods, horizon, arguments.full_spectrum, [*imported.notes, *left_out], progress)
    return imported, inspection


def _origin(imported: Imported) -> dict[str, Any]:
    base = imported.base
    return {
        "base": {"name": base.name, "path": str(base.path) if base.path is not None else None, "fingerprint": base.fingerprint},
        "sources": [{"step": source.step, "path": source.path, "format": source.format} for source in imported.sources],
    }


def _check_targets(file: Path | None, folder: Path | None) -> None:
    """Before any work is done for them."""
    if file is not None:
        check_file(file, "--json")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--plots {folder}: this is a file; a folder is needed.")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n", "--json")
    print(f"numbers in {path}", file=sys.stderr)


def _write_plots(folder: Path, inspection: Inspection) -> None:
    """All figures or none."""
    from next_ray.inspect.plots import draw

    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with scratch_folder(folder, "figures") as scratch:
                files = draw(inspection, scratch)
                for file in files:
                    os.replace(file, folder / file.name)
        finally:
            if made and not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise ConfigError(f"--plots {folder} could not be written: {error.strerror or error}.") from None
    print(f"{len(files)} figures in {folder}", file=sys.stderr)
