"""JSON that somebody else wrote: read with a size limit, and values taken out of it by type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from next_ray.errors import CheckpointFormatError

MAX_CONFIG_BYTES = 4 * 2**20
MAX_INDEX_BYTES = 64 * 2**20
"""An index has a line per tensor, a trainer's state a line per logged step."""


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object; raises `CheckpointFormatError` naming the file for anything else."""
    try:
        with path.open("rb") as handle:
            data = handle.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointFormatError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(data) > max_bytes:
        raise CheckpointFormatError(f"{path} is larger than {max_bytes >> 20} MiB; that is no such file of a checkpoint.")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{path} is not readable JSON ({type(error).__name__}). Copy the checkpoint again.") from None
    if not isinstance(value, dict):
        raise CheckpointFormatError(f"{path} is not a JSON object. Copy the checkpoint again.")
    return value
