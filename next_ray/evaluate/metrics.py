"""Numbers that are reported: avg@k, pass@k, their intervals, and ICER.

Shape legend: P prompts, S samples, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from next_ray.types import Accuracy, EvaluationResult

Matrix = Sequence[Sequence[float]] | np.ndarray
"""Rewards [P][S] in 0..1; a sample is correct when its reward is 1."""

NUM_DRAWS = 2000
"""Bootstrap draws of an interval."""

COVERAGE = 0.95
"""Coverage of the intervals."""

DRAWS_PER_BLOCK = 4_000_000
"""Indices drawn at once, to bound memory on large sets."""


def avg_at_k(matrix: Matrix) -> float:
    """Mean reward over all samples of all prompts."""
    return float(_checked(matrix).mean())


def pass_at_k(matrix: Matrix, k: int) -> float:
    """Chance that at least one of k samples is correct, mean over prompts: unbiased 1 - C(S - c, k) / C(S, k) (Chen et al. 2021).

    Not best@k, which looks at particular samples. Raises ValueError when k is not in 1..S.
    """
    return float(pass_per_prompt(matrix, k).mean())


def bootstrap(per_prompt: np.ndarray, seed: int) -> Accuracy:
    """Mean of a per-prompt statistic [P] with its 95 % percentile interval over resampled prompts; seeded."""
    values = np.asarray(per_prompt, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"one value per prompt is needed, got shape {values.shape}")
    rng = np.random.default_rng(seed)
    block = max(1, DRAWS_PER_BLOCK // len(values))
    sizes = [min(block, NUM_DRAWS - start) for start in range(0, NUM_DRAWS, block)]
    means = np.concatenate([values[rng.integers(0, len(values), (size, len(values)))].mean(axis=1) for size in sizes])
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    mean = float(values.mean())
    return Accuracy(mean=mean, low=min(float(low), mean), high=max(float(high), mean))


def icer(steps: int, gain: float) -> float | None:
    """Training steps per accuracy point gained (gain 0.05 is five points), lower is better (NExt, section 5.1).

    None when nothing was gained: the ratio is not defined then, and must be reported as such.
    """
    return steps / (100.0 * gain) if gain > 0 else None


def evaluation(label: str, matrix: Matrix, temperature: float, seed: int) -> EvaluationResult:
    """avg@S and pass@S of one model on one set of rewards [P][S], with intervals and the temperature it was decoded at."""
    values = _checked(matrix)
    num_prompts, num_samples = values.shape
    return EvaluationResult(
        label=label,
        num_prompts=num_prompts,
        num_samples=num_samples,
        avg_at_k=bootstrap(values.mean(axis=1), seed),
        pass_at_k=bootstrap(pass_per_prompt(values, num_samples), seed),
        temperature=temperature,
        correct=tuple(tuple(float(x) for x in row) for row in values),
    )


def pass_per_prompt(matrix: Matrix, k: int) -> np.ndarray:
    """pass@k of every prompt, float64 [P]; see `pass_at_k`."""
    values = _checked(matrix)
    num_samples = values.shape[1]
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs k between 1 and the {num_samples} samples there are")
    wrong = np.sum(values < 1.0, axis=1)
    factors = (wrong[:, None] - np.arange(k)) / (num_samples - np.arange(k))
    return 1.0 - np.prod(np.maximum(factors, 0.0), axis=1)


def _checked(matrix: Matrix) -> np.ndarray:
    try:
        values = np.asarray(matrix, dtype=np.float64)
    except ValueError as error:
        raise ValueError("every prompt needs the same number of samples") from error
    if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
        raise ValueError(f"finite rewards of shape [prompts][samples] are needed, got shape {values.shape}")
    return values
