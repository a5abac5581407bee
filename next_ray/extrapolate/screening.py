"""Which candidate is worth a test: successive halving on a few of the gate's prompts, so that a wide grid costs little.

All candidates answer a few prompts, the better half goes on to further ones, and so on; every round costs the same (Karnin et
al. 2013, "Almost optimal exploration in multi-armed bandits"). The one that is left is tested on the prompts that chose nothing,
so the test's level holds, and no correction for the number of candidates is needed.

Shape legend: C candidates, P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2


@dataclass(frozen=True)
class Round:
    """Every one of `num_candidates` answers the prompts `start..stop`; the best `kept` go on."""

    num_candidates: int
    start: int
    stop: int
    kept: int


def plan_rounds(num_candidates: int, num_prompts: int, budget: float) -> list[Round]:
    """The rounds of C candidates on P prompts that together cost about `budget` evaluations of one candidate on all P.

    None when there is nothing to choose from, the budget is 0, or so few prompts that the test would be left with less than half.
    """
    if num_candidates < 2 or budget <= 0:
        return []
    num_rounds = ceil(log2(num_candidates))
    rounds: list[Round] = []
    alive, start = num_candidates, 0
    for _ in range(num_rounds):
        stop = start + max(1, int(budget * num_prompts / (num_rounds * alive)))
        kept = ceil(alive / 2)
        rounds.append(Round(alive, start, stop, kept))
        alive, start = kept, stop
    return rounds if 2 * start <= num_prompts else []


def num_evaluations(num_candidates: int, num_prompts: int, budget: float) -> int:
    """Prompts answered in all: the rounds', and those of the test, which the last checkpoint takes too."""
    rounds = plan_rounds(num_candidates, num_prompts, budget)
    screened = sum(r.num_candidates * (r.stop - r.start) for r in rounds)
    tested = rounds[-1].kept if rounds else num_candidates
    return screened + (1 + tested) * (num_prompts - (rounds[-1].stop if rounds else 0))


def survivors(scores: Mapping[str, Sequence[float]], kept: int) -> list[str]:
    """The `kept` names with the highest sum of scores so far, in the order given; of equal ones the first named."""
    totals = {name: sum(values) for name, values in scores.items()}
    best = sorted(totals, key=lambda name: -round(totals[name], 9))[:kept]
    return [name for name in scores if name in best]
