"""What NExt has to beat: persistence and the linear fit, and the error by which all are measured."""

from __future__ import annotations

import numpy as np

from next_ray.delta.factors import FactorPair, spectra
from next_ray.delta.gauge import align
from next_ray.predict.trajectory import AlignedTrajectory, Triplets
from next_ray.types import Triplet


def persistence(trajectory: AlignedTrajectory) -> dict[str, Triplet]:
    """Repeat the last delta over a whole horizon: T_{c-k} = W_c - W_{c-k}, size and direction."""
    return dict(trajectory.targets[trajectory.last_index - trajectory.horizon])


def linear(trajectory: AlignedTrajectory) -> dict[str, Triplet]:
    """k times the least-squares slope of every entry of the rank-1 global delta over checkpoints 1..c, its top triplet.

    With G_i = sigma_i u_i v_i^T the slope is sum_i w_i G_i, w_i = (i - mean) / sum (i - mean)^2: a product of factors, so no
    dense matrix and no sign gauge are involved. This is the linearity that NExt's section 3.3 tests.
    """
    count = trajectory.last_index
    centred = np.arange(1, count + 1) - (count + 1) / 2
    weights = trajectory.horizon * centred / np.sum(centred**2)
    pairs: dict[str, FactorPair] = {}
    for name in trajectory.trained(count):
        steps = [trajectory.globals_[i][name] for i in range(1, count + 1)]
        left = np.stack([w * t.sigma * t.u.astype(np.float64) for w, t in zip(weights, steps, strict=True)], axis=1)
        pairs[name] = FactorPair(left=left, right=np.stack([t.v for t in steps]).astype(np.float64))
    return {name: found.top for name, found in spectra(pairs).items()}


def relative_error(predicted: Triplets, actual: Triplets) -> float:
    """Mean over the modules that moved of |T_hat - T|_F / |T|_F for rank-1 T; a module not predicted counts as T_hat = 0."""
    errors = [
        triplet_distance(predicted[name], triplet) / triplet.sigma if name in predicted else 1.0
        for name, triplet in actual.items()
        if triplet.sigma > 0
    ]
    return float(np.mean(errors)) if errors else 0.0


def triplet_distance(first: Triplet, second: Triplet) -> float:
    """|s u v^T - t p q^T|_F from the vectors alone, in difference form: (s u - t p) v^T + t p (v - q)^T, no cancellation."""
    first = align(first, second)
    u, v = first.u.astype(np.float64) * first.sigma, first.v.astype(np.float64)
    p, q = second.u.astype(np.float64) * second.sigma, second.v.astype(np.float64)
    du, dv = u - p, v - q
    square = (du @ du) * (v @ v) + 2.0 * (du @ p) * (v @ dv) + (p @ p) * (dv @ dv)
    return float(np.sqrt(max(square, 0.0)))
