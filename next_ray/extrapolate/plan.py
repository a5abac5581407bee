"""What an extrapolator proposes, as a recipe over the trajectory's deltas, and how a recipe becomes weights.

Every method of `methods/` gives one `ModulePlan` a module. A plan holds numbers and vectors, never a matrix: it is cheap to make for
a whole grid of alphas, can be scored against checkpoints that were hidden (`inspect/`), and is turned into an adapter or into dense
weights in one place.

Shape legend: O/I out/in features, K checkpoints, Q rank of stacked factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from next_ray.delta.factors import FactorPair
from next_ray.delta.history import Delta, ModuleHistory
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ConfigError, ExtrapolationError
from next_ray.types import Triplet


@dataclass(frozen=True)
class Dropout:
    """Random removal of entries (DARE): each is dropped with `probability` and the rest divided by 1 - probability; seeded per module."""

    probability: float
    seed: int


@dataclass(frozen=True)
class ModulePlan:
    """W_hat - W_0 = rows * drop(sum_t weights[t - 1] D_t + sum_n sigma_n u_n v_n^T).

    Args:
        weights: float64 [K], one per checkpoint.
        triplets: rank-1 terms; a negative sigma turns one around.
        row_scale: float64 [O], multiplies the rows of the sum; None: all ones.
        drop: removal of entries, the one operation that no adapter can hold; None: nothing is removed.
    """

    weights: np.ndarray
    triplets: tuple[Triplet, ...] = ()
    row_scale: np.ndarray | None = None
    drop: Dropout | None = None

    def __post_init__(self) -> None:
        """Raises `ExtrapolationError` for numbers that are not finite: an alpha, or a fit that ran away."""
        if not (np.isfinite(self.weights).all() and all(np.isfinite(t.sigma) for t in self.triplets)):
            raise ExtrapolationError("The extrapolated weights are not finite. Lower alpha, or check the checkpoints.")

    @property
    def checkpoint(self) -> int | None:
        """The checkpoint t that the plan gives back unchanged (0: the base), or None: such modules must stay bit-identical."""
        if self.triplets or self.row_scale is not None or self.drop is not None:
            return None
        used = np.flatnonzero(self.weights)
        if len(used) == 0:
            return 0
        return int(used[0]) + 1 if len(used) == 1 and self.weights[used[0]] == 1.0 else None


Plans = Mapping[str, ModulePlan]
"""Module name to plan; a trajectory's every module has one."""


@dataclass(frozen=True)
class Needs:
    """What a method cannot do without; `setting` names the one that asks for so many checkpoints, if one does."""

    checkpoints: int = 1
    accuracies: bool = False
    evaluator: bool = False
    setting: str | None = None


Evaluator = Callable[[Plans], float]
"""Held-out accuracy of the model that plans describe; greedy soup asks it."""


@dataclass(frozen=True)
class Setting:
    """What is given to every method: how far one horizon is (in checkpoints), the seed, and an evaluator where there is one."""

    horizon: int
    seed: int = 0
    evaluator: Evaluator | None = None

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a horizon below one checkpoint."""
        if self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1 checkpoint, got {self.horizon}.")


@dataclass(frozen=True)
class Fitted:
    """A method that has seen a trajectory: `at(alpha)` makes the plans. `notes` holds what a reader of the result should know."""

    at: Callable[[float], dict[str, ModulePlan]]
    notes: Mapping[str, str] = field(default_factory=dict)


class Extrapolator(Protocol):
    """An extrapolation or merging method. Implementations are frozen dataclasses whose fields are the method's settings."""

    @property
    def name(self) -> str:
        """As it is called on the command line."""
        ...

    @property
    def neutral(self) -> float | None:
        """The alpha that gives back the last checkpoint exactly; None where the mathematics has none (the docstring says why)."""
        ...

    @property
    def forecast(self) -> float | None:
        """The alpha at which the method claims to foretell the checkpoint one horizon ahead; None: it makes no such claim."""
        ...

    @property
    def alphas(self) -> tuple[float, ...]:
        """A grid worth trying."""
        ...

    def needs(self, horizon: int) -> Needs:
        """What it cannot do without at this horizon; `fit` raises `ExtrapolationError` with these numbers."""
        ...

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Learn from the trajectory; everything that does not depend on alpha is done here, once."""
        ...


def realize(plan: ModulePlan, history: ModuleHistory, name: str = "") -> Delta:
    """W_hat - W_0 of one module: stacked factors where its history has factors and nothing is dropped, else dense float64 [O, I].

    `name` seeds the removal of entries, so that every module has its own.
    """
    delta = history.combine(plan.weights)
    if plan.drop is not None and isinstance(delta, FactorPair):
        delta = delta.left @ delta.right
    if plan.triplets:
        left = np.stack([t.sigma * t.u.astype(np.float64) for t in plan.triplets], axis=1)
        right = np.stack([t.v.astype(np.float64) for t in plan.triplets])
        delta = (
            FactorPair(np.hstack([delta.left, left]), np.vstack([delta.right, right]))
            if isinstance(delta, FactorPair)
            else delta + left @ right
        )
    if plan.drop is not None:
        assert not isinstance(delta, FactorPair)
        delta = _dropped(delta, plan.drop, name)
    if plan.row_scale is not None:
        rows = plan.row_scale[:, None]
        delta = FactorPair(rows * delta.left, delta.right) if isinstance(delta, FactorPair) else rows * delta
    return delta


def _dropped(delta: np.ndarray, drop: Dropout, name: str) -> np.ndarray:
    rng = np.random.default_rng([drop.seed, *name.encode()])
    kept = rng.random(delta.shape, dtype=np.float32) >= drop.probability
    return delta * kept / (1.0 - drop.probability)
