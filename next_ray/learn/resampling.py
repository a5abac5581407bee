"""Dynamic sampling: groups of equal rewards are replaced by groups of further prompts (DAPO, arXiv 2503.14476, eq. 11). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from next_ray.types import Scores, Shard


def num_equal(rewards: Sequence[Sequence[float]]) -> int:
    """Groups without a signal: all rewards equal."""
    return sum(len(set(group)) <= 1 for group in rewards)


def pick_groups(rounds: Sequence[tuple[Sequence[Shard], Scores]], num_groups: int) -> tuple[list[Shard], Scores]:
    """`num_groups` groups of all rounds: those with unequal rewards first, then the others, earlier ones before later ones.

    So a batch has its full size also when the rounds did not bring enough, and equals DAPO's when they did. Verdicts are those of
    every answer that was judged; groups keep the order in which they were sampled.
    """
    scores = Scores.joined([scores for _, scores in rounds])
    rewards = scores.rewards
    ranked = sorted(range(len(rewards)), key=lambda i: (len(set(rewards[i])) <= 1, i))
    picked = set(ranked[:num_groups])
    shards: list[Shard] = []
    start = 0
    for shard in (shard for found, _ in rounds for shard in found):
        places = [g for g in range(len(shard.sizes)) if start + g in picked]
        start += len(shard.sizes)
        if places:
            shards.append(replace(shard, sizes=tuple(shard.sizes[g] for g in places), chosen=tuple(shard.places[g] for g in places)))
    kept = sorted(picked)
    rows = {"rewards": tuple(rewards[i] for i in kept), "correct": tuple(scores.accuracy[i] for i in kept)}
    return shards, replace(scores, samples=rounds[0][1].samples, **rows)
