"""Checkpoints in two dimensions: the plane through their mean in which they differ most (principal components, from inner products).

Shape legend: K checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plane:
    """Where the checkpoints of `ids` [K] and the base lie; `explained` is the share of their squared distances that the plane shows."""

    ids: tuple[str, ...]
    places: tuple[tuple[float, float], ...]
    base: tuple[float, float]
    explained: float


def plane(ids: Sequence[str], gram: np.ndarray) -> Plane | None:
    """From the inner products of W_t - W_0, float64 [K, K]; the base counts as one more. None where nothing moved."""
    full = np.pad(gram, ((1, 0), (1, 0)))
    centred = full - full.mean(axis=0) - full.mean(axis=1)[:, None] + full.mean()
    sizes, vectors = np.linalg.eigh(centred)
    total = float(np.maximum(sizes, 0.0).sum())
    if total <= 0.0:
        return None
    first, second = (vectors[:, -n] * np.sqrt(max(sizes[-n], 0.0)) for n in (1, 2))
    first = first if first[-1] >= first[0] else -first  # from left to right
    spots = [(float(a), float(b)) for a, b in zip(first, second, strict=True)]
    return Plane(tuple(ids), tuple(spots[1:]), spots[0], float(np.maximum(sizes[-2:], 0.0).sum()) / total)
