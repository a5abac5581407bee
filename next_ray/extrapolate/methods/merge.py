"""Methods that average checkpoints. alpha is how far to go from the last checkpoint to the average: 0 is W_c, 1 the average itself.

Shape legend: K = c checkpoints, N merged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.extrapolate.methods.common import check, from_last, last, only, require
from next_ray.extrapolate.plan import Fitted, ModulePlan, Needs, Setting

Schedule = Literal["uniform", "cosine", "sqrt"]


def merge_weights(schedule: Schedule, count: int) -> np.ndarray:
    """c_0 ... c_n of WSM (arXiv 2507.17634) for the last count = n + 1 checkpoints; they are not negative and sum to 1.

    The merge equals training whose i-th update was scaled by w_i = sum_{j >= i} c_j, hence c_j = w_j - w_{j+1}, w_0 = 1, w_{n+1} = 0.
    With x = i / (n + 1) the decays are 1 - x (uniform weights), (1 + cos(pi x)) / 2 and 1 - sqrt(x).
    """
    x = np.arange(count + 1) / count
    decay = {"uniform": 1.0 - x, "cosine": 0.5 * (1.0 + np.cos(math.pi * x)), "sqrt": 1.0 - np.sqrt(x)}[schedule]
    return decay[:-1] - decay[1:]


@dataclass(frozen=True)
class Wsm:
    """WSM (arXiv 2507.17634): W_c + alpha (sum_j c_j W_{c-n+j} - W_c), the merge that stands for a decay of the learning rate.

    Args:
        schedule: the decay that is imitated (linear: `uniform` weights); part of the method's name.
        count: how many of the last checkpoints are merged; None: the horizon and the last, k + 1.
    """

    schedule: Schedule
    count: int | None = None

    neutral = 0.0
    forecast = None
    alphas = (1.0,)

    def __post_init__(self) -> None:
        """Settings in range."""
        check(self.count is None or self.count >= 1, f"{self.name}: count", "at least 1 checkpoint", self.count)

    @property
    def name(self) -> str:
        """With the schedule."""
        return f"wsm-{self.schedule}"

    def needs(self, horizon: int) -> Needs:
        """The checkpoints that are merged."""
        return Needs(self.count or horizon + 1, setting="count" if self.count else None)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Nothing to learn."""
        require(self, trajectory, setting)
        count = self.count or setting.horizon + 1
        merged = np.pad(merge_weights(self.schedule, count), (trajectory.num_checkpoints - count, 0))
        return from_last(trajectory, merged - last(trajectory))


@dataclass(frozen=True)
class SoupUniform:
    """Uniform soup (Wortsman et al. 2022, arXiv 2203.05482): W_c + alpha (mean of the checkpoints - W_c).

    Args:
        count: how many of the last checkpoints; None: all.
    """

    count: int | None = None

    name = "soup-uniform"
    neutral = 0.0
    forecast = None
    alphas = (1.0,)

    def __post_init__(self) -> None:
        """Settings in range."""
        check(self.count is None or self.count >= 1, "soup-uniform: count", "at least 1 checkpoint", self.count)

    def needs(self, horizon: int) -> Needs:
        """The checkpoints that are averaged."""
        return Needs(self.count or 1, setting="count" if self.count else None)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Nothing to learn."""
        require(self, trajectory, setting)
        count = self.count or trajectory.num_checkpoints
        mean = np.pad(np.full(count, 1.0 / count), (trajectory.num_checkpoints - count, 0))
        return from_last(trajectory, mean - last(trajectory))


@dataclass(frozen=True)
class SoupGreedy:
    """Greedy soup (Wortsman et al. 2022, arXiv 2203.05482, recipe 1): W_c + alpha (soup - W_c).

    Checkpoints are tried from the most accurate down (the later of equals first); one stays in the mean when the mean's held-out
    accuracy does not fall. The evaluator judges the first alone too, so that all figures are comparable: K evaluations.
    """

    name = "soup-greedy"
    neutral = 0.0
    forecast = None
    alphas = (1.0,)

    def needs(self, horizon: int) -> Needs:
        """An order and a judge."""
        return Needs(1, accuracies=True, evaluator=True)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Choose the ingredients: K evaluations."""
        require(self, trajectory, setting)
        assert trajectory.accuracies is not None and setting.evaluator is not None
        ranked = sorted(zip(trajectory.accuracies, range(1, trajectory.num_checkpoints + 1), strict=True), reverse=True)
        order = [checkpoint for _, checkpoint in ranked]
        soup = only(trajectory, order[0])
        taken, best = [order[0]], setting.evaluator(dict.fromkeys(trajectory.modules, ModulePlan(soup)))
        for checkpoint in order[1:]:
            tried = (len(taken) * soup + only(trajectory, checkpoint)) / (len(taken) + 1)
            accuracy = setting.evaluator(dict.fromkeys(trajectory.modules, ModulePlan(tried)))
            if accuracy >= best:
                soup, best = tried, accuracy
                taken.append(checkpoint)
        steps = ", ".join(str(trajectory.steps[t - 1]) for t in taken)
        return from_last(trajectory, soup - last(trajectory), {"ingredients": f"steps {steps}", "accuracy": f"{best:.4f}"})
