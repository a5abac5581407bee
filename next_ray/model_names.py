"""What the checkpoints of a run are called where they are served: `RUN@24`, `RUN@24-jumped`, and short names for the usual ones."""

from __future__ import annotations

from collections.abc import Iterable

from next_ray.types import CheckpointKind

BASE = "base"
"""The model that training started from."""
FINAL = "final"
"""The newest checkpoint that a run resumes from: of a finished run its result."""
JUMPED = "jumped"
"""The newest jump that was taken."""
RESUMED_FROM = (CheckpointKind.TRAINED, CheckpointKind.JUMPED, CheckpointKind.REVERTED)


def name_of(run: str, checkpoint: str) -> str:
    """`RUN@24` of `00000024-trained`, `RUN@24-jumped` of `00000024-jumped`: as commands take it."""
    step, _, kind = checkpoint.partition("-")
    return f"{run}@{int(step)}" + ("" if kind == CheckpointKind.TRAINED else f"-{kind}")


def short_names(checkpoints: Iterable[str]) -> dict[str, str]:
    """`final` and `jumped` to their checkpoints' ids, as far as there are any; `checkpoints` in the store's order."""
    found: dict[str, str] = {}
    for checkpoint in checkpoints:
        kind = CheckpointKind(checkpoint.partition("-")[2])
        if kind in RESUMED_FROM:
            found[FINAL] = checkpoint
        if kind is CheckpointKind.JUMPED:
            found[JUMPED] = checkpoint
    return found
