"""maj@k: what a majority vote over k samples gets right (Wang et al. 2022, self-consistency).

Shape legend: P prompts, S samples.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb

MAX_SUBSETS = 2000
"""Up to this many choices of k samples are all counted; of more, so many are drawn, seeded."""


def majority(answers: Sequence[str | None]) -> int | None:
    """Index of the first sample that gave the most frequent answer; of equally frequent ones the first seen. None: nobody answered."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None
    most = max(votes.values())
    return next(index for index, answer in enumerate(answers) if answer is not None and votes[answer] == most)


def maj_per_prompt(answers: Sequence[Sequence[str | None]], correct: Sequence[Sequence[float]], k: int, seed: int) -> list[float]:
    """Chance that the vote of k of the S samples is correct, [P].

    The mean over all choices of k samples in their order, exact up to `MAX_SUBSETS` choices. Samples without an answer do not vote, and
    where nobody votes the prompt is lost.

    Args:
        answers: normalised answers [P][S]; None where none was given.
        correct: 1 for a correct sample, [P][S].
        k: voters.
        seed: of the choices that are drawn where there are too many.

    Raises:
        ValueError: k is not in 1..S, or the shapes differ.
    """
    if [len(row) for row in answers] != [len(row) for row in correct]:
        raise ValueError("answers and rewards have different shapes")
    if smallest := [len(row) for row in answers if not 1 <= k <= len(row)]:
        raise ValueError(f"maj@{k} needs k between 1 and the {smallest[0]} samples there are")
    found: list[float] = []
    for number, (given, right) in enumerate(zip(answers, correct, strict=True)):
        wins = [_wins([given[i] for i in chosen], [right[i] for i in chosen]) for chosen in _choices(len(given), k, f"{seed} {number}")]
        found.append(sum(wins) / len(wins))
    return found


def _wins(answers: Sequence[str | None], correct: Sequence[float]) -> bool:
    winner = majority(answers)
    return winner is not None and correct[winner] >= 1.0


def _choices(num_samples: int, k: int, seed: str) -> Iterator[Sequence[int]]:
    if comb(num_samples, k) <= MAX_SUBSETS:
        yield from combinations(range(num_samples), k)
        return
    draw = random.Random(seed)
    for _ in range(MAX_SUBSETS):
        yield sorted(draw.sample(range(num_samples), k))
