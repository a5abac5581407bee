"""Top triplets of many small deltas at once, from the Gram matrices of their factors: the R x R part of `trajectory_triplets.py`.

Shape legend: K checkpoints, R rank, N a long side (O or I), S deltas, Q rank of a stacked pair (R or 2R).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from next_ray.delta.factors import FLAT

CANCELLATION = 1e-8
"""A delta whose sigma_1^2 is a smaller share of the largest |L|^2 |R|^2 is computed from subtracted factors."""

VALUE_NOISE = 1e-7
"""Singular values below this share of sigma_1 are noise on the Gram path: the energies of such a delta come from QR."""

JITTER = 1e-14
"""Added to a Gram matrix of largest diagonal entry 1, so that Cholesky takes singular ones: the size of its rounding errors."""

BLOCK = 8
"""Columns of the subspace iteration on a core."""

CORE_TOLERANCE = 1e-12
"""Relative residual at which an eigenvector of a core is good."""

CORE_ROUNDS = 10
"""Rounds of subspace iteration before a core that has not converged gets a full eigendecomposition."""


@dataclass(frozen=True)
class Core:
    """Top triplets in coordinates: v = right^T x and u = left y, both of length 1; `right` is the Gram matrix of the right factors.

    right [S, Q, Q], x and y [S, Q], `trusted` bool [S].
    """

    right: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    trusted: torch.Tensor


def products(rows: torch.Tensor, offsets: Sequence[int]) -> dict[int, torch.Tensor]:
    """Offset m -> F_i F_{i-m}^T for i = m..K-1, [K - m, R, R]; `rows` [K, R, N], contiguous. Offsets 0 and 1 are
    always among them where there are two checkpoints.

    They come from one product with [F_{i-1} ; F_i], which lie behind each other: wider products are faster.
    """
    count, rank, size = rows.shape
    first = torch.bmm(rows[:1], rows[:1].mT)
    if count == 1:
        return {0: first}
    found = {m: torch.bmm(rows[m:], rows[: count - m].mT) for m in offsets if m > 1}
    neighbours = rows.as_strided((count - 1, 2 * rank, size), (rank * size, size, 1))
    both = torch.bmm(rows[1:], neighbours.mT)
    return found | {0: torch.cat([first, both[:, :, rank:]]), 1: both[:, :, :rank]}


def pair_gram(products: Mapping[int, torch.Tensor], offset: int, sign: float) -> torch.Tensor:
    """Gram matrices of the stacks [F_i ; sign F_{i-m}], [K - m, 2R, 2R]."""
    own, cross = products[0], sign * products[offset]
    upper = torch.cat([own[offset:], cross], dim=2)
    return torch.cat([upper, torch.cat([cross.mT, own[: len(own) - offset]], dim=2)], dim=1)


def global_core(left: torch.Tensor, right: torch.Tensor, counts: Sequence[int]) -> tuple[np.ndarray, Core]:
    """All singular values [K, R] and the top triplets of the G_i; checkpoint i has `counts[i]` values that can differ from zero."""
    size, basis = torch.linalg.eigh(left)
    root = (basis * size.clamp(min=0.0).sqrt()[:, None, :]) @ basis.mT
    squares, vectors = torch.linalg.eigh(root @ right @ root)
    values = squares.flip(1).clamp(min=0.0).sqrt().cpu().numpy()
    for own, count in zip(values, counts, strict=True):
        own[count:] = 0.0
    smallest = np.array([own[count - 1] for own, count in zip(values, counts, strict=True)])
    core = _core(left, right, root @ vectors[:, :, -1:], squares[:, -1])
    resolved = torch.from_numpy(smallest > VALUE_NOISE * values[:, 0]).to(left.device)
    return values, replace(core, trusted=core.trusted & resolved)


def difference_core(left: torch.Tensor, right: torch.Tensor) -> Core:
    """Top triplets of deltas with the given Gram matrices: D^T D has the nonzero eigenvalues of C^T right C with C C^T = left."""
    size = left.diagonal(dim1=1, dim2=2).amax(1).clamp(min=FLAT)[:, None, None]
    jitter = JITTER * torch.eye(left.shape[1], dtype=left.dtype, device=left.device)
    root, failed = torch.linalg.cholesky_ex(left / size + jitter)
    root = root * size.sqrt()
    kernel = root.mT @ right @ root
    kernel[failed > 0] = 0.0
    vectors = _leading(kernel)
    squares = (vectors.mT @ kernel @ vectors)[:, 0, 0]
    core = _core(left, right, root @ vectors, squares)
    return replace(core, trusted=core.trusted & (failed == 0))


def _core(left: torch.Tensor, right: torch.Tensor, start: torch.Tensor, squares: torch.Tensor) -> Core:
    """The coordinates from C z [S, Q, 1] and sigma^2 [S], where C z is sigma x."""
    sigma = squares.clamp(min=FLAT).sqrt()[:, None, None]
    x = start / sigma
    largest = left.diagonal(dim1=1, dim2=2).amax(1) * right.diagonal(dim1=1, dim2=2).amax(1)
    return Core(right, x[:, :, 0], (right @ x / sigma)[:, :, 0], squares > CANCELLATION * largest)


def _leading(kernel: torch.Tensor) -> torch.Tensor:
    """Eigenvectors of the largest eigenvalue of symmetric positive semidefinite matrices [S, Q, Q], as [S, Q, 1].

    Subspace iteration with Rayleigh-Ritz; the matrix it multiplies with is squared every round, so that the number of rounds grows
    with the logarithm of 1 / log(sigma_1 / sigma_{BLOCK + 1}). What has not converged after `CORE_ROUNDS` is decomposed fully.
    """
    count, size, _ = kernel.shape
    block = min(BLOCK, size)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((size, block), dtype=kernel.dtype, generator=generator).to(kernel.device)
    result = torch.zeros((count, size, 1), dtype=kernel.dtype, device=kernel.device)
    kernel = kernel / kernel.diagonal(dim1=1, dim2=2).sum(1).clamp(min=FLAT)[:, None, None]
    power, basis, open_ = kernel, start.expand(count, size, block), torch.arange(count, device=kernel.device)
    for _ in range(CORE_ROUNDS):
        basis = torch.linalg.qr(power @ (power @ basis))[0]
        image = kernel @ basis
        values, mixing = torch.linalg.eigh(basis.mT @ image)
        basis, image, value = basis @ mixing, image @ mixing[:, :, -1:], values[:, -1, None, None]
        top = basis[:, :, -1:]
        result[open_] = top
        missed = torch.linalg.vector_norm(image - value * top, dim=(1, 2)) > CORE_TOLERANCE * value[:, 0, 0]
        if not missed.any():
            return result
        open_, kernel, power, basis = open_[missed], kernel[missed], power[missed], basis[missed]
        power = power @ power
        power = power / power.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    result[open_] = torch.linalg.eigh(kernel)[1][:, :, -1:]
    return result
