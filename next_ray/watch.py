"""Was the jump a mistake? Training accuracy since a jump against that of as many steps before it. Pure.

What a step's prompts earned is kept as `[number, sum, sum of squares]` of the prompts' accuracies, JSON that travels with checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from next_ray.config import AfterJumpSection

Sums = list[float]
"""Of one step: number of prompts, sum of their accuracies, sum of the squares."""


@dataclass(frozen=True)
class Fall:
    """Mean accuracy of the `steps` steps before a jump and of those since, and the probability of such a fall when nothing has changed."""

    steps: int
    before: float
    since: float
    p_value: float


def sums_of(accuracies: Sequence[float]) -> Sums:
    """A step's prompts, each with the share of its completions that are correct."""
    return [float(len(accuracies)), math.fsum(accuracies), math.fsum(a * a for a in accuracies)]


def is_watched(jump: Mapping[str, Any], cfg: AfterJumpSection) -> bool:
    """Whether the steps since a jump are still compared with those before it."""
    return bool(jump.get("before")) and "rolled_back" not in jump and len(jump.get("since", ())) < cfg.watch_steps


def fall(before: Sequence[Sums], since: Sequence[Sums]) -> Fall:
    """Compare the steps since a jump with as many before it.

    Prompts are the unit: the samples of one are alike, so that its accuracy counts once, whatever the number of samples. If nothing
    has changed, which prompt was drawn before the jump and which after it is arbitrary; the difference of the two means over all
    exchanges has mean 0 and variance `s^2 (1/m + 1/n)`, s^2 the variance of all m + n accuracies (unbiased). It is taken as normal:
    with m = n its distribution is symmetric, however lopsided the accuracies are. Source: the normal approximation of the
    two-sample permutation test (Lehmann and Romano, Testing Statistical Hypotheses, section 15.2).
    """
    recent = before[-len(since) :]
    m, sum_before, squares_before = (math.fsum(column) for column in zip(*recent, strict=True))
    n, sum_since, squares_since = (math.fsum(column) for column in zip(*since, strict=True))
    first, second = sum_before / m, sum_since / n
    mean = (sum_before + sum_since) / (m + n)
    variance = max(0.0, squares_before + squares_since - (m + n) * mean * mean) / max(1.0, m + n - 1)
    deviation = math.sqrt(variance * (1 / m + 1 / n))
    p_value = 0.5 * math.erfc((first - second) / deviation / math.sqrt(2)) if deviation > 1e-12 else 1.0
    return Fall(len(since), first, second, p_value)


def found_bad(jump: Mapping[str, Any], cfg: AfterJumpSection) -> Fall | None:
    """The fall of accuracy since a jump, when it is no chance any more.

    It is looked for after every one of `watch_steps` steps, so each look takes its share of `watch_level` (Bonferroni): the chance that
    any of them takes back a jump that changed nothing is at most that.
    """
    since, before = jump.get("since", ()), jump.get("before", ())
    if not since or not before or "rolled_back" in jump:
        return None
    found = fall(before, since)
    return found if found.p_value <= cfg.watch_level / max(1, cfg.watch_steps) else None
