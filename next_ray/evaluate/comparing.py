"""Two models on the same prompts: the difference, its interval, and whether it may be chance.

Shape legend: P prompts, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from next_ray.evaluate.metrics import Matrix, bootstrap
from next_ray.extrapolate.gate import max_t_p_values, prompt_means


@dataclass(frozen=True)
class Comparison:
    """Mean accuracy of the second model minus the first's, its 95 % bootstrap interval over prompts, and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def compare(first: Matrix, second: Matrix, seed: int) -> Comparison:
    """Compare rewards `[P][S]` and `[P][S']` of the same prompts in the same order.

    The test flips the signs of the per-prompt differences (exact up to 13 prompts); taking the larger of both directions makes the p-value
    two-sided. Raises ValueError for matrices that are malformed or of different prompts.
    """
    before, after = prompt_means(first, "the first model"), prompt_means(second, "the second model")
    if len(before) != len(after):
        raise ValueError(f"the first model was judged on {len(before)} prompts, the second on {len(after)}")
    differences = after - before
    interval = bootstrap(differences, seed)
    p_value = float(max_t_p_values(np.stack([differences, -differences]), seed).min())
    return Comparison(interval.mean, interval.low, interval.high, p_value)
