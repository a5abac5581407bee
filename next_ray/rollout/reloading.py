"""Full weights for vLLM's own reload: from memory where the model runs in this process, through a folder where it does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from next_ray.types import Weights
from next_ray.weights import to_tensor, write_parts


@contextmanager
def incoming(parts: Iterable[Weights], folder: Path, in_process: bool) -> Iterator[dict[str, Any]]:
    """What vLLM's `reload_weights` takes: an iterator over the parts, or `folder`, which is written, and removed afterwards."""
    if in_process:
        yield {"weights_iterator": ((name, to_tensor(values)) for part in parts for name, values in part.items())}
        return
    folder.mkdir()
    try:
        write_parts(parts, folder)
        yield {"weights_path": str(folder)}
    finally:
        shutil.rmtree(folder)
