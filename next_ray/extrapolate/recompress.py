"""An adapter of another rank as an adapter of the rank that training has, exact up to the truncation.

Shape legend: O/I out/in features, Q rank of the given factors, R rank wanted, N directions kept (N <= R).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from next_ray.errors import ExtrapolationError
from next_ray.types import Adapter, LoraFactors

RANK_TOLERANCE = 1e-13
"""Singular values below this share of the largest are rounding noise of the float64 factorization."""

GAUGE_FLOOR = 0.25
"""A row direction of the new A is no shorter than this share of the anchor's root-mean-square singular value ..."""

GAUGE_FLOOR_LOWEST = 0.01
"""... unless the anchor itself is thinner than that somewhere; then the anchor's own thinnest, but not below this share."""


@dataclass(frozen=True)
class Recompressed:
    """An adapter at the wanted rank and sqrt(sum of dropped sigma^2 / sum of sigma^2) over all its modules."""

    adapter: dict[str, LoraFactors]
    truncation_error: float


@dataclass(frozen=True)
class ThinSvd:
    """left @ right = u @ diag(sigma) @ v.T with u [O, N], sigma [N] descending, v [I, N], float64."""

    u: np.ndarray
    sigma: np.ndarray
    v: np.ndarray


def thin_svd(left: np.ndarray, right: np.ndarray) -> ThinSvd:
    """The SVD of `left @ right` ([O, Q] @ [Q, I]) from two QR factorizations and a Q x Q SVD, in float64; N <= Q."""
    q_left, r_left = np.linalg.qr(np.asarray(left, dtype=np.float64))
    q_right, r_right = np.linalg.qr(np.asarray(right, dtype=np.float64).T)
    u, sigma, v_t = np.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return ThinSvd(u=q_left @ u, sigma=sigma, v=q_right @ v_t.T)


def recompress(adapter: Adapter, rank: int, anchor: Adapter | None = None) -> Recompressed:
    """Bring every module to `rank`: the best approximation there is (Eckart-Young), exact where the delta's rank allows it.

    Args:
        adapter: factors of any rank and scale, b [O, Q] and a [Q, I].
        rank: the rank R of the result, which is float32: a [R, I], b [O, R].
        anchor: the adapter training currently has, same modules and rank. `scale * b @ a` leaves an invertible R x R gauge
            open; with an anchor it is chosen such that the new `a` is as near to the anchor's as it can be, because LoRA
            learns at a speed set by |a| and |b|: a balanced split would shrink `a` and slow training down after a jump.
            The result has the anchor's scale. Without one the split is balanced and each module keeps its own scale.

    Raises:
        ExtrapolationError: the anchor has other modules, shapes or rank, a scale is not positive, or a factor is not finite.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if anchor is not None and set(anchor) != set(adapter):
        odd = sorted(set(anchor) ^ set(adapter))
        raise ExtrapolationError(f"Recompression needs an anchor with the same modules; only one of the two has {odd[:3]}.")
    stacked = {name: (np.asarray(f.b, dtype=np.float64) * f.scale, np.asarray(f.a, dtype=np.float64)) for name, f in adapter.items()}
    scales = {name: f.scale for name, f in adapter.items()}
    return recompress_products(stacked, scales, rank, anchor)


def recompress_products(
    products: dict[str, tuple[np.ndarray, np.ndarray]], scales: dict[str, float], rank: int, anchor: Adapter | None
) -> Recompressed:
    """`recompress` for deltas given as float64 factors `left @ right` ([O, Q], [Q, I], scale folded in)."""
    result: dict[str, LoraFactors] = {}
    kept_energy = dropped_energy = 0.0
    for name, (left, right) in products.items():
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            raise ExtrapolationError(f"Module {name!r} holds NaN or infinity; the adapter cannot be recompressed. Check the checkpoint.")
        svd = thin_svd(left, right)
        dropped_energy += float(np.sum(svd.sigma[rank:] ** 2))
        svd = ThinSvd(svd.u[:, :rank], svd.sigma[:rank], svd.v[:, :rank])
        kept_energy += float(np.sum(svd.sigma**2))
        if anchor is None:
            result[name] = _balanced(svd, rank, _positive(scales[name], name))
        else:
            result[name] = _anchored(svd, rank, anchor[name], name)
    total = kept_energy + dropped_energy
    return Recompressed(adapter=result, truncation_error=float(np.sqrt(dropped_energy / total)) if total > 0 else 0.0)


def _balanced(svd: ThinSvd, rank: int, scale: float) -> LoraFactors:
    root = np.sqrt(svd.sigma / scale)
    missing = rank - len(root)
    a = np.pad(root[:, None] * svd.v.T, ((0, missing), (0, 0)))
    b = np.pad(svd.u * root, ((0, 0), (0, missing)))
    return LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32), scale=scale)


def _anchored(svd: ThinSvd, rank: int, anchor: LoraFactors, name: str) -> LoraFactors:
    """A' = M V^T and B' = U S M^+ with M = A_c V: the projection of the anchor's A onto the row space the delta needs.

    Where the delta needs fewer than R directions, the rest of the row space is taken from the anchor too, so that
    `recompress(x, rank, anchor=x)` gives x back, B = 0 included. M has full column rank, hence M^+ M = I and the product is exact.
    """
    scale = _positive(anchor.scale, name)
    if anchor.a.shape != (rank, svd.v.shape[0]) or anchor.b.shape != (svd.u.shape[0], rank):
        raise ExtrapolationError(
            f"Module {name!r}: the anchor has a {anchor.a.shape} and b {anchor.b.shape}, but rank {rank} of a "
            f"{svd.u.shape[0]} x {svd.v.shape[0]} delta is asked for. Use the adapter that training has, at its own rank."
        )
    a_c = anchor.a.astype(np.float64)
    spectrum = np.linalg.svd(a_c, compute_uv=False)
    rms = float(np.sqrt(np.mean(spectrum**2)))
    if rms == 0.0:
        return _balanced(svd, rank, scale)
    needed = svd.sigma > RANK_TOLERANCE * svd.sigma[0]
    u, sigma, v = svd.u[:, needed], svd.sigma[needed], svd.v[:, needed]
    v = np.hstack([v, _rest_of_row_space(a_c, v, rank - v.shape[1], RANK_TOLERANCE * spectrum[0])])
    x, length, y_t = np.linalg.svd(a_c @ v, full_matrices=False)
    floor = np.clip(spectrum[-1], GAUGE_FLOOR_LOWEST * rms, GAUGE_FLOOR * rms)
    length = np.maximum(length, floor)
    a = (x * length) @ y_t @ v.T
    inverse = (y_t.T / length) @ x.T
    b = (u * (sigma / scale)) @ inverse[: len(sigma)]
    return LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32), scale=scale)


def _rest_of_row_space(a_c: np.ndarray, v: np.ndarray, count: int, tolerance: float) -> np.ndarray:
    """At most `count` orthonormal directions [I, count] that hold most of the rows of `a_c` outside span(v)."""
    residual = a_c - (a_c @ v) @ v.T
    residual -= (residual @ v) @ v.T
    _, size, directions = np.linalg.svd(residual, full_matrices=False)
    return directions[: min(count, int(np.sum(size > tolerance)))].T


def _positive(scale: float, name: str) -> float:
    if not (np.isfinite(scale) and scale > 0):
        raise ExtrapolationError(f"Module {name!r} has LoRA scale {scale}; a positive, finite alpha / rank is needed.")
    return float(scale)
