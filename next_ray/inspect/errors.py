"""|W_hat - W_c|_F of a plan against a checkpoint that its method has not seen, without forming matrices for adapters.

The sum over checkpoints in a plan is rewritten as a sum over steps S_t = W_t - W_{t-1}, whose inner products are known (`Movement`):
weights h on D_t become s_j = sum_{t >= j} h_t on S_j, and |sum_j s_j S_j|^2 = s^T H s. So every linear method costs K^2 numbers for
any alpha. Rank-1 terms add u^T (sum_t h_t D_t) v.

Shape legend: O/I out/in features, K checkpoints, Q rank of stacked factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from next_ray.delta.factors import FactorPair
from next_ray.delta.history import Delta, ModuleHistory
from next_ray.extrapolate.plan import ModulePlan, realize
from next_ray.inspect.movement import Movement
from next_ray.types import Triplet


class ModuleErrors:
    """One module of the whole trajectory, to score plans that were made on a truncated one."""

    def __init__(self, history: ModuleHistory, movement: Movement) -> None:
        self._history, self._movement = history, movement
        self._last: tuple[bytes, Delta] | None = None

    def square(self, plan: ModulePlan, target: int) -> float:
        """|W_hat - W_target|_F^2; of a plan that drops entries at random the mean over the masks.

        Of a random mask X' with mean X: E|X' - Y|^2 = |X - Y|^2 + p / (1 - p) |X|^2 (entry-wise variance of an inverted dropout).
        """
        weights = np.pad(plan.weights, (0, self._history.num_checkpoints - len(plan.weights)))
        unit = np.eye(len(weights))[target - 1]
        if plan.row_scale is None:
            square, size = self._sum(weights - unit, plan.triplets), 0.0
            if plan.drop is not None:
                size = self._sum(weights, plan.triplets)
        else:
            scaled = realize(ModulePlan(weights, plan.triplets, plan.row_scale), self._history)
            square, size = _square(_minus(scaled, self._history.combine(unit))), _square(scaled)
        if plan.drop is None:
            return square
        return square + plan.drop.probability / (1.0 - plan.drop.probability) * size

    def _sum(self, weights: np.ndarray, triplets: Sequence[Triplet]) -> float:
        """|sum_t weights_t D_t + sum_n sigma_n u_n v_n^T|_F^2."""
        steps = np.cumsum(weights[::-1])[::-1]
        square = float(steps @ self._movement.gram @ steps)
        if triplets:
            sigma = np.array([t.sigma for t in triplets])
            u = np.stack([t.u for t in triplets], axis=1).astype(np.float64)
            v = np.stack([t.v for t in triplets], axis=1).astype(np.float64)
            square += float(sigma @ ((u.T @ u) * (v.T @ v)) @ sigma) + 2.0 * float(sigma @ self._along(weights, u, v))
        return max(square, 0.0)

    def _along(self, weights: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """u_n^T (sum_t weights_t D_t) v_n. The sum is kept for the next alpha, which mostly has the same weights."""
        key = weights.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = None
            self._last = (key, self._history.combine(weights))
        delta = self._last[1]
        product = (u.T @ delta.left) @ delta.right if isinstance(delta, FactorPair) else u.T @ delta
        return np.sum(product * v.T, axis=1)

    def release(self) -> None:
        """Forget the kept sum."""
        self._last = None


def _minus(x: Delta, y: Delta) -> Delta:
    if isinstance(x, FactorPair) and isinstance(y, FactorPair):
        return FactorPair(np.hstack([x.left, -y.left]), np.vstack([x.right, y.right]))
    assert not isinstance(x, FactorPair) and not isinstance(y, FactorPair)
    return x - y


def _square(x: Delta) -> float:
    """|x|_F^2; through QR for factors, because their Gram matrices would cancel."""
    if isinstance(x, FactorPair):
        core = np.linalg.qr(x.left).R @ np.linalg.qr(x.right.T).R.T
        return float(np.sum(core**2))
    return float(np.sum(x**2))
