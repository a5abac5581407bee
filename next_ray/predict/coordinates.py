"""Each module's vectors in an orthonormal basis of the few directions its trajectory has visited.

A module's u (or v) vectors of G, L and T are a few dozen points of R^D, and a predictor can neither see nor foretell anything
outside their span. Expressing them there is exact while they fit in C coordinates, shrinks NExt's network from D to C, and gives
modules comparable coordinates: the first is where the module has gone, the next how it turned.

Shape legend: N vectors, D dimension, C coordinates.
"""

from __future__ import annotations

import numpy as np

SPAN_TOLERANCE = 1e-8
"""Directions with less than this share of the largest squared singular value are left out of a basis."""


def span_basis(vectors: np.ndarray, num_coordinates: int, latest: np.ndarray, previous: np.ndarray | None = None) -> np.ndarray:
    """The leading principal directions (uncentred) of `vectors` [N, D] as columns [D, C], zero columns where N spans less.

    Signs make the coordinates of `latest` [D] non-negative. With a `previous` basis the new one is turned within its span
    to be nearest to it (orthogonal Procrustes), so that a network fitted on the old coordinates stays fitted.
    """
    x = vectors.astype(np.float64)
    size, mix = np.linalg.eigh(x @ x.T)
    size, mix = size[::-1][:num_coordinates], mix[:, ::-1][:, :num_coordinates]
    kept = size > SPAN_TOLERANCE * max(size[0], np.finfo(np.float64).tiny)
    basis = np.zeros((x.shape[1], num_coordinates))
    basis[:, : int(kept.sum())] = x.T @ (mix[:, kept] / np.sqrt(size[kept]))
    if previous is None:
        return basis * np.where(latest.astype(np.float64) @ basis < 0, -1.0, 1.0)
    left, _, right = np.linalg.svd(basis.T @ previous)
    return basis @ (left @ right)
