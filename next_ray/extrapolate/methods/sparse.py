"""Methods that keep a part of the last delta: random entries (DARE) or its largest rows (key neurons).

Shape legend: O/I out/in features, K = c checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.extrapolate.methods.common import check, last, require
from next_ray.extrapolate.plan import Dropout, Fitted, ModulePlan, Needs, Setting


@dataclass(frozen=True)
class Dare:
    """DARE (arXiv 2311.03099): W_0 + alpha drop_p(D_c) / (1 - p), entries dropped at random, seeded per module.

    The result has full rank: it is merged weights, never an exact adapter. No alpha gives back W_c, since entries are missing at each.

    Args:
        probability: p, the share of entries that is dropped.
    """

    probability: float = 0.9

    name = "dare"
    neutral = None
    forecast = None
    alphas = (1.0,)

    def __post_init__(self) -> None:
        """Settings in range."""
        check(0.0 <= self.probability < 1.0, "dare: probability", "at least 0 and below 1", self.probability)

    def needs(self, horizon: int) -> Needs:
        """One checkpoint."""
        return Needs(1)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Nothing to learn."""
        require(self, trajectory, setting)

        def at(alpha: float) -> dict[str, ModulePlan]:
            plan = ModulePlan(alpha * last(trajectory), drop=Dropout(self.probability, setting.seed))
            return dict.fromkeys(trajectory.modules, plan)

        return Fitted(at)


@dataclass(frozen=True)
class KeyNeurons:
    """Key neurons (after MAEC, arXiv 2410.07825): W_0 + alpha m D_c, m keeping the output rows that moved most.

    The paper ranks neurons by how much they changed in training and transfers these alone, scaled. It has no public code; the row of
    a weight matrix is taken as the neuron here. No alpha gives back W_c unless all rows are kept, whence the neutral value None.

    Args:
        fraction: share of the rows that is kept, rounded up.
    """

    fraction: float = 0.1

    name = "key-neurons"
    forecast = None
    alphas = (1.0, 1.5)

    def __post_init__(self) -> None:
        """Settings in range."""
        check(0.0 < self.fraction <= 1.0, "key-neurons: fraction", "above 0 and at most 1", self.fraction)

    @property
    def neutral(self) -> float | None:
        """1 when all rows are kept."""
        return 1.0 if self.fraction == 1.0 else None

    def needs(self, horizon: int) -> Needs:
        """One checkpoint."""
        return Needs(1)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Choose the rows of every module."""
        require(self, trajectory, setting)
        masks = {name: self._mask(module.row_norms(trajectory.num_checkpoints)) for name, module in trajectory.modules.items()}

        def at(alpha: float) -> dict[str, ModulePlan]:
            return {name: ModulePlan(alpha * last(trajectory), row_scale=mask) for name, mask in masks.items()}

        return Fitted(at)

    def _mask(self, norms: np.ndarray) -> np.ndarray | None:
        if self.fraction == 1.0:
            return None
        mask = np.zeros(len(norms))
        mask[np.argsort(-norms, kind="stable")[: math.ceil(self.fraction * len(norms))]] = 1.0
        return mask
