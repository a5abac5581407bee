"""Warnings about training: given at their limit, once until the cause has passed, and not by chance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import numpy as np
import pytest

from next_ray.alarms import observe
from next_ray.config import AlarmSection
from next_ray.types import StepRecord

CFG = AlarmSection(window=4)
USUAL = {"entropy": 0.8, "truncated_fraction": 0.1, "mismatch_abs": 0.02, "trained_tokens": 100.0}


def step(reward: float = 0.5, **metrics: float) -> StepRecord:
    return StepRecord(1, 1, reward, 100, {}, {**USUAL, **metrics})


def given(records: Iterable[StepRecord], cfg: AlarmSection = CFG) -> list[tuple[int, str]]:
    """Number of the step, from 1, and name of each alarm; what is remembered goes through JSON each time."""
    state, found = {}, []
    for i, record in enumerate(records, start=1):
        observed = observe(json.loads(json.dumps(state)), record, cfg)
        state = observed.state
        found += [(i, alarm.name) for alarm in observed.alarms]
        assert observed.num_in_force == len(state["in_force"])
    return found


def test_an_ordinary_run_is_quiet() -> None:
    assert given(step(0.3 + 0.02 * i, entropy=0.8 - 0.02 * i) for i in range(30)) == []


def test_a_collapse_of_the_reward() -> None:
    cfg = AlarmSection(window=10)
    rising, low, again = [step(0.05 * i) for i in range(1, 13)], [step(0.1)] * 20, [step(0.5)] * 12
    assert given([*rising, *low], cfg) == [(21, "reward")], "(0.6 + 9 x 0.1) / 10 is the first below half of the best, 0.375"
    assert given([*rising, *low, *again, *low], cfg) == [(21, "reward"), (51, "reward")]


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_collapse(seed: int) -> None:
    """Rewards near nothing halve by chance all the time."""
    rng = np.random.default_rng(seed)
    assert given((step(reward) for reward in rng.binomial(512, 0.004, 500) / 512), AlarmSection()) == []


def test_rewards_that_are_not_positive_have_no_share_to_lose() -> None:
    assert given([step(-0.2)] * 5 + [step(-1.0)] * 10) == []


def test_a_collapse_of_the_entropy_is_against_the_first_steps() -> None:
    fading = [step(entropy=0.8 * 0.7**i) for i in range(30)]
    (found,) = given(fading)
    window = [sum(0.8 * 0.7**j for j in range(i - 3, i + 1)) / 4 for i in range(3, 30)]
    assert found == (4 + next(i for i, mean in enumerate(window) if mean <= 0.1 * window[0]), "entropy")


def test_steps_that_trained_nothing_or_without_numbers_tell_nothing() -> None:
    nothing = step(entropy=0.0, trained_tokens=0.0)
    assert given([step()] * 5 + [nothing] * 10) == []
    assert given([step()] * 5 + [step(math.nan, entropy=math.inf, mismatch_abs=math.nan)] * 10) == []


def test_completions_that_are_cut() -> None:
    shares = [0.1, 0.1, 0.9, 0.9, 0.9, 0.45, 0.45, 0.45, 0.45, 0.6, 0.6, 0.6, 0.6]
    assert given(step(truncated_fraction=share) for share in shares) == [(4, "length")], (
        "0.45 is not far enough below the limit to forget it"
    )
    assert given(step(truncated_fraction=share) for share in [*shares, *[0.0] * 4, *[1.0] * 4]) == [(4, "length"), (19, "length")]


def test_engine_and_learner_drift_apart() -> None:
    assert given([step()] * 4 + [step(mismatch_abs=0.09)] * 8) == [(8, "mismatch")]
    assert given([step(mismatch_abs=1e-7)] * 4 + [step(mismatch_abs=1e-3)] * 8) == [], "grown ten thousand times and still harmless"


def test_messages_say_what_to_do() -> None:
    state, messages = {}, []
    for record in [step()] * 4 + [step(0.0, entropy=0.01, truncated_fraction=0.9, mismatch_abs=0.5)] * 4:
        observed = observe(state, record, CFG)
        state, messages = observed.state, [*messages, *observed.alarms]
    assert sorted(alarm.name for alarm in messages) == ["entropy", "length", "mismatch", "reward"]
    for alarm in messages:
        assert "algorithm." in alarm.message
    assert observed.num_in_force == 4


def test_another_window_after_a_resume_is_taken_up() -> None:
    state = {}
    for _ in range(6):
        state = observe(state, step(), AlarmSection(window=6)).state
    for window in (3, 8):
        observed = observe(state, step(), AlarmSection(window=window))
        assert not observed.alarms and len(observed.state["recent"]["reward"]) == min(window, 7)
