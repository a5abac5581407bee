"""Hide the last checkpoints, let every method foretell them, and compare with what training did.

An origin o is a checkpoint whose future, c = o + k, is known. The error of one module is |W_hat - W_c|_F / |W_c - W_o|_F, so staying
put (no-op) has 1 by definition, and a method below 1 is nearer to the future than the checkpoint it started from.

Shape legend: K checkpoints, k horizon, N modules.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.plan import Extrapolator, Setting
from next_ray.inspect.errors import ModuleErrors
from next_ray.inspect.groups import by_group
from next_ray.inspect.movement import Movement

MAX_ORIGINS = 6
REACHES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Shares of the forecasting alpha that are tried to see how far is best."""

STILL = 1e-10
"""A module moved only if |W_c - W_o|^2 is above this share of |W_c - W_0|^2; below, the difference may be rounding."""

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Score:
    """One method at one alpha, one origin.

    Args:
        origin: the last checkpoint that the method saw.
        alpha: as the method counts it.
        pooled: all modules as one vector: sqrt(sum |W_hat - W_c|^2 / sum |W_c - W_o|^2).
        mean: mean of the modules' errors.
        modules: error by module; None where the module did not move.
    """

    origin: int
    alpha: float
    pooled: float
    mean: float
    modules: Mapping[str, float | None]


@dataclass(frozen=True)
class MethodBacktest:
    """What one method showed. `skipped` says why it was not tried, and then there are no scores.

    Args:
        name: the method.
        forecast: the alpha at which it claims to foretell one horizon, or None.
        scores: all origins and alphas.
        skipped: reason, or None.
    """

    name: str
    forecast: float | None
    scores: tuple[Score, ...] = ()
    skipped: str | None = None

    def at(self, alpha: float) -> list[Score]:
        """The scores of one alpha, by origin."""
        return [score for score in self.scores if score.alpha == alpha]

    def error(self, alpha: float) -> float:
        """Median over the origins of the pooled error."""
        return statistics.median(score.pooled for score in self.at(alpha))

    def mean_error(self, alpha: float) -> float:
        """Median over the origins of the mean error of the modules that moved."""
        return statistics.median(score.mean for score in self.at(alpha))

    @property
    def alphas(self) -> list[float]:
        """All that were tried."""
        return sorted({score.alpha for score in self.scores})

    @property
    def forecast_error(self) -> float | None:
        """`error` at the alpha that the method claims; no number was chosen with a view to the hidden checkpoints."""
        return self.error(self.forecast) if self.forecast is not None and self.scores else None

    @property
    def best_alpha(self) -> float | None:
        """The alpha of the least error, the smallest of equals: chosen in hindsight, so its error flatters."""
        return min(self.alphas, key=self.error) if self.scores else None

    def groups(self, alpha: float) -> dict[str, float | None]:
        """Median over the origins of the mean error of a group's modules that moved."""
        scores = self.at(alpha)
        found: dict[str, float | None] = {}
        for group, names in by_group(scores[0].modules).items():
            known = [[error for name in names if (error := score.modules[name]) is not None] for score in scores]
            means = [statistics.fmean(errors) for errors in known if errors]
            found[group] = statistics.median(means) if means else None
        return found

    def tuned(self, horizon: int) -> list[Score]:
        """For each origin the score at the alpha that was best over all origins whose hidden checkpoints this one had already seen.

        So alpha is fitted, but never on what it is judged by; empty where the trajectory is too short for that.
        """
        chosen: list[Score] = []
        for origin in sorted({score.origin for score in self.scores}):
            past = [score for score in self.scores if score.origin + horizon <= origin]
            if past:
                alpha = min(self.alphas, key=lambda a: statistics.median(s.pooled for s in past if s.alpha == a))
                chosen += [score for score in self.at(alpha) if score.origin == origin]
        return chosen

    def claimed_where_tuned(self, horizon: int) -> float | None:
        """Median of the claimed alpha's errors over the origins of `tuned`: what `tuned_error` is to be compared with."""
        origins = {score.origin for score in self.tuned(horizon)}
        known = [score.pooled for score in self.at(self.forecast) if score.origin in origins] if self.forecast is not None else []
        return statistics.median(known) if known else None

    def tuned_error(self, horizon: int) -> float | None:
        """Median over the origins of `tuned`; None where there are none."""
        scores = self.tuned(horizon)
        return statistics.median(score.pooled for score in scores) if scores else None


@dataclass(frozen=True)
class Backtest:
    """All methods on the same origins, oldest origin first."""

    horizon: int
    origins: tuple[int, ...]
    methods: tuple[MethodBacktest, ...]


def first_origin(steps: Sequence[int], horizon: int) -> int:
    """k, but at least 2, and k + 1 where the first checkpoint is farther from the base, in training steps, than any from the one before.

    There, in a segment that begins after a jump for example, a horizon that reached back to the base would be a much longer one.
    """
    apart = len(steps) > 1 and steps[0] > max(later - earlier for earlier, later in pairwise(steps))
    return max(horizon + apart, 2)


def origins(steps: Sequence[int], horizon: int) -> tuple[int, ...]:
    """At most six, evenly from the newest, K - k, back to one whose future the newest has seen, but to `first_origin` at most."""
    newest, gaps = len(steps) - horizon, MAX_ORIGINS - 1
    span = min(max(horizon, gaps), newest - first_origin(steps, horizon))
    return tuple(sorted({newest - n * span // gaps for n in range(MAX_ORIGINS)})) if span >= 0 else ()


def backtest(
    trajectory: WeightTrajectory,
    methods: Sequence[Extrapolator],
    movements: Mapping[str, Movement],
    horizon: int,
    progress: Progress = lambda what, done, total: None,
) -> Backtest:
    """Score every method at every origin that leaves it enough; methods without such an origin say why.

    `movements` are of the whole trajectory. Origins after which nothing moved are left out.
    """
    judge = _Judge(trajectory, movements, horizon)
    starts = tuple(origin for origin in origins(trajectory.steps, horizon) if judge.moved(origin))
    results: list[MethodBacktest] = []
    total = len(methods) * len(starts)
    for number, method in enumerate(methods):

        def begun(done: int, what: str = f"back test: {method.name}", before: int = number * len(starts)) -> None:
            progress(what, before + done, total)

        results.append(_tried(method, judge, trajectory, starts, horizon, begun))
    progress("back test", total, total)
    return Backtest(horizon, starts, tuple(results))


def _tried(
    method: Extrapolator,
    judge: _Judge,
    trajectory: WeightTrajectory,
    starts: Sequence[int],
    horizon: int,
    begun: Callable[[int], None],
) -> MethodBacktest:
    reason = _obstacle(method, trajectory, starts, horizon)
    scores: list[Score] = []
    for number, origin in enumerate(starts if reason is None else ()):
        begun(number)
        if origin < method.needs(horizon).checkpoints:
            continue
        try:
            scores += judge.scores(method, origin)
        except ExtrapolationError as error:
            reason = str(error)
    return MethodBacktest(method.name, method.forecast, tuple(scores), None if scores else reason)


def alphas(method: Extrapolator) -> list[float]:
    """The method's grid, its neutral alpha, and shares and multiples of its forecasting alpha."""
    grid = set(method.alphas)
    if method.neutral is not None:
        grid.add(method.neutral)
    if method.forecast is not None:
        grid |= {reach * method.forecast for reach in REACHES}
    return sorted(grid)


def _obstacle(method: Extrapolator, trajectory: WeightTrajectory, starts: Sequence[int], horizon: int) -> str | None:
    needs = method.needs(horizon)
    if not starts:
        return "there is no checkpoint to foretell: the trajectory is too short, or nothing moved"
    if needs.evaluator:
        return "needs a model evaluation at every checkpoint, which a back test on weights has not"
    if needs.accuracies and trajectory.accuracies is None:
        return "needs a held-out accuracy per checkpoint (--accuracies)"
    if needs.checkpoints > starts[-1]:
        hidden = f"the last {horizon} are" if horizon > 1 else "the last one is"
        return f"needs {needs.checkpoints} checkpoints; {starts[-1]} are left when {hidden} hidden"
    return None


class _Judge:
    """The hidden future of every module."""

    def __init__(self, trajectory: WeightTrajectory, movements: Mapping[str, Movement], horizon: int) -> None:
        self._trajectory, self._movements, self._horizon = trajectory, movements, horizon
        self._errors = {name: ModuleErrors(history, movements[name]) for name, history in trajectory.modules.items()}

    def moved(self, origin: int) -> bool:
        """Whether any module did after `origin`."""
        return any(self._distance(name, origin) > 0 for name in self._movements)

    def _distance(self, name: str, origin: int) -> float:
        """|W_c - W_o|_F^2, 0 where it is rounding."""
        movement, target = self._movements[name], origin + self._horizon
        square = movement.square_distance(target, origin)
        return square if square > STILL * movement.square_distance(target) else 0.0

    def scores(self, method: Extrapolator, origin: int) -> list[Score]:
        """One per alpha."""
        fitted = method.fit(self._trajectory.truncated(origin), Setting(horizon=self._horizon))
        plans = {alpha: fitted.at(alpha) for alpha in alphas(method)}
        squares = {alpha: dict[str, float]() for alpha in plans}
        for name, errors in self._errors.items():
            for alpha, own in plans.items():
                squares[alpha][name] = errors.square(own[name], origin + self._horizon)
            errors.release()
        return [self._score(origin, alpha, found) for alpha, found in squares.items()]

    def _score(self, origin: int, alpha: float, squares: Mapping[str, float]) -> Score:
        moved = {name: self._distance(name, origin) for name in squares}
        modules = {name: math.sqrt(square / moved[name]) if moved[name] > 0 else None for name, square in squares.items()}
        known = [error for error in modules.values() if error is not None]
        return Score(origin, alpha, math.sqrt(sum(squares.values()) / sum(moved.values())), float(np.mean(known)), modules)
