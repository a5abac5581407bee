"""How the weights moved: inner products of the steps between checkpoints, and what follows from them.

Lengths of small differences between large deltas are never taken from the deltas' own inner products, where they would cancel.

Shape legend: K checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from next_ray.delta.factors import difference, from_base
from next_ray.delta.history import FactorHistory, ModuleHistory


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
        """|W_K - W_0|_F over the length of the path: 1 on a straight line, about 1/sqrt(K) on a random walk; None: no movement."""
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

    def recent_speed(self, horizon: int) -> float | None:
        """Displacement over the last `horizon` checkpoints, a checkpoint, over the mean step of the path; None: no movement."""
        count = len(self.gram)
        mean = float(self.lengths.mean())
        recent = self.square_distance(count, count - horizon) ** 0.5 / horizon
        return recent / mean if mean > 0 else None


def movement(history: ModuleHistory) -> Movement:
    """Of one module: from factors in difference form, else from the inner products of the deltas (whose rounding is 1e-15 of |D|^2)."""
    if not isinstance(history, FactorHistory):
        return Movement(_step_basis(history.gram()))
    count = history.num_checkpoints
    pairs = [from_base(history.factors[0])]
    pairs += [difference(history.factors[t], history.factors[t - 1]) for t in range(1, count)]
    gram = np.empty((count, count))
    for i in range(count):
        for j in range(i + 1):
            gram[i, j] = gram[j, i] = np.sum((pairs[i].left.T @ pairs[j].left) * (pairs[i].right @ pairs[j].right.T))
    return Movement(gram)


def together(movements: list[Movement]) -> Movement:
    """All modules as one vector."""
    return Movement(np.sum([m.gram for m in movements], axis=0))


def _step_basis(gram: np.ndarray) -> np.ndarray:
    padded = np.pad(gram, ((1, 0), (1, 0)))
    return np.diff(np.diff(padded, axis=0), axis=1)
