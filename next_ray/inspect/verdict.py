"""Is it worth jumping, how, how far, and why: one sentence from the numbers, by fixed rules.

In this order (the first that holds decides):

1. *unmoved*: no module moved at all.
2. *too short*: no checkpoint can be hidden, K < k + max(k, 2).
3. *converged*: over the last k checkpoints the weights got ahead by less than 5 % of the mean step, a checkpoint.
4. *unpredictable*: no method has a median back-test error below 0.9 and was nearer than no-op at every origin.
5. *worth it*: of these the method whose error is least against persistence's over the same origins; persistence itself where no
   method beats it by more than 0.02, because it is simpler.

A method's error is the smaller of the one at the alpha it claims (nothing was chosen) and the one with alpha tuned on origins whose
future lay in the past (`MethodBacktest.tuned`). An alpha that is best in hindsight never decides, and a method whose alpha is no time
(its `forecast` is None) is not recommended: ExPO's best alpha of the past, say, would go farther from a later checkpoint.
How far: the alpha of the least error, from the same back test. In training steps: as many horizons as alpha holds forecasting alphas.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from enum import StrEnum

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.inspect.backtest import Backtest, MethodBacktest, Score
from next_ray.inspect.movement import Movement

WORTH = 0.9
STAYING = 1.0
CONVERGED_SPEED = 0.05
SIMPLER = 0.02
SIMPLE = "persistence"
UNIVERSAL = "no-op"


class Outcome(StrEnum):
    """Which rule decided."""

    UNMOVED = "unmoved"
    TOO_SHORT = "too short"
    CONVERGED = "converged"
    UNPREDICTABLE = "unpredictable"
    WORTH_IT = "worth it"


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Args:
        outcome: the rule that decided; only `WORTH_IT` recommends a jump.
        sentence: the answer in words, with its numbers.
        method: what to jump with, or the best of those that failed.
        alpha: how far, as the method counts it; None without recommendation.
        steps: how far in training steps.
        error: the median back-test error of `method`.
        persistence: persistence's over the same origins.
    """

    outcome: Outcome
    sentence: str
    method: str | None = None
    alpha: float | None = None
    steps: int | None = None
    error: float | None = None
    persistence: float | None = None

    @property
    def worth_it(self) -> bool:
        """Whether a jump is recommended."""
        return self.outcome is Outcome.WORTH_IT


@dataclass(frozen=True)
class _Showing:
    """A method with the alpha to take and the scores that speak for it."""

    method: MethodBacktest
    alpha: float
    scores: list[Score]

    @property
    def error(self) -> float:
        return statistics.median(score.pooled for score in self.scores)

    @property
    def worst(self) -> float:
        return max(score.pooled for score in self.scores)


def verdict(trajectory: WeightTrajectory, movement: Movement, results: Backtest) -> Verdict:
    """By the rules above; `movement` is of all modules together."""
    early = _before_the_back_test(trajectory.num_checkpoints, results.horizon, movement)
    return early if early is not None else _from_the_back_test(trajectory, movement, results)


def _before_the_back_test(count: int, horizon: int, movement: Movement) -> Verdict | None:
    """Rules 1 to 3."""
    speed = movement.recent_speed(min(horizon, count))
    if speed is None:
        return Verdict(Outcome.UNMOVED, "Not worth jumping: no weight differs from the base.")
    needed = horizon + max(horizon, 2)
    if count < needed:
        sentence = (
            f"Cannot tell: {_count(count, 'checkpoint')} are too few to hide {horizon} and foretell them; {needed} are needed "
            "(or a shorter --horizon)."
        )
        return Verdict(Outcome.TOO_SHORT, sentence)
    if speed < CONVERGED_SPEED:
        sentence = (
            f"Not worth jumping: training has converged. Over the last {_count(horizon, 'checkpoint')} the weights got ahead by "
            f"{100 * speed:.1f} % of their mean step each, so there is nowhere left to jump to."
        )
        return Verdict(Outcome.CONVERGED, sentence)
    return None


def _from_the_back_test(trajectory: WeightTrajectory, movement: Movement, results: Backtest) -> Verdict:
    """Rules 4 and 5."""
    horizon = results.horizon
    showings = [showing for method in results.methods if method.name != UNIVERSAL and (showing := _showing(method, horizon)) is not None]
    if not showings:
        return Verdict(Outcome.UNPREDICTABLE, "Not worth jumping: no method that foretells weights could be tried on these checkpoints.")
    good = [s for s in showings if s.error < WORTH and s.worst < STAYING]
    best = min(good or showings, key=lambda s: _margin(s, results))
    simple = next((s for s in good if s.method.name == SIMPLE), None)
    if simple is not None and _margin(best, results) >= -SIMPLER:
        best = simple
    persistence = _persistence_beside(best, results)
    beside = f", persistence {persistence:.2f}" if persistence is not None and best.method.name != SIMPLE else ""
    because = (
        f"median back-test error {best.error:.2f} over {_count(len(best.scores), 'origin')} (no-op 1.00{beside}); "
        f"straightness of the path {_straight(movement)}"
    )
    name = best.method.name
    if not good:
        why = "was farther off than staying put at some origin" if best.error < WORTH else "is hardly nearer than staying put, if at all"
        sentence = f"Not worth jumping: even the best method, {name}, {why}: {because}."
        return Verdict(Outcome.UNPREDICTABLE, sentence, name, error=best.error, persistence=persistence)
    steps = _steps(trajectory, horizon, best)
    rivals = ", which no other method beats by more than 0.02" if best is simple else ""
    sentence = f"Worth jumping: {name}{rivals}, at alpha {best.alpha:g}, about {_count(steps, 'training step')} ahead: {because}."
    return Verdict(Outcome.WORTH_IT, sentence, name, best.alpha, steps, best.error, persistence)


def _showing(method: MethodBacktest, horizon: int) -> _Showing | None:
    """The better of the claimed and the tuned alpha; None for a method that claims none."""
    if method.forecast is None or method.best_alpha is None:
        return None
    claimed = _Showing(method, method.best_alpha, method.at(method.forecast))
    tuned = _Showing(method, method.best_alpha, method.tuned(horizon))
    # when neither is any good, what the method claims says more than a tuned alpha that shrinks to nothing
    return tuned if tuned.scores and tuned.error < min(claimed.error, WORTH) else claimed


def _margin(showing: _Showing, results: Backtest) -> float:
    """Error less persistence's over the same origins, or the error itself where persistence was not tried."""
    return showing.error - (_persistence_beside(showing, results) or 0.0)


def _persistence_beside(best: _Showing, results: Backtest) -> float | None:
    known = next((m for m in results.methods if m.name == SIMPLE and m.scores), None)
    if known is None or known.forecast is None:
        return None
    origins = {score.origin for score in best.scores}
    return statistics.median(score.pooled for score in known.at(known.forecast) if score.origin in origins)


def _steps(trajectory: WeightTrajectory, horizon: int, best: _Showing) -> int:
    """As many horizons as alpha holds forecasting alphas."""
    assert best.method.forecast
    earlier = trajectory.steps[-1 - horizon] if horizon < trajectory.num_checkpoints else 0
    return round(best.alpha / best.method.forecast * (trajectory.steps[-1] - earlier))


def _straight(movement: Movement) -> str:
    value, walk = movement.straightness, len(movement.gram) ** -0.5
    return f"{value:.2f} (line 1, random walk {walk:.2f})" if value is not None else "unknown"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
