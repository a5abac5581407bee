"""What every reader of tensors looks like, safetensors or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from next_ray.checkpoints.headers import TensorEntry


class TensorFile(Protocol):
    """A file of named tensors whose contents are known and whose tensors are read one at a time."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Name to dtype and shape."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The tensor, float32, finite; raises `CheckpointFormatError`."""
        ...
