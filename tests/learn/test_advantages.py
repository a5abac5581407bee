import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from next_ray.config import AlgorithmSection
from next_ray.learn.advantages import group_advantages

CFG = AlgorithmSection()


def test_by_hand():
    # mean 1/4, unbiased variance (3 * (1/4)^2 + (3/4)^2) / 3 = 1/4, so std 1/2
    ((low, _, _, high),) = group_advantages([(0.0, 0.0, 0.0, 1.0)], CFG)
    assert low == pytest.approx(-0.25 / (0.5 + 1e-6), rel=1e-12)
    assert high == pytest.approx(0.75 / (0.5 + 1e-6), rel=1e-12)


@pytest.mark.parametrize("rewards", [(0.0, 0.0), (1.0, 1.0, 1.0), (0.1, 0.1, 0.1, 0.1, 0.1, 0.1), (0.7,), ()])
def test_equal_rewards_give_exact_zeros(rewards):
    assert group_advantages([rewards], CFG) == ((0.0,) * len(rewards),)


@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=9), max_size=5))
def test_agrees_with_the_statistics_module(rewards):
    for group, result in zip(rewards, group_advantages(rewards, CFG), strict=True):
        if len(set(group)) > 1:
            expected = [(r - statistics.fmean(group)) / (statistics.stdev(group) + 1e-6) for r in group]
            assert result == pytest.approx(expected, rel=1e-6, abs=1e-6)
