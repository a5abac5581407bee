"""AlphaRL: the top singular direction of the delta, continued until it should reach a wished accuracy; and its rank-1 models.

Shape legend: O out features, K = c checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from next_ray.delta.gauge import chained
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.methods.common import check, horizon_steps, last, line_weights, require
from next_ray.extrapolate.plan import Fitted, ModulePlan, Needs, Setting
from next_ray.types import Triplet


@dataclass(frozen=True)
class PlsLine:
    """x_hat(y) = start + y * slope: partial least squares of x on y with one component, solved for x. Float64 [O] both."""

    start: np.ndarray
    slope: np.ndarray


def pls_line(x: np.ndarray, y: np.ndarray) -> PlsLine | None:
    """PLS with one component from x [K, O] to y [K], inverted; None when x does not go with y.

    Columns are centred and scaled to unit deviation (as scikit-learn's `PLSRegression` does, which AlphaRL uses). The component is
    w = X^T y / |X^T y|, the scores t = X w, the loadings p = X^T t / t^T t; scores predict y by least squares, y = mean + q t; inverting,
    x = mean + deviation * p (y - mean) / q.
    """
    centre, middle = x.mean(axis=0), y.mean()
    spread = x.std(axis=0, ddof=1)
    spread = np.where(spread > 0.0, spread, 1.0)
    columns = (x - centre) / spread
    covariance = columns.T @ (y - middle)
    size = np.linalg.norm(covariance)
    if size == 0.0:
        return None
    scores = columns @ (covariance / size)
    energy = scores @ scores
    loadings, slope = columns.T @ scores / energy, scores @ (y - middle) / energy
    direction = spread * loadings / slope
    return PlsLine(centre - middle * direction, direction)


@dataclass(frozen=True)
class AlphaRl:
    """AlphaRL (arXiv 2510.00553): W_0 + x_hat v_c^T, x_hat the value of x_t = sigma_1 u_1 that a wished accuracy asks for.

    Per module, PLS with one component relates x_t of the deltas to the accuracies y_t (`pls_line`), signs aligned along the trajectory,
    and is solved for y*. The wished accuracy is y* = line(y)(t_c + alpha (t_c - t_{c-k})), the accuracies' own trend over training
    steps, so that alpha counts horizons as everywhere; with `accuracy` given, y* = y_c + alpha (accuracy - y_c).
    Only the top direction is kept, whence no alpha gives back W_c.

    Args:
        accuracy: the accuracy wished for at alpha = 1; None: the trend's.
    """

    accuracy: float | None = None

    name = "alpharl"
    neutral = None
    alphas = (0.5, 1.0, 1.5)

    def __post_init__(self) -> None:
        """Settings in range."""
        check(self.accuracy is None or 0.0 <= self.accuracy <= 1.0, "alpharl: accuracy", "between 0 and 1", self.accuracy)

    @property
    def forecast(self) -> float | None:
        """1 along the accuracies' trend; a wished accuracy has no time."""
        return 1.0 if self.accuracy is None else None

    def needs(self, horizon: int) -> Needs:
        """Two points make a line, and a horizon must have been seen."""
        return Needs(max(2, horizon), accuracies=True)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """One PLS per module; raises `ExtrapolationError` when all accuracies are equal."""
        require(self, trajectory, setting)
        accuracies = np.array(trajectory.accuracies, dtype=np.float64)
        if np.ptp(accuracies) == 0.0:
            raise ExtrapolationError(f"alpharl relates weights to accuracy, but all {len(accuracies)} checkpoints have the same accuracy.")
        triplets = trajectory.triplets(setting.horizon)
        tops = {name: chained([checkpoint.modules[name].global_ for checkpoint in triplets]) for name in trajectory.modules}
        found = {name: _line(globals_, accuracies) for name, globals_ in tops.items()}
        times = np.array(trajectory.steps, dtype=np.float64)
        reach = horizon_steps(trajectory, setting.horizon)

        def wished(alpha: float) -> float:
            if self.accuracy is not None:
                return float(accuracies[-1] + alpha * (self.accuracy - accuracies[-1]))
            return float(line_weights(times, times[-1] + alpha * reach) @ accuracies)

        def at(alpha: float) -> dict[str, ModulePlan]:
            y = wished(alpha)
            return {name: _plan(trajectory, line, y, tops[name][-1].v) for name, line in found.items()}

        trend = {f"accuracy at alpha {alpha:g}": f"{wished(alpha):.4f}" for alpha in self.alphas}
        return Fitted(at, trend)


def _line(globals_: Sequence[Triplet], accuracies: np.ndarray) -> PlsLine | None:
    if globals_[-1].sigma == 0.0:
        return None
    return pls_line(np.stack([t.sigma * t.u.astype(np.float64) for t in globals_]), accuracies)


def _plan(trajectory: WeightTrajectory, line: PlsLine | None, y: float, v: np.ndarray) -> ModulePlan:
    """W_0 + x_hat v^T; a module that never moved, or that does not go with the accuracy, stays as it is."""
    if line is None:
        return ModulePlan(last(trajectory))
    x = line.start + y * line.slope
    size = float(np.linalg.norm(x))
    return ModulePlan(np.zeros(trajectory.num_checkpoints), (Triplet(size, (x / max(size, 1e-300)).astype(np.float32), v),))


@dataclass(frozen=True)
class Rank1:
    """The norm-corrected rank-1 model of AlphaRL (arXiv 2510.00553): W_0 + alpha (|D_c|_F / sigma_1) sigma_1 u_1 v_1^T.

    The top triplet of the last delta at the whole delta's size. All other directions are gone, whence no alpha gives back W_c.
    """

    name = "rank1"
    neutral = None
    forecast = None
    alphas = (1.0,)

    def needs(self, horizon: int) -> Needs:
        """One checkpoint."""
        return Needs(1)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """One triplet per module."""
        require(self, trajectory, setting)
        count = trajectory.num_checkpoints
        tops = {name: module.top(count) for name, module in trajectory.modules.items()}
        sizes = {name: float(np.linalg.norm(module.row_norms(count))) for name, module in trajectory.modules.items()}

        def at(alpha: float) -> dict[str, ModulePlan]:
            return {
                name: ModulePlan(np.zeros(count), (Triplet(alpha * sizes[name], top.u, top.v),))
                if top.sigma > 0.0
                else ModulePlan(last(trajectory))
                for name, top in tops.items()
            }

        return Fitted(at)
