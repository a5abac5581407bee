"""Long vectors seen through a fixed random frame, so that NExt's network costs the same for any layer width.

A module's u (or v) vectors of G, L and T are a few dozen points of R^D. A random orthonormal frame P [D, C] keeps their
lengths and angles, and keeps different modules as distinct as they were (Johnson and Lindenstrauss 1984); the network works
on C numbers instead of D. On the way back the vector is sought in the span of what the module's trajectory has visited, where
P is one-to-one: nothing outside it can be foretold anyway. The frame is fixed, so a fit stays valid as the trajectory grows.

Shape legend: N vectors, D dimension, C coordinates, S dimension of a span.
"""

from __future__ import annotations

import numpy as np

SPAN_TOLERANCE = 1e-8
"""Directions with less than this share of the largest squared singular value are left out of a span."""


def random_frame(dimension: int, num_coordinates: int, seed: int) -> np.ndarray:
    """P [D, C] with orthonormal columns, scaled by sqrt(D / C) so that lengths keep; the identity when D <= C."""
    if dimension <= num_coordinates:
        return np.eye(dimension)
    columns, _ = np.linalg.qr(np.random.default_rng([seed, dimension]).normal(size=(dimension, num_coordinates)))
    return columns * np.sqrt(dimension / num_coordinates)


def span(vectors: np.ndarray, max_dimension: int) -> np.ndarray:
    """Orthonormal columns [D, S]: the leading principal directions (uncentred) of `vectors` [N, D], at most `max_dimension`."""
    x = vectors.astype(np.float64)
    size, mix = np.linalg.eigh(x @ x.T)
    size, mix = size[::-1][:max_dimension], mix[:, ::-1][:, :max_dimension]
    kept = size > SPAN_TOLERANCE * max(float(size[0]), np.finfo(np.float64).tiny)
    return x.T @ (mix[:, kept] / np.sqrt(size[kept]))


def recover(coordinates: np.ndarray, frame: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The vector [D] of span(basis) whose image under the frame is nearest to `coordinates` [C]; exact for images of the span."""
    weights, *_ = np.linalg.lstsq(frame.T @ basis, coordinates, rcond=None)
    return basis @ weights
