"""Singular values and top triplet of a LoRA delta from its factors: no dense matrix, no cancellation.

Shape legend: O/I out/in features, Q rank of the stacked factors (at most 2R), N modules of one shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from next_ray.delta.sharding import GRAM_BATCH_BYTES
from next_ray.types import LoraFactors, Triplet

GRAM_TOLERANCE = 1e-9
"""Relative residual above which the Gram path hands a module to the QR path."""

FLAT = 1e-300
"""Below this a delta counts as zero: it has no direction."""


@dataclass(frozen=True)
class FactorPair:
    """A delta as `left @ right`, float64 [O, Q] and [Q, I], the LoRA scale folded into `left`."""

    left: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class Spectrum:
    """All singular values of a delta (float64, descending, padded with zeros to Q) and its top triplet."""

    singular_values: np.ndarray
    top: Triplet

    @property
    def energy(self) -> float:
        """sigma_1 / sum(sigma), the paper's energy ratio; 0 for a zero delta."""
        total = float(self.singular_values.sum())
        return float(self.singular_values[0] / total) if total > FLAT else 0.0

    @property
    def frobenius_energy(self) -> float:
        """sigma_1^2 / |D|_F^2; 0 for a zero delta."""
        largest = float(self.singular_values[0])
        return float(1.0 / np.sum((self.singular_values / largest) ** 2)) if largest > FLAT else 0.0


def from_base(factors: LoraFactors) -> FactorPair:
    """W_i - W_0: the adapter's own product, since the base is the zero adapter whatever its A was."""
    return FactorPair(left=factors.b.astype(np.float64) * factors.scale, right=factors.a.astype(np.float64))


def difference(later: LoraFactors, earlier: LoraFactors) -> FactorPair:
    """W_i - W_j as `[L_i - L_j | L_j] @ [A_i ; A_i - A_j]` with L = scale * B, upcast to float64 before subtracting.

    The small differences are formed on the factors, where they are exact, and never on the products. Adapters of different
    rank are padded with zeros, of different scale folded.
    """
    i, j = from_base(later), from_base(earlier)
    rank = max(i.left.shape[1], j.left.shape[1])
    i, j = _padded(i, rank), _padded(j, rank)
    return FactorPair(left=np.hstack([i.left - j.left, j.left]), right=np.vstack([i.right, i.right - j.right]))


def _padded(pair: FactorPair, rank: int) -> FactorPair:
    missing = rank - pair.left.shape[1]
    if missing == 0:
        return pair
    return FactorPair(left=np.pad(pair.left, ((0, 0), (0, missing))), right=np.pad(pair.right, ((0, missing), (0, 0))))


def spectrum(pair: FactorPair) -> Spectrum:
    """QR of both factors, SVD of the Q x Q core, all float64: accurate to about 1e-14 of sigma_1."""
    q_left, r_left = np.linalg.qr(pair.left)
    q_right, r_right = np.linalg.qr(pair.right.T)
    x, sigma, y_t = np.linalg.svd(r_left @ r_right.T)
    values = np.pad(sigma, (0, pair.left.shape[1] - len(sigma)))
    return Spectrum(values, _triplet(values[0], q_left @ x[:, 0], q_right @ y_t[0]))


def spectra(pairs: Mapping[str, FactorPair]) -> dict[str, Spectrum]:
    """The spectra of many deltas: modules of one shape together by Gram matrices, each result checked, QR where it fails.

    A module falls back to `spectrum` when its Gram triplet misses |u| = 1 or D^T u = sigma v by more than `GRAM_TOLERANCE`
    (heavy cancellation between the blocks). Singular values below about 1e-8 of sigma_1 are noise on the Gram path.
    """
    shapes: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for name, pair in pairs.items():
        shapes[(pair.left.shape[0], pair.right.shape[1], pair.left.shape[1])].append(name)
    result: dict[str, Spectrum] = {}
    for (out_features, in_features, rank), names in shapes.items():
        batch = max(1, GRAM_BATCH_BYTES // (8 * rank * (out_features + in_features)))
        for start in range(0, len(names), batch):
            chunk = names[start : start + batch]
            found = _gram_spectra([pairs[name] for name in chunk])
            result |= {name: gram if gram is not None else spectrum(pairs[name]) for name, gram in zip(chunk, found, strict=True)}
    return {name: result[name] for name in pairs}


def _gram_spectra(pairs: list[FactorPair]) -> list[Spectrum | None]:
    """Per pair the spectrum from K = G_L^1/2 G_R G_L^1/2 (K's eigenvalues are sigma^2), or None where it is not accurate."""
    left = np.stack([pair.left for pair in pairs])
    right = np.stack([pair.right for pair in pairs])
    left_t, right_t = left.transpose(0, 2, 1), right.transpose(0, 2, 1)
    size, basis = np.linalg.eigh(left_t @ left)
    root = (basis * np.sqrt(np.maximum(size, 0.0))[:, None, :]) @ basis.transpose(0, 2, 1)
    squares, vectors = np.linalg.eigh(root @ (right @ right_t) @ root)
    sigma = np.sqrt(np.maximum(squares[:, ::-1], 0.0))
    largest = np.maximum(sigma[:, :1], FLAT)
    v = (right_t @ (root @ vectors[:, :, -1:]))[:, :, 0] / largest
    u = (left @ (right @ v[:, :, None]))[:, :, 0] / largest
    backward = (right_t @ (left_t @ u[:, :, None]))[:, :, 0]
    residual = np.linalg.norm(backward / largest - v, axis=1)
    off_unit = np.abs(np.linalg.norm(u, axis=1) - 1.0) + np.abs(np.linalg.norm(v, axis=1) - 1.0)
    good = np.maximum(residual, off_unit) <= GRAM_TOLERANCE
    return [Spectrum(sigma[n], _triplet(sigma[n, 0], u[n], v[n])) if good[n] else None for n in range(len(pairs))]


def _triplet(sigma: float, u: np.ndarray, v: np.ndarray) -> Triplet:
    if sigma <= FLAT:
        return Triplet(0.0, np.zeros(len(u), dtype=np.float32), np.zeros(len(v), dtype=np.float32))
    return Triplet(float(sigma), u.astype(np.float32), v.astype(np.float32))
