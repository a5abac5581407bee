"""The sign gauge of triplets: (u, v) and (-u, -v) are one triplet, and a trajectory needs one choice.

Along a trajectory the global deltas are chained (G_1 canonical, G_i to G_{i-1}) and L_i and T_i follow G_i. Every rule
depends on the triplets only up to their sign, so flipping any input changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from next_ray.types import Triplet


def flipped(triplet: Triplet) -> Triplet:
    """The same triplet with the other sign."""
    return Triplet(sigma=triplet.sigma, u=-triplet.u, v=-triplet.v)


def canonical(triplet: Triplet) -> Triplet:
    """The sign that makes the entry of largest magnitude of u (the first of equals) positive."""
    pivot = triplet.u[np.argmax(np.abs(triplet.u))]
    return flipped(triplet) if pivot < 0 else triplet


def align(triplet: Triplet, reference: Triplet | None) -> Triplet:
    """The sign of `triplet` nearest to `reference`: <u, u_ref> + <v, v_ref> >= 0; canonical without one or at a tie."""
    if reference is None:
        return canonical(triplet)
    agreement = _dot(triplet.u, reference.u) + _dot(triplet.v, reference.v)
    if agreement == 0.0:
        return canonical(triplet)
    return flipped(triplet) if agreement < 0 else triplet


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.dot(x.astype(np.float64), y.astype(np.float64)))


def chained(triplets: Sequence[Triplet]) -> list[Triplet]:
    """One module's triplets along a trajectory, each aligned to the one before."""
    result: list[Triplet] = []
    for triplet in triplets:
        result.append(align(triplet, result[-1] if result else None))
    return result
