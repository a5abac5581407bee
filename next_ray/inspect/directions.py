"""Does the first singular direction hold still from one checkpoint to the next, and would its sign have, without alignment?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from next_ray.delta.gauge import align, canonical
from next_ray.types import ModuleTriplets, Triplet


@dataclass(frozen=True)
class Angles:
    """Degrees between the top triplets of two successive deltas.

    Args:
        u: between the lines along u, 0 to 90.
        v: between the lines along v, 0 to 90.
        matrix: between the matrices u v^T as vectors, 0 to 180, which no sign of a triplet changes: cos = <u, u'> <v, v'>.
    """

    u: float
    v: float
    matrix: float


@dataclass(frozen=True)
class Directions:
    """One module: `global_[i]` compares G_{i+2} with G_{i+1}, `local` the same of L (L_1 = G_1); None where a delta is zero.

    `flips` counts the successive pairs of G whose signs disagree when each triplet has the sign that makes its largest entry of u
    positive, a fixed rule that knows no neighbours; `pairs` is how many there are.
    """

    global_: tuple[Angles | None, ...]
    local: tuple[Angles | None, ...]
    flips: int
    pairs: int


def angles(later: Triplet, earlier: Triplet) -> Angles | None:
    """Accurate near 0 (half-angle form); float32 vectors leave about 1e-5 degrees of noise."""
    if later.sigma <= 0 or earlier.sigma <= 0:
        return None
    u, same_u = _gap(later.u, earlier.u)
    v, same_v = _gap(later.v, earlier.v)
    # 1 - (1 - u)(1 - v), without the cancellation
    matrix = u + v - u * v
    return Angles(_degrees(u), _degrees(v), _degrees(matrix if same_u == same_v else 2.0 - matrix))


def directions(triplets: Sequence[ModuleTriplets]) -> Directions:
    """From the triplets of checkpoints 1..K, in any signs."""
    pairs = list(zip(triplets[1:], triplets, strict=False))
    flips = [_flips(later.global_, earlier.global_) for later, earlier in pairs]
    return Directions(
        global_=tuple(angles(later.global_, earlier.global_) for later, earlier in pairs),
        local=tuple(angles(later.local, earlier.local) for later, earlier in pairs),
        flips=sum(flip is True for flip in flips),
        pairs=sum(flip is not None for flip in flips),
    )


def _flips(later: Triplet, earlier: Triplet) -> bool | None:
    if later.sigma <= 0 or earlier.sigma <= 0:
        return None
    own = canonical(later)
    return bool(np.any(align(own, canonical(earlier)).u != own.u))


def _gap(x: np.ndarray, y: np.ndarray) -> tuple[float, bool]:
    """1 - |cos|, and whether the cosine is positive."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    same, opposite = float(np.sum((a - b) ** 2)) / 2.0, float(np.sum((a + b) ** 2)) / 2.0
    return min(same, opposite), same <= opposite


def _degrees(gap: float) -> float:
    return math.degrees(2.0 * math.asin(math.sqrt(min(max(gap / 2.0, 0.0), 1.0))))
