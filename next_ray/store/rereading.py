"""Bytes can be damaged on their way; those that are damaged in the store are so every time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from next_ray.errors import CorruptCheckpointError

T = TypeVar("T")

READS = 3
PAUSE_S = 0.2


def reread(read: Callable[[], T]) -> T:
    """`read()`, which fetches and checks, tried again when what arrives is damaged; raises its last `CorruptCheckpointError`."""
    for _ in range(READS - 1):
        try:
            return read()
        except CorruptCheckpointError:
            time.sleep(PAUSE_S)
    return read()
