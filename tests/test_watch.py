"""Whether a jump was a mistake: against the exact permutation test, and how often it is said of jumps that changed nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from next_ray.config import AfterJumpSection
from next_ray.watch import Fall, fall, found_bad, is_watched, sums_of


def exact(before: list[float], since: list[float]) -> float:
    """One-sided p-value over all ways to call as many of the prompts `since`; half of those that tie count."""
    pool, size = np.array(before + since), len(since)
    sums = np.array([pool[list(chosen)].sum() for chosen in itertools.combinations(range(len(pool)), size)])
    observed = np.sum(since)
    return float(np.mean(sums < observed - 1e-9) + 0.5 * np.mean(np.abs(sums - observed) < 1e-9))


@pytest.mark.parametrize("seed", range(8))
def test_it_is_nearly_the_exact_permutation_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    skill = rng.beta(0.4, 0.4, 16) if seed % 2 else rng.beta(0.3, 2.0, 16)  # lopsided
    accuracies = (rng.binomial(4, skill) / 4).tolist()
    before, since = accuracies[:8], accuracies[8:]
    found = fall([sums_of(before)], [sums_of(since)])
    assert (found.before, found.since) == pytest.approx((np.mean(before), np.mean(since)))
    assert found.p_value == pytest.approx(exact(before, since), abs=0.03)


def test_only_as_many_steps_before_as_since_are_looked_at() -> None:
    before = [sums_of([0.0] * 4), sums_of([1.0, 0.5, 1.0, 0.5]), sums_of([1.0, 1.0, 0.5, 0.5])]
    found = fall(before, [sums_of([0.5] * 4), sums_of([0.25] * 4)])
    assert (found.steps, found.before, found.since) == (2, 0.75, 0.375)


@pytest.mark.parametrize("accuracies", [[0.0] * 4, [1.0] * 4])
def test_no_spread_is_no_fall(accuracies: list[float]) -> None:
    assert fall([sums_of(accuracies)], [sums_of(accuracies)]) == Fall(1, accuracies[0], accuracies[0], 1.0)


def share_taken_back(cfg: AfterJumpSection, runs: int, loss: float, prompts: int = 16, samples: int = 8) -> float:
    """Of simulated runs, each prompt with a skill of its own, and `loss` of it lost at the jump."""
    rng = np.random.default_rng(5)
    taken = 0
    for _ in range(runs):
        skill = rng.beta(0.5, 0.5, (2 * cfg.watch_steps, prompts))
        skill[cfg.watch_steps :] *= 1 - loss
        steps = [sums_of((row / samples).tolist()) for row in rng.binomial(samples, skill)]
        before, since = steps[: cfg.watch_steps], steps[cfg.watch_steps :]
        taken += any(found_bad({"before": before, "since": since[:m]}, cfg) is not None for m in range(1, cfg.watch_steps + 1))
    return taken / runs


def test_jumps_that_change_nothing_are_taken_back_at_most_as_often_as_the_level_says() -> None:
    assert 0.01 < share_taken_back(AfterJumpSection(watch_level=0.05), 2000, 0.0) < 0.05
    assert share_taken_back(AfterJumpSection(), 500, 0.0) <= 0.004


def test_jumps_that_lose_most_are_taken_back() -> None:
    assert share_taken_back(AfterJumpSection(), 200, 0.8) > 0.95


def test_what_is_watched() -> None:
    cfg, sums = AfterJumpSection(watch_steps=2), sums_of([0.5])
    assert is_watched({"before": [sums], "since": []}, cfg)
    assert is_watched({"before": [sums], "since": [sums]}, cfg)
    assert not is_watched({"before": [sums], "since": [sums, sums]}, cfg)
    assert not is_watched({"before": [sums], "since": [sums], "rolled_back": 9}, cfg)
    assert not is_watched({"step": 3}, cfg), "a jump of a run that did not keep accuracies"
    assert not is_watched({"before": [sums], "since": []}, AfterJumpSection(watch_steps=0))
