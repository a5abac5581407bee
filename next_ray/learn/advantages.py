"""Group-relative advantages. Pure; numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from next_ray.config import AlgorithmSection

STD_EPSILON = 1e-6


def group_advantages(rewards: Sequence[Sequence[float]], cfg: AlgorithmSection) -> tuple[tuple[float, ...], ...]:
    """Turn rewards [P][G] into advantages [P][G]: GRPO's `(R - mean) / (std + 1e-6)`, std unbiased.

    A group whose rewards are all equal (one sample included) gets exactly 0.
    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.2.
    """
    if cfg.name != "grpo":
        raise ValueError(f"unknown algorithm {cfg.name!r}")
    return tuple(_grpo(group) for group in rewards)


def _grpo(group: Sequence[float]) -> tuple[float, ...]:
    if len(set(group)) <= 1:
        return (0.0,) * len(group)
    values = np.asarray(group, dtype=np.float64)
    centred = values - values.mean()
    return tuple(float(x) for x in centred / (values.std(ddof=1) + STD_EPSILON))
