"""Is it worth jumping, how, how far, and why: one sentence from the numbers, by fixed rules.

In this order (the first that holds decides):

1. *unmoved*: no module moved at all.
2. *too short*: no checkpoint can be hidden, K < k + max(k, 2) (`backtest.first_origin`).
3. *converged*: over the last k checkpoints the weights got ahead at less than 5 % of the path's mean speed.
4. *unpredictable*: no candidate is good. A good one has a median back-test error below 0.9 and was nearer than no-op at every origin; a
   tuned one also at its alpha over all origins, and its error is below the method's claim over the same origins by more than 0.02.
5. *worth it*, with the best candidate.

A candidate is a method with an alpha and an error that was measured without hindsight. Every method that claims an alpha gives two:

- *claimed*: that alpha, and its error over all origins;
- *tuned*: the alpha that is best over all origins known now, and the error that this rule had at earlier origins, each with the alpha
  that was best over what lay in its own past (`MethodBacktest.tuned`).

Claimed candidates are compared with each other, and tuned ones with each other: by their error less that of persistence (as claimed, or
tuned) over the same origins. Persistence itself wins where none beats it by more than 0.02, because it is simpler; of equals the first
in the registry. Then the best tuned candidate has to beat the best claimed one by more than 0.02 over the origins of both.
A method whose alpha is no time (its `forecast` is None) is not recommended: ExPO's best alpha of the past, say, would go farther from a
later checkpoint.

How far: every alpha was judged against the checkpoint one horizon ahead, so a jump stands for the training steps of one horizon.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.extrapolate.methods.common import horizon_steps
from next_ray.extrapolate.methods.registry import METHODS
from next_ray.inspect.backtest import Backtest, MethodBacktest, Score, first_origin
from next_ray.inspect.movement import Movement, walk_straightness

WORTH = 0.9
STAYING = 1.0
CONVERGED_SPEED = 0.05
SIMPLER = 0.02
SIMPLE = "persistence"
UNIVERSAL = "no-op"

TIED = 3
"""Decimals to which errors are compared, those that are shown: what differs less is equal."""


class Outcome(StrEnum):
    """Which rule decided."""

    UNMOVED = "unmoved"
    TOO_SHORT = "too short"
    CONVERGED = "converged"
    UNPREDICTABLE = "unpredictable"
    WORTH_IT = "worth it"


class AlphaFrom(StrEnum):
    """What an alpha, and the error beside it, come from."""

    CLAIMED = "claimed"
    TUNED = "tuned"


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Args:
        outcome: the rule that decided; only `WORTH_IT` recommends a jump.
        sentence: the answer in words, with its numbers.
        method: what to jump with, or the best of those that failed.
        alpha: how far, as the method counts it; None without recommendation.
        alpha_from: whether `error` is of the alpha that the method claims or of tuning.
        steps: how far in training steps, those of one horizon; None without recommendation.
        error: the median back-test error of `method`.
        origins: over how many origins.
        persistence: persistence's error, claimed or tuned as `method`'s, over the same origins.
    """

    outcome: Outcome
    sentence: str
    method: str | None = None
    alpha: float | None = None
    alpha_from: AlphaFrom | None = None
    steps: int | None = None
    error: float | None = None
    origins: int | None = None
    persistence: float | None = None

    @property
    def worth_it(self) -> bool:
        """Whether a jump is recommended."""
        return self.outcome is Outcome.WORTH_IT


@dataclass(frozen=True)
class _Candidate:
    """A method, the alpha to take, and the scores that speak for it; beside them over the same origins persistence and, for a tuned
    alpha, the method's own claim."""

    method: MethodBacktest
    alpha: float
    alpha_from: AlphaFrom
    scores: Sequence[Score]
    claim: float | None = None
    persistence: float | None = None

    @property
    def error(self) -> float:
        return statistics.median(score.pooled for score in self.scores)

    @property
    def good(self) -> bool:
        """A tuned one besides where tuning paid, and at its alpha at every origin: there hindsight may refuse, though never recommend."""
        paid = self.claim is None or self.error < self.claim - SIMPLER
        worst = max(score.pooled for score in (*self.scores, *self.method.at(self.alpha)))
        return paid and worst < STAYING and self.error < WORTH and self.method.error(self.alpha) < WORTH

    @property
    def margin(self) -> float:
        """Error less persistence's over the same origins; less that of staying put where persistence was not tried."""
        return round(self.error - (STAYING if self.persistence is None else self.persistence), TIED)

    @property
    def rank(self) -> tuple[float, int, str]:
        """By margin; equals in the order of the registry, strangers last and by name."""
        names = list(METHODS)
        name = self.method.name
        return self.margin, names.index(name) if name in names else len(names), name

    def over(self, origins: Iterable[int]) -> float | None:
        """The error over some origins alone."""
        wanted = set(origins)
        known = [score.pooled for score in self.scores if score.origin in wanted]
        return statistics.median(known) if known else None

    @property
    def origins(self) -> list[int]:
        return [score.origin for score in self.scores]


def verdict(trajectory: WeightTrajectory, movement: Movement, results: Backtest) -> Verdict:
    """By the rules above; `movement` is of all modules together."""
    early = _before_the_back_test(trajectory.steps, results.horizon, movement)
    return early if early is not None else _from_the_back_test(trajectory, movement, results)


def _before_the_back_test(steps: Sequence[int], horizon: int, movement: Movement) -> Verdict | None:
    """Rules 1 to 3."""
    count = len(steps)
    speed = movement.recent_speed(min(horizon, count), steps)
    if speed is None:
        return Verdict(Outcome.UNMOVED, "Not worth jumping: no weight differs from the base.")
    if count < horizon + first_origin(steps, horizon):
        return Verdict(Outcome.TOO_SHORT, _too_short(steps, horizon))
    if speed < CONVERGED_SPEED:
        sentence = (
            f"Not worth jumping: training has converged. Over the last {_count(horizon, 'checkpoint')} the weights got ahead at "
            f"{100 * speed:.1f} % of their mean speed, so there is nowhere left to jump to."
        )
        return Verdict(Outcome.CONVERGED, sentence)
    return None


def _too_short(steps: Sequence[int], horizon: int) -> str:
    count, needed = len(steps), horizon + first_origin(steps, horizon)
    few = f"{_count(count, 'checkpoint')} {'is' if count == 1 else 'are'} too few to hide {horizon} and foretell "
    largest = max((k for k in range(1, horizon) if k + first_origin(steps, k) <= count), default=None)
    shorter = f" (or a horizon of {'at most ' if largest > 1 else ''}{largest})" if largest is not None else ""
    return f"Cannot tell: {few}{'it' if horizon == 1 else 'them'}; {needed} are needed{shorter}."


def _from_the_back_test(trajectory: WeightTrajectory, movement: Movement, results: Backtest) -> Verdict:
    """Rules 4 and 5."""
    claimed, tuned = _claimed(results), _tuned(results)
    if not claimed:
        return Verdict(Outcome.UNPREDICTABLE, "Not worth jumping: no method that foretells weights could be tried on these checkpoints.")
    best, straight = _better(_best(claimed), _best(tuned)), _straight(movement, trajectory.steps)
    if best is None:
        # what a method claims says more than a tuned alpha that shrinks to nothing
        return _refused(min(claimed, key=lambda candidate: candidate.rank), straight)
    steps = horizon_steps(trajectory, results.horizon)
    rivals = f", which no other method beats by more than {SIMPLER:g}" if best.method.name == SIMPLE and len(claimed) > 1 else ""
    alpha = f"alpha {best.alpha:g} {'as it claims' if best.alpha_from is AlphaFrom.CLAIMED else 'as tuned on the back test'}"
    what = f"worth jumping: {best.method.name}{rivals}, at {alpha}, about {_count(steps, 'training step')} ahead"
    return _judged(Outcome.WORTH_IT, what, best, straight, alpha=best.alpha, steps=steps)


def _refused(best: _Candidate, straight: str) -> Verdict:
    """Where the median was good the sentence names the origins that were not: early ones may say little about now."""
    failed = [f"{score.origin} ({score.pooled:.2f})" for score in best.scores if score.pooled >= STAYING]
    origins = f"checkpoint{'s' if len(failed) > 1 else ''} {', '.join(failed)}"
    why = f"was no nearer than staying put from {origins}" if best.error < WORTH else "is hardly nearer than staying put, if at all"
    return _judged(Outcome.UNPREDICTABLE, f"not worth jumping: even the best method, {best.method.name}, {why}", best, straight)


def _judged(
    outcome: Outcome, what: str, candidate: _Candidate, straight: str, alpha: float | None = None, steps: int | None = None
) -> Verdict:
    """With the numbers of the candidate; a single origin is no more than a hint, and the sentence says so."""
    origins = len(candidate.scores)
    opening = what[0].upper() + what[1:] if origins > 1 else f"One origin only, so a hint and no more: {what}"
    tuned = candidate.alpha_from is AlphaFrom.TUNED
    rule = ", alpha chosen on earlier origins" if tuned else ""
    rival = candidate.persistence if candidate.method.name != SIMPLE else None
    beside = f", persistence {'tuned alike ' if tuned else ''}{rival:.2f}" if rival is not None else ""
    sentence = (
        f"{opening}: {'median ' if origins > 1 else ''}back-test error {candidate.error:.2f} over {_count(origins, 'origin')}{rule} "
        f"(no-op 1.00{beside}); straightness of the path {straight}."
    )
    return Verdict(
        outcome, sentence, candidate.method.name, alpha, candidate.alpha_from, steps, candidate.error, origins, candidate.persistence
    )


def _claimed(results: Backtest) -> list[_Candidate]:
    return _beside_persistence(
        [
            _Candidate(method, method.forecast, AlphaFrom.CLAIMED, scores)
            for method in results.methods
            if method.name != UNIVERSAL and method.forecast is not None and (scores := method.at(method.forecast))
        ]
    )


def _tuned(results: Backtest) -> list[_Candidate]:
    return _beside_persistence(
        [
            _Candidate(method, method.best_alpha, AlphaFrom.TUNED, scores, method.claimed_where_tuned(results.horizon))
            for method in results.methods
            if method.name != UNIVERSAL and method.forecast is not None and method.best_alpha is not None
            if (scores := method.tuned(results.horizon))
        ]
    )


def _beside_persistence(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    simple = next((candidate for candidate in candidates if candidate.method.name == SIMPLE), None)
    return [replace(one, persistence=simple.over(one.origins) if simple is not None else None) for one in candidates]


def _best(candidates: Sequence[_Candidate]) -> _Candidate | None:
    """The one to jump with; None where none is good."""
    good = sorted((candidate for candidate in candidates if candidate.good), key=lambda candidate: candidate.rank)
    simple = next((candidate for candidate in good if candidate.method.name == SIMPLE), None)
    return simple if simple is not None and good[0].margin >= -SIMPLER else next(iter(good), None)


def _better(claimed: _Candidate | None, tuned: _Candidate | None) -> _Candidate | None:
    """The claimed one unless tuning is clearly better over the origins of both."""
    if claimed is None or tuned is None:
        return claimed or tuned
    own, rival = claimed.over(tuned.origins), tuned.over(claimed.origins)
    return tuned if own is not None and rival is not None and rival < own - SIMPLER else claimed


def _straight(movement: Movement, steps: Sequence[int]) -> str:
    value, walk = movement.straightness, walk_straightness(steps)
    return f"{value:.2f} (line 1, random walk {walk:.2f})" if value is not None else "unknown"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
