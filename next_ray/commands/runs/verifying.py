"""`next-ray runs verify RUN`: are all bytes of a run's checkpoints what was written?"""

from __future__ import annotations

from collections.abc import Sequence

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.runs.opening import RUN_HELP, add_store_options, opened


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and verify; returns the exit code."""
    return ended(lambda: _run(argv), "nothing was changed")


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "runs verify",
        "RUN[@STEP] [options]",
        "Read every object of the checkpoints of a run, or of one checkpoint, and compare size and sha256.",
        ["tiny", "s3://bucket/runs/tiny@24"],
    )
    parser.add_argument("run", metavar="RUN[@STEP]", help=f"{RUN_HELP}; @24, @24-jumped: that checkpoint, else all")
    add_store_options(parser)
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    from next_ray.checkpoints.open import run_and_checkpoint
    from next_ray.commands.progress import shown
    from next_ray.commands.runs.text import size
    from next_ray.errors import CorruptCheckpointError

    run, wanted = run_and_checkpoint(arguments.run)
    damaged: list[str] = []
    with opened(run, arguments) as store, shown() as progress:
        manifests = [store.manifest(wanted)] if wanted else store.manifests()
        for number, manifest in enumerate(manifests):
            progress("reading checkpoints", number, len(manifests))
            try:
                store.verify(manifest)
            except CorruptCheckpointError as error:
                damaged.append(str(error))
    if damaged:
        raise CorruptCheckpointError(f"{len(damaged)} of {len(manifests)} checkpoints are damaged. {' '.join(damaged)}")
    num_bytes = sum(entry.size_bytes for manifest in manifests for entry in manifest.objects.values())
    print(f"All {len(manifests)} checkpoints ({size(num_bytes)}) are what was written.")
