"""Who may jump: a paired test of every candidate against the last checkpoint, on the same prompts.

Shape legend: P prompts, S samples, C candidates, F sign flips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from next_ray.config import GateSection
from next_ray.types import GateDecision, GateRow

NUM_FLIPS = 9999
"""Random sign flips of a Monte Carlo test; p-values are at least 1 / (1 + NUM_FLIPS)."""

EXHAUSTIVE_PROMPTS = 13
"""Up to this many prompts all 2^P sign flips are taken and the p-values are exact."""

TIE = 1e-9
"""Gains closer than this are equal: they are multiples of 1 / (P S) computed in floating point."""

STATISTIC_TIE = np.float32(1e-5)
"""Statistics closer than this are equal, and count as reached; well above float32 rounding, well below their spacing."""

Matrix = Sequence[Sequence[float]] | np.ndarray
"""Rewards [P][S]."""


def decide(baseline: Matrix, candidates: Mapping[str, Matrix], cfg: GateSection, seed: int) -> GateDecision:
    """Accept the best candidate that a one-sided paired test, corrected for their number, says is better than the baseline.

    The test flips the signs of the per-prompt differences of mean accuracy d `[P]`; the statistic sum(d) / sqrt(sum(d^2)) is
    compared with the largest over all candidates under the same flips (Westfall and Young 1993, max-T), so `level` bounds the
    chance to accept anything when nothing is better. Accepted: adjusted p <= cfg.level, gain > 0 and gain >= cfg.min_gain; of
    several the largest gain, then the smallest p, then the first named. With cfg.kind "none", cfg.fixed is taken untested.

    Args:
        baseline: rewards `[P][S]` of the last checkpoint.
        candidates: name to rewards `[P][S']`, the same prompts in the same order.
        cfg: the gate's settings.
        seed: seed of the sign flips; the same input and seed give the same decision.

    Raises:
        ValueError: matrices that are not rectangular, finite, or of the same prompts.
    """
    if cfg.kind == "none" and not len(baseline):
        return _untested(cfg, candidates, None, ())
    base = prompt_means(baseline, "baseline")
    means = {name: prompt_means(matrix, name) for name, matrix in candidates.items()}
    for name, mean in means.items():
        if len(mean) != len(base):
            raise ValueError(f"candidate {name!r} was judged on {len(mean)} prompts, the baseline on {len(base)}")
    accuracy = float(base.mean())
    if not means:
        return GateDecision(None, "No candidate was proposed, so training goes on from the last checkpoint.", accuracy, ())
    differences = np.stack([mean - base for mean in means.values()])
    p_values = max_t_p_values(differences, seed)
    gains = differences.mean(axis=1)
    rows = tuple(
        GateRow(name, float(mean.mean()), float(gain), float(p))
        for (name, mean), gain, p in zip(means.items(), gains, p_values, strict=True)
    )
    if cfg.kind == "none":
        return _untested(cfg, candidates, accuracy, rows)
    return _tested(cfg, accuracy, rows)


def prompt_means(matrix: Matrix, label: str) -> np.ndarray:
    """Mean reward of every prompt, float64 [P], of a rectangular finite matrix [P][S]; ValueError names `label` otherwise."""
    try:
        values = np.asarray(matrix, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{label}: every prompt needs the same number of samples") from error
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{label}: rewards of shape [prompts][samples] are needed, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{label}: rewards hold NaN or infinity")
    return values.mean(axis=1)


def max_t_p_values(differences: np.ndarray, seed: int) -> np.ndarray:
    """Adjusted one-sided p-values [C] of differences [C, P] under joint sign flips; 1 for a candidate that never differs.

    p = share of flips (the observed one included) whose largest statistic over candidates reaches the candidate's own.
    """
    size = np.sqrt(np.sum(differences**2, axis=1))
    scaled = differences / np.where(size > 0, size, 1.0)[:, None]
    observed = scaled.sum(axis=1)
    num_prompts = differences.shape[1]
    exhaustive = num_prompts <= EXHAUSTIVE_PROMPTS
    bits = _all_bits(num_prompts) if exhaustive else _random_bits(num_prompts, seed)
    statistics = bits @ (2.0 * scaled.T).astype(np.float32) - observed.astype(np.float32)
    largest = statistics.max(axis=1)
    reached = np.sum(largest[:, None] >= observed.astype(np.float32) - STATISTIC_TIE, axis=0)
    p_values = reached / len(bits) if exhaustive else (1 + reached) / (1 + len(bits))
    return np.where(size > 0, p_values, 1.0)


def _all_bits(num_prompts: int) -> np.ndarray:
    return ((np.arange(2**num_prompts)[:, None] >> np.arange(num_prompts)) & 1).astype(np.float32)


def _random_bits(num_prompts: int, seed: int) -> np.ndarray:
    raw = np.frombuffer(np.random.default_rng(seed).bytes(NUM_FLIPS * ((num_prompts + 7) // 8)), dtype=np.uint8)
    return np.unpackbits(raw.reshape(NUM_FLIPS, -1), axis=1)[:, :num_prompts].astype(np.float32)


def _tested(cfg: GateSection, accuracy: float, rows: tuple[GateRow, ...]) -> GateDecision:
    best = min(rows, key=lambda row: (-round(row.difference / TIE), row.p_value))
    passing = [row for row in rows if row.p_value <= cfg.level and row.difference > TIE and row.difference >= cfg.min_gain - TIE]
    if passing:
        taken = min(passing, key=lambda row: (-round(row.difference / TIE), row.p_value))
        reason = (
            f"{taken.name} gains {taken.difference:+.3f} over the last checkpoint's {accuracy:.3f} "
            f"(adjusted p = {taken.p_value:.4f} <= {cfg.level:g})."
        )
        return GateDecision(taken.name, reason, accuracy, rows)
    gains = f"The best candidate, {best.name}, gains {best.difference:+.3f}"
    if best.difference <= TIE:
        why = f"No candidate is better than the last checkpoint's {accuracy:.3f}; {best.name} comes nearest with {best.difference:+.3f}."
    elif best.p_value > cfg.level:
        why = f"{gains}, which may be chance (adjusted p = {best.p_value:.4f} > {cfg.level:g})."
    else:
        why = f"{gains}, less than the {cfg.min_gain:g} that gate.min_gain asks for."
    return GateDecision(None, why, accuracy, rows)


def _untested(cfg: GateSection, candidates: Mapping[str, Matrix], accuracy: float | None, rows: tuple[GateRow, ...]) -> GateDecision:
    if cfg.fixed in candidates:
        return GateDecision(cfg.fixed, f"{cfg.fixed} is taken without a test, as gate.kind=none asks.", accuracy, rows)
    offered = ", ".join(candidates) or "nothing"
    return GateDecision(None, f"gate.fixed={cfg.fixed} was not proposed (proposed: {offered}).", accuracy, rows)
