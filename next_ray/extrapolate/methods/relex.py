"""RELEX: one direction per module over time, its size continued in a straight line.

Shape legend: K = c checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.extrapolate.methods.common import horizon_steps, last, line_weights, require
from next_ray.extrapolate.plan import Fitted, ModulePlan, Needs, Setting


@dataclass(frozen=True)
class Relex:
    """RELEX (arXiv 2605.21468): W_0 + (s t* + b) V, t* = t_c + alpha (t_c - t_{c-k}), V the rank-1 direction of the deltas over time.

    Stacked as rows, the deltas D_1..D_c have the rank-1 approximation a (lambda^1/2 V)^T, with a the first eigenvector of the Gram
    matrix <D_i, D_j>; s and b are the least-squares line of lambda^1/2 a_t over training steps. Since lambda^1/2 V = sum_t a_t D_t,
    the result is W_0 + line(a)(t*) sum_t a_t D_t. The fitted line does not pass through W_c, whence no alpha is neutral.
    """

    name = "relex"
    neutral = None
    forecast = 1.0
    alphas = (0.5, 1.0, 1.5)

    def needs(self, horizon: int) -> Needs:
        """Two points make a line, and a horizon must have been seen."""
        return Needs(max(2, horizon))

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """One eigenvector [K] per module."""
        require(self, trajectory, setting)
        times = np.array(trajectory.steps, dtype=np.float64)
        reach = horizon_steps(trajectory, setting.horizon)
        directions = {name: leading_direction(module.gram()) for name, module in trajectory.modules.items()}

        def at(alpha: float) -> dict[str, ModulePlan]:
            line = line_weights(times, times[-1] + alpha * reach)
            return {name: ModulePlan(float(line @ a) * a if a.any() else last(trajectory)) for name, a in directions.items()}

        return Fitted(at)


def leading_direction(gram: np.ndarray) -> np.ndarray:
    """The unit eigenvector [K] of the largest eigenvalue of a Gram matrix, in any sign; zeros for zero deltas."""
    size, vectors = np.linalg.eigh(gram)
    return vectors[:, -1] if size[-1] > 0.0 else np.zeros(len(gram))
