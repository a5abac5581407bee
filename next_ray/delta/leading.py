"""The top singular triplet of a dense matrix by a block Krylov method, warm-started, with a proven residual.

Golub and Kahan (1965) with full reorthogonalisation: a basis V of right vectors grows by the residuals of the best Ritz pairs of D^T D,
so that only products D x and D^T y are needed. Two columns a block see a sigma_1 that is double; thick restarts bound the basis.

Shape legend: O/I out/in features, M vectors of the basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from next_ray.delta.factors import FLAT
from next_ray.errors import ExtrapolationError
from next_ray.types import Triplet

BLOCK = 2
"""Vectors that a step adds."""

BASIS = 40
"""Vectors of the basis at which it is cut back to the best `KEPT` Ritz vectors."""

KEPT = 10

MAX_STEPS = 500
"""Steps after which the matrix is given up with an error."""

NEAR_TIE = 1e-2
"""A relative gap below this means that the top direction is one of several: a flat spectrum."""

BREAKDOWN = 1e-13
"""What is left of a vector after orthogonalisation, relative to sigma_1, below which it adds no direction."""


@dataclass(frozen=True)
class Leading:
    """A top triplet and how far to trust it.

    Args:
        triplet: in any sign.
        residual: max(|D v - sigma u|, |D^T u - sigma v|) / sigma, of the float64 vectors.
        gap: (sigma_1 - sigma_2) / sigma_1 by the Ritz values. sigma_1 is known to residual^2 / gap, u and v to residual / gap.
        steps: block steps; each costs `BLOCK` products with D and as many with D^T.
    """

    triplet: Triplet
    residual: float
    gap: float
    steps: int

    @property
    def degenerate(self) -> bool:
        """sigma_1 is nearly tied with sigma_2, or nearer to it than the residual can tell: u and v are then one choice of many."""
        return self.gap < max(NEAR_TIE, 10.0 * self.residual)


def leading_triplet(matrix: torch.Tensor, tolerance: float = 1e-6, start: np.ndarray | None = None, max_steps: int = MAX_STEPS) -> Leading:
    """The top singular triplet of `matrix`, float64 [O, I], to a residual of at most `tolerance`.

    Args:
        matrix: on any device; it is not changed.
        tolerance: largest residual, relative to sigma_1.
        start: a guess of v [I], for example the previous checkpoint's; None: random.
        max_steps: steps after which it gives up.

    Raises:
        ExtrapolationError: NaN or infinity in the matrix, or no convergence within `max_steps`.
    """
    out_features, in_features = matrix.shape
    size = float(torch.linalg.vector_norm(matrix))
    if not np.isfinite(size):
        raise ExtrapolationError("A delta holds NaN or infinity: training has diverged, or a file is damaged.")
    if size <= FLAT:
        return Leading(Triplet(0.0, np.zeros(out_features, np.float32), np.zeros(in_features, np.float32)), 0.0, 1.0, 0)
    right = _first(matrix, start)
    left = _products(matrix, right)
    back = _products(matrix.T, left)
    for step in range(1, max_steps + 1):
        squares, mixing = torch.linalg.eigh(left @ left.T)
        best = mixing.flip(1).T
        top = squares[-1].clamp(min=FLAT)
        residuals = best[:BLOCK] @ back - squares.flip(0)[:BLOCK, None] * (best[:BLOCK] @ right)
        residual = float(torch.linalg.vector_norm(residuals[0]) / top)
        if residual <= tolerance:
            return _finished(best, squares, left, right, residual, step)
        if len(right) + BLOCK > BASIS:
            right, left, back = (best[:KEPT] @ part for part in (right, left, back))
        new = _orthogonal(residuals / top, right)
        if len(new) == 0:
            return _finished(best, squares, left, right, residual, step)
        forward = _products(matrix, new)
        right, left, back = torch.cat([right, new]), torch.cat([left, forward]), torch.cat([back, _products(matrix.T, forward)])
    raise ExtrapolationError(
        f"The top singular triplet of a {out_features} x {in_features} delta did not converge: after {max_steps} steps the residual is "
        f"{residual:.1e} of sigma_1, asked for is {tolerance:.1e}. Its spectrum is flat; ask for less accuracy."
    )


def _first(matrix: torch.Tensor, start: np.ndarray | None) -> torch.Tensor:
    """An orthonormal block [M, I] that holds the guess, and random vectors that no delta is orthogonal to."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((BLOCK, matrix.shape[1]), dtype=torch.float64, generator=generator)
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if start is not None and np.any(start):
        rows[0] = torch.from_numpy(start.astype(np.float64))
    rows = rows.to(matrix.device)
    return _orthogonal(rows, rows[:0])


def _orthogonal(rows: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Gram-Schmidt, twice, of each row against the basis and the rows before it; rows with nothing new are left out."""
    kept = basis
    for row in rows:
        length = torch.linalg.vector_norm(row)
        if length <= BREAKDOWN or len(kept) == len(row):
            continue
        row = row / length
        for _ in range(2):
            row = row - (kept @ row) @ kept
        left_over = torch.linalg.vector_norm(row)
        if left_over > BREAKDOWN / length:
            row = row / left_over
            row = row - (kept @ row) @ kept
            kept = torch.cat([kept, (row / torch.linalg.vector_norm(row))[None]])
    return kept[len(basis) :]


def _products(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """matrix @ row for each row; one by one on the CPU, where thin products of matrices are slower than these."""
    if matrix.device.type == "cpu":
        return torch.stack([torch.mv(matrix, row) for row in rows])
    return (matrix @ rows.T).T


def _finished(best: torch.Tensor, squares: torch.Tensor, left: torch.Tensor, right: torch.Tensor, residual: float, step: int) -> Leading:
    sigma = squares[-1].clamp(min=FLAT).sqrt()
    second = squares[-2].clamp(min=0.0).sqrt() if len(squares) > 1 else torch.zeros_like(sigma)
    u, v = best[0] @ left / sigma, best[0] @ right
    triplet = Triplet(float(sigma), u.float().cpu().numpy(), v.float().cpu().numpy())
    return Leading(triplet, residual, float(1.0 - second / sigma), step)
