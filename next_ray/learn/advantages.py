"""From rewards to advantages. Pure; numpy only.

Shape legend: P prompts, G samples of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from next_ray.config import AlgorithmSection
from next_ray.config.algorithms import Advantage
from next_ray.types import GroupSize, Shard

STD_EPSILON = 1e-6
WHITENING_EPSILON = 1e-8


def batch_advantages(
    rewards: Sequence[Sequence[float]], shards: Sequence[Shard], cfg: AlgorithmSection, max_response_tokens: int
) -> tuple[tuple[float | None, ...], ...]:
    """All that `algorithm` makes of a batch's rewards [P][G]: punish length, compare, whiten, filter; None: leave out of the loss.

    `shards` hold the groups in the order of `rewards`. With the KL in the reward advantages are not whitened yet: the
    learner, which knows the KL, does it.
    """
    sizes = [size for shard in shards for size in shard.sizes]
    shaped = [
        [r - overlong_punishment(n, cfg, max_response_tokens) for r, n in zip(group, size.completion_tokens, strict=True)]
        for group, size in zip(rewards, sizes, strict=True)
    ]
    lengths = [_kept_lengths(size, cfg) for size in sizes]
    values = group_advantages(shaped, cfg)
    if cfg.recipe.is_whitened and not cfg.has_kl_reward:
        values = whitened(values, lengths)
    return tuple(
        tuple(None if n is None else value for value, n in zip(group, kept, strict=True))
        for group, kept in zip(values, lengths, strict=True)
    )


def _kept_lengths(size: GroupSize, cfg: AlgorithmSection) -> list[int | None]:
    """Completion lengths, None for those that `overlong_filter` leaves out."""
    return [None if cfg.overlong_filter and cut else n for n, cut in zip(size.completion_tokens, size.truncated, strict=True)]


def overlong_punishment(length: int, cfg: AlgorithmSection, max_response_tokens: int) -> float:
    """What a completion of `length` tokens loses: 0 up to `max - cache`, then linear up to `overlong_penalty` at `max`.

    Source: DAPO (arXiv 2503.14476), eq. 13.
    """
    cache = cfg.overlong_cache_tokens
    if cache is None:
        cache = int(cfg.recipe.overlong_share * max_response_tokens)
    if cache == 0:
        return 0.0
    return cfg.overlong_penalty * min(1.0, max(0.0, (length - (max_response_tokens - cache)) / cache))


def group_advantages(rewards: Sequence[Sequence[float]], cfg: AlgorithmSection) -> tuple[tuple[float, ...], ...]:
    """Compare the rewards [P][G] of each group, or leave them as they are (whitened-return).

    group-std: `(R - mean) / (std + 1e-6)`, std unbiased (DeepSeekMath, arXiv 2402.03300, section 4.1.2). group-mean and
    whitened-group-mean: `R - mean` (Dr.GRPO, 2503.20783, section 3.2; REINFORCE++-baseline, 2501.03262). leave-one-out:
    `G / (G - 1) (R - mean)`, R less the mean of the others (RLOO, 2402.14740, eq. 8). whitened-return: R, the undiscounted
    return of every token when the reward comes at the end. Compared groups of equal rewards (one sample included) get exactly 0.
    """
    kind = cfg.recipe.advantage
    if kind == "whitened-return":
        return tuple(tuple(float(r) for r in group) for group in rewards)
    return tuple(_compared(group, kind) for group in rewards)


def _compared(group: Sequence[float], kind: Advantage) -> tuple[float, ...]:
    if len(set(group)) <= 1:
        return (0.0,) * len(group)
    values = np.asarray(group, dtype=np.float64)
    centred = values - values.mean()
    if kind == "group-std":
        centred = centred / (values.std(ddof=1) + STD_EPSILON)
    elif kind == "leave-one-out":
        centred = centred * (len(group) / (len(group) - 1))
    return tuple(float(x) for x in centred)


def whitened(values: Sequence[Sequence[float]], lengths: Sequence[Sequence[int | None]]) -> tuple[tuple[float, ...], ...]:
    """`(value - mean) / (std + 1e-8)` over all tokens of the batch: a completion's value counts once for each of its tokens.

    `lengths` [P][G] are completion lengths, None for completions that do not count. Values that are all equal become exactly
    0. Source: REINFORCE++ (arXiv 2501.03262), global advantage normalisation; std is the population's.
    """
    flat = np.array([v for group in values for v in group], dtype=np.float64)
    weights = np.array([n or 0 for group in lengths for n in group], dtype=np.float64)
    counted = flat[weights > 0]
    if len(counted) == 0 or np.all(counted == counted[0]):
        return tuple((0.0,) * len(group) for group in values)
    mean = np.average(flat, weights=weights)
    deviation = np.sqrt(np.average((flat - mean) ** 2, weights=weights)) + WHITENING_EPSILON
    return tuple(tuple(float((v - mean) / deviation) for v in group) for group in values)
