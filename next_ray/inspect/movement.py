"""How the weights moved: inner products of the steps between checkpoints, and what follows from them.

Lengths of small differences between large deltas are never taken from the deltas' own inner products, where they would cancel.

Shape legend: K checkpoints, R largest rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from next_ray.delta.history import FactorHistory, ModuleHistory
from next_ray.types import LoraFactors


@dataclass(frozen=True)
class Movement:
    """`gram[i, j]` = <S_{i+1}, S_{j+1}>_F of the steps S_t = W_t - W_{t-1}, float64 [K, K].

    The Gram matrices of modules add up to the one of all of them together.
    """

    gram: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """|S_t|_F, float64 [K]."""
        return np.sqrt(np.maximum(np.diag(self.gram), 0.0))

    def square_distance(self, later: int, earlier: int = 0) -> float:
        """|W_later - W_earlier|_F^2; index 0 is the base."""
        return max(float(self.gram[earlier:later, earlier:later].sum()), 0.0)

    @property
    def square_norms(self) -> np.ndarray:
        """|W_t - W_0|_F^2, float64 [K]."""
        return np.array([self.square_distance(t) for t in range(1, len(self.gram) + 1)])

    @property
    def straightness(self) -> float | None:
        """|W_K - W_0|_F over the length of the path: 1 on a straight line, on a random walk `walk_straightness`; None: no movement."""
        path = float(self.lengths.sum())
        return self.square_distance(len(self.gram)) ** 0.5 / path if path > 0 else None

    @property
    def turns(self) -> list[float | None]:
        """Cosine between successive steps, K - 1 of them; None where one of the two is zero."""
        lengths = self.lengths
        products = np.diag(self.gram, 1)
        return [
            float(np.clip(p / (a * b), -1.0, 1.0)) if a > 0 and b > 0 else None
            for p, a, b in zip(products, lengths[:-1], lengths[1:], strict=True)
        ]

    def recent_speed(self, horizon: int, steps: Sequence[int]) -> float | None:
        """Displacement over the last `horizon` checkpoints over the path's length, both a training step; None: no movement.

        `steps` are the training steps of the checkpoints [K]; the first may be far from the base.
        """
        count, path = len(self.gram), float(self.lengths.sum())
        earlier = steps[count - 1 - horizon] if horizon < count else 0
        share = (steps[-1] - earlier) / steps[-1] if steps[-1] else 1.0
        return self.square_distance(count, count - horizon) ** 0.5 / (share * path) if path > 0 else None


def walk_straightness(steps: Sequence[int]) -> float:
    """The straightness of a random walk in many dimensions over these training steps: 1/sqrt(K) where they are even."""
    return float(steps[-1] ** 0.5 / np.sqrt(np.diff(np.asarray(steps, dtype=np.float64), prepend=0.0)).sum()) if steps[-1] else 1.0


def movement(history: ModuleHistory) -> Movement:
    """Of one module: from factors in difference form, else from the inner products of the deltas (whose rounding is 1e-15 of |D|^2)."""
    if not isinstance(history, FactorHistory):
        return Movement(_step_basis(history.gram()))
    return Movement(_factor_steps(history.factors))


def together(movements: list[Movement]) -> Movement:
    """All modules as one vector."""
    return Movement(np.sum([m.gram for m in movements], axis=0))


def _factor_steps(factors: Sequence[LoraFactors]) -> np.ndarray:
    """Inner products of S_t = dL_t A_t + L_{t-1} dA_t, with L = scale * B and L_0 = 0, from two Gram matrices of all differences.

    <P M, Q N>_F = sum((P^T Q) * (M N^T)), and the blocks with L or A in place of a difference are running sums of blocks.
    """
    count, rank = len(factors), max(f.rank for f in factors)
    left = _differences([f.b.astype(np.float64) * f.scale for f in factors], rank)
    right = _differences([f.a.astype(np.float64).T for f in factors], rank)
    dl_dl, da_da = left.reshape(count, rank, count, rank), right.reshape(count, rank, count, rank)
    dl_l = np.cumsum(dl_dl, axis=2) - dl_dl
    l_l = np.cumsum(dl_l, axis=0) - dl_l
    a_da = np.cumsum(da_da, axis=0)
    a_a = np.cumsum(a_da, axis=2)
    mixed = np.einsum("irjs,irjs->ij", dl_l, a_da)
    return np.einsum("irjs,irjs->ij", dl_dl, a_a) + mixed + mixed.T + np.einsum("irjs,irjs->ij", l_l, da_da)


def _differences(matrices: Sequence[np.ndarray], rank: int) -> np.ndarray:
    """Gram matrix [K R, K R] of the first matrix and all later ones less the one before, each padded to R columns."""
    padded = [np.pad(matrix, ((0, 0), (0, rank - matrix.shape[1]))) for matrix in matrices]
    stacked = np.hstack([padded[0], *(later - earlier for earlier, later in pairwise(padded))])
    return stacked.T @ stacked


def _step_basis(gram: np.ndarray) -> np.ndarray:
    padded = np.pad(gram, ((1, 0), (1, 0)))
    return np.diff(np.diff(padded, axis=0), axis=1)
