"""A module along a trajectory of full weight matrices, streamed: at most two of them are held beside what is being computed.

Memory is counted in float32 matrices of the module: a float64 delta is two, a loaded checkpoint one. No method needs more than four.

Shape legend: O/I out/in features, K checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from next_ray.delta.gauge import align
from next_ray.delta.leading import Leading, leading_triplet
from next_ray.types import ModuleTriplets, Triplet

CHUNK = 2**19
"""Entries of a matrix that are worked on in float64 at a time."""


class Matrices(Protocol):
    """One module's weights at every checkpoint, read when they are asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        ...

    def load(self, index: int) -> np.ndarray:
        """The weights of checkpoint `index`, float32 [O, I]; 0 is the base. The caller may write to the array."""
        ...


@dataclass(frozen=True)
class DenseHistory:
    """`ModuleHistory` of full matrices. Differences are formed in float64, from weights of any precision.

    Args:
        source: reads the weights.
        num_checkpoints: K.
        tolerance: largest relative residual of a triplet.
        device: where torch computes.
    """

    source: Matrices
    num_checkpoints: int
    tolerance: float = 1e-6
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.source.shape

    def combine(self, weights: np.ndarray) -> np.ndarray:
        """sum_t w_t (W_t - W_0), float64 [O, I], base and one checkpoint in memory; exactly 0 where nothing moved."""
        if len(weights) != self.num_checkpoints:
            raise ValueError(f"{self.num_checkpoints} checkpoints need as many weights, got {len(weights)}")
        result = np.zeros(self.shape)
        used = [(index, float(weight)) for index, weight in enumerate(weights, start=1) if weight != 0.0]
        base = self.source.load(0) if used else result
        for index, weight in used:
            _add(result, weight, self.source.load(index), base)
        return result

    def gram(self) -> np.ndarray:
        """<D_i, D_j>_F, float64 [K, K]. Two deltas (rounded once to float32) are held and the later weights stream by.

        About K^2 / 4 + 2 K matrices are read. <D_i, D_j> is taken as <D_i, W_j> - <D_i, W_0> in float64: its error is
        1e-16 |D_i| |W|.
        """
        count = self.num_checkpoints
        result = np.zeros((count, count))
        for first in range(1, count + 1, 2):
            held = range(first, min(first + 2, count + 1))
            deltas = [self._rounded(index) for index in held]
            for i, left in zip(held, deltas, strict=True):
                for j, right in zip(held, deltas, strict=True):
                    if j >= i:
                        result[i - 1, j - 1] = _inner(left, right)
            if first + 2 <= count:
                base = self.source.load(0)
                offsets = [_inner(delta, base) for delta in deltas]
                del base
                for later in range(first + 2, count + 1):
                    weights = self.source.load(later)
                    for i, delta, offset in zip(held, deltas, offsets, strict=True):
                        result[i - 1, later - 1] = _inner(delta, weights) - offset
                    del weights
            del deltas
        return np.triu(result) + np.triu(result, 1).T

    def leading(self, later: int, earlier: int = 0, start: np.ndarray | None = None) -> Leading:
        """The top triplet of W_later - W_earlier with its residual, its gap and the flag of a near tie; `start` guesses v."""
        delta = torch.from_numpy(self._delta(later, earlier)).to(self.device)
        return leading_triplet(delta, self.tolerance, start)

    def top(self, later: int, earlier: int = 0) -> Triplet:
        """The top triplet to a residual of `tolerance`; raises `ExtrapolationError` when it does not converge."""
        return self.leading(later, earlier).triplet

    def singular_values(self, later: int, earlier: int = 0) -> np.ndarray:
        """All min(O, I), float64 descending, by a values-only SVD in float64."""
        return torch.linalg.svdvals(torch.from_numpy(self._delta(later, earlier)).to(self.device)).cpu().numpy()

    def row_norms(self, index: int) -> np.ndarray:
        """|row|_2 of D_index, float64 [O]."""
        delta = self._rounded(index)
        return np.concatenate([np.linalg.norm(rows.astype(np.float64), axis=1) for rows in _chunks(delta)])

    def triplets(self, horizon: int) -> list[ModuleTriplets]:
        """G_i, L_i and T_{i-k}, each warm-started from the previous one of its kind; signs aligned as `DeltaWindow` has them.

        `energy` is NaN, since it needs every singular value: see `singular_values`. `frobenius_energy` is exact.
        """
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        result: list[ModuleTriplets] = []
        for i in range(1, self.num_checkpoints + 1):
            result.append(self.triplets_at(i, horizon, result[-1] if i > 1 else None, result[i - horizon - 1] if i > horizon else None))
        return result

    def triplets_at(self, i: int, horizon: int, before: ModuleTriplets | None, origin: ModuleTriplets | None) -> ModuleTriplets:
        """The triplets of checkpoint i: `before` are those of i - 1 (None for the first), `origin` those of i - k (None while i <= k)."""
        delta = self._delta(i, 0)
        norm = float(np.linalg.norm(delta))
        found = leading_triplet(torch.from_numpy(delta).to(self.device), self.tolerance, before and before.global_.v).triplet
        del delta
        global_ = align(found, before.global_ if before else None)
        local = align(self.leading(i, i - 1, before.local.v).triplet, global_) if before else global_
        target = None
        if origin is not None:
            guess = before.target.v if before and before.target else local.v
            found = local if horizon == 1 else self.leading(i, i - horizon, guess).triplet
            target = align(found, origin.global_)
        share = (global_.sigma / norm) ** 2 if norm > 0.0 else 0.0
        return ModuleTriplets(global_, local, target, float("nan"), share)

    def truncated(self, num_checkpoints: int) -> DenseHistory:
        """The first checkpoints alone."""
        return replace(self, num_checkpoints=num_checkpoints)

    def _delta(self, later: int, earlier: int) -> np.ndarray:
        """W_later - W_earlier, float64."""
        result = self.source.load(later).astype(np.float64)
        np.subtract(result, self.source.load(earlier), out=result)
        return result

    def _rounded(self, index: int) -> np.ndarray:
        """D_index, float32: the exact difference rounded once."""
        result = self.source.load(index)
        return np.subtract(result, self.source.load(0), out=result)


def _chunks(matrix: np.ndarray) -> list[np.ndarray]:
    rows = max(1, CHUNK // matrix.shape[1])
    return [matrix[start : start + rows] for start in range(0, len(matrix), rows)]


def _add(total: np.ndarray, weight: float, matrix: np.ndarray, base: np.ndarray) -> None:
    """total += weight * (matrix - base), in float64."""
    for target, source, zero in zip(_chunks(total), _chunks(matrix), _chunks(base), strict=True):
        target += weight * np.subtract(source, zero, dtype=np.float64)


def _inner(left: np.ndarray, right: np.ndarray) -> float:
    """<left, right>_F of float32 matrices, in float64."""
    return float(sum(np.vdot(x.astype(np.float64), y.astype(np.float64)) for x, y in zip(_chunks(left), _chunks(right), strict=True)))
