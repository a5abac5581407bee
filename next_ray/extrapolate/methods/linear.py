"""Methods that go on from the last checkpoint in a straight line: sums of checkpoints with one set of weights for all modules.

Shape legend: K = c checkpoints, k horizon; t_i is the training step of checkpoint i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.extrapolate.methods.common import check, from_last, horizon_steps, last, line_weights, only, require, slope_weights, step_of
from next_ray.extrapolate.plan import Fitted, ModulePlan, Needs, Setting


@dataclass(frozen=True)
class NoOp:
    """W_c whatever alpha is: what a jump has to beat."""

    name = "no-op"
    neutral = 0.0
    forecast = 1.0
    alphas = (1.0,)

    def needs(self, horizon: int) -> Needs:
        """One checkpoint."""
        return Needs(1)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Nothing to learn."""
        require(self, trajectory, setting)
        return from_last(trajectory, np.zeros(trajectory.num_checkpoints))


@dataclass(frozen=True)
class Persistence:
    """W_c + alpha (W_c - W_{c-k}): the last horizon once more, however many steps it took."""

    name = "persistence"
    neutral = 0.0
    forecast = 1.0
    alphas = (0.5, 1.0, 1.5)

    def needs(self, horizon: int) -> Needs:
        """k checkpoints: checkpoint c - k may be the base."""
        return Needs(horizon)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Nothing to learn."""
        require(self, trajectory, setting)
        earlier = only(trajectory, trajectory.num_checkpoints - setting.horizon)
        return from_last(trajectory, last(trajectory) - earlier)


@dataclass(frozen=True)
class TwoPoint:
    """Weight extrapolation of RL-Extra (arXiv 2601.04537): W_b + a (W_c - W_b), a = (t* - t_b) / (t_c - t_b).

    t* = t_c + alpha (t_c - t_{c-k}), so alpha counts horizons beyond the last checkpoint whatever W_b is. The paper takes the base
    as W_b. With W_b = W_{c-k}, the default, the method coincides with persistence.

    Args:
        start: checkpoint b; 0 is the base, None the one a horizon before the last.
    """

    start: int | None = None

    name = "two-point"
    neutral = 0.0
    forecast = 1.0
    alphas = (0.5, 1.0, 1.5)

    def __post_init__(self) -> None:
        """Settings in range."""
        check(self.start is None or self.start >= 0, "two-point: start", "a checkpoint's number, 0 for the base", self.start)

    def needs(self, horizon: int) -> Needs:
        """k checkpoints, and one after W_b."""
        first = 1 + (self.start or 0)
        return Needs(max(horizon, first), setting="start" if first > horizon and self.start else None)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Nothing to learn."""
        require(self, trajectory, setting)
        count = trajectory.num_checkpoints
        start = count - setting.horizon if self.start is None else self.start
        reach = horizon_steps(trajectory, setting.horizon) / (step_of(trajectory, count) - step_of(trajectory, start))
        return from_last(trajectory, reach * (last(trajectory) - only(trajectory, start)))


@dataclass(frozen=True)
class LinearFit:
    """W_c + alpha (t_c - t_{c-k}) S with S the least-squares slope of every entry over training steps (linearity of NExt, 3.3).

    S = sum_t h_t W_t with h_t = (t - mean) / sum (t - mean)^2: no entry is looked at. The line is put through the last checkpoint, so
    that alpha = 0 is the identity; with `through="line"` the fitted line itself is followed, which has no neutral alpha.

    Args:
        window: how many of the last checkpoints are fitted; None: all. The base is left out: the first steps are warm-up.
        through: `last` or `line`.
    """

    window: int | None = None
    through: Literal["last", "line"] = "last"

    name = "linear-fit"
    forecast = 1.0
    alphas = (0.5, 1.0, 1.5)

    def __post_init__(self) -> None:
        """Settings in range."""
        check(self.window is None or self.window >= 2, "linear-fit: window", "at least 2 checkpoints", self.window)

    @property
    def neutral(self) -> float | None:
        """0 through the last checkpoint; the fitted line does not pass through it."""
        return 0.0 if self.through == "last" else None

    def needs(self, horizon: int) -> Needs:
        """Two points make a line, and a horizon must have been seen."""
        least = self.window or 2
        return Needs(max(horizon, least), setting="window" if least > horizon and self.window else None)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """The fit's weights; every entry has the same."""
        require(self, trajectory, setting)
        count = trajectory.num_checkpoints
        used = count - (self.window or count)
        times = np.array(trajectory.steps[used:], dtype=np.float64)
        reach = horizon_steps(trajectory, setting.horizon)
        if self.through == "last":
            return from_last(trajectory, reach * np.pad(slope_weights(times), (used, 0)))

        def at(alpha: float) -> dict[str, ModulePlan]:
            plan = ModulePlan(np.pad(line_weights(times, times[-1] + alpha * reach), (used, 0)))
            return dict.fromkeys(trajectory.modules, plan)

        return Fitted(at)


@dataclass(frozen=True)
class Expo:
    """ExPO (arXiv 2404.16792): W_c + alpha (W_c - W_0), the base as the weaker model; alpha about 0.3 to 0.5."""

    name = "expo"
    neutral = 0.0
    forecast = None
    alphas = (0.1, 0.3, 0.5)

    def needs(self, horizon: int) -> Needs:
        """One checkpoint."""
        return Needs(1)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Nothing to learn."""
        require(self, trajectory, setting)
        return from_last(trajectory, last(trajectory))
