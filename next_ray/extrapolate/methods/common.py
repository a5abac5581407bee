"""What the methods share: checks of what they need, time axes, and plans that lie on a line through the last checkpoint.

Shape legend: K checkpoints, k horizon. Time is counted in training steps; the base has step 0 and zero deltas.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ConfigError, ExtrapolationError
from next_ray.extrapolate.plan import Extrapolator, Fitted, ModulePlan, Setting


def require(method: Extrapolator, trajectory: WeightTrajectory, setting: Setting) -> None:
    """Raises `ExtrapolationError` with the numbers when the trajectory or the setting lacks what the method needs."""
    needs, have = method.needs(setting.horizon), trajectory.num_checkpoints
    if have < needs.checkpoints:
        raise ExtrapolationError(_too_few(method, setting.horizon, have))
    if needs.accuracies and trajectory.accuracies is None:
        raise ExtrapolationError(
            f"{method.name} needs a held-out accuracy per checkpoint, because it relates weights to accuracy, and the trajectory has none. "
            f"Give {have} accuracies or take another method."
        )
    if needs.evaluator and setting.evaluator is None:
        raise ExtrapolationError(
            f"{method.name} needs an evaluator, because it accepts a model by its held-out accuracy, and none was given. "
            "Give one or take another method."
        )


def _too_few(method: Extrapolator, horizon: int, have: int) -> str:
    """Names what asks for so many, and advises only what helps."""
    needs = method.needs(horizon)
    cause = f"at a horizon of {horizon}" if needs.setting is None else f"with {needs.setting}={getattr(method, needs.setting)}"
    if needs.setting is not None:
        cure = f" or a smaller {needs.setting}"
    else:
        cure = " or a shorter horizon" if horizon > 1 and method.needs(1).checkpoints <= have else ""
    count = f"{needs.checkpoints} checkpoint{'s' if needs.checkpoints > 1 else ''}"
    return f"{method.name} needs at least {count} {cause} and was given {have}. Give more checkpoints{cure}."


def check(condition: bool, setting: str, rule: str, value: object) -> None:
    """Raises `ConfigError` for a setting outside its range."""
    if not condition:
        raise ConfigError(f"{setting} must be {rule}, got {value!r}.")


def only(trajectory: WeightTrajectory, checkpoint: int) -> np.ndarray:
    """Weights [K] that give back one checkpoint; 0 is the base."""
    weights = np.zeros(trajectory.num_checkpoints)
    if checkpoint > 0:
        weights[checkpoint - 1] = 1.0
    return weights


def last(trajectory: WeightTrajectory) -> np.ndarray:
    """Weights [K] that give back the last checkpoint."""
    return only(trajectory, trajectory.num_checkpoints)


def step_of(trajectory: WeightTrajectory, checkpoint: int) -> int:
    """The training step of a checkpoint; 0 for the base."""
    return trajectory.steps[checkpoint - 1] if checkpoint > 0 else 0


def horizon_steps(trajectory: WeightTrajectory, horizon: int) -> int:
    """Training steps that one horizon reaches: as many as the last k checkpoints took."""
    count = trajectory.num_checkpoints
    return step_of(trajectory, count) - step_of(trajectory, count - horizon)


def slope_weights(times: np.ndarray) -> np.ndarray:
    """h with sum_t h_t y_t = the least-squares slope of y over `times`, both [K]."""
    centred = times - times.mean()
    return centred / np.sum(centred**2)


def line_weights(times: np.ndarray, at: float) -> np.ndarray:
    """h with sum_t h_t y_t = the least-squares line of y over `times`, read at time `at`."""
    return 1.0 / len(times) + (at - times.mean()) * slope_weights(times)


def from_last(trajectory: WeightTrajectory, direction: np.ndarray, notes: Mapping[str, str] | None = None) -> Fitted:
    """W_c + alpha sum_t direction_t D_t for every module; alpha = 0 is checkpoint c itself."""

    def at(alpha: float) -> dict[str, ModulePlan]:
        plan = ModulePlan(last(trajectory) + alpha * direction)
        return dict.fromkeys(trajectory.modules, plan)

    return Fitted(at, notes or {})
