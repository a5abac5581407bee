import statistics
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from next_ray.config import AlgorithmSection
from next_ray.config.algorithms import RECIPES, AlgorithmName
from next_ray.learn.advantages import batch_advantages, group_advantages, overlong_punishment
from next_ray.types import GroupSize, Ref, Shard

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


def shards_of(lengths, truncated=None):
    cut = truncated or [[False] * len(group) for group in lengths]
    sizes = [GroupSize(3, tuple(n), (0,) * len(n), tuple(c)) for n, c in zip(lengths, cut, strict=True)]
    half = len(sizes) // 2
    return [Shard(Ref(0), tuple(sizes[:half])), Shard(Ref(1), tuple(sizes[half:]))]


def advantages(name, rewards, lengths, truncated=None, limit=10, **fields):
    return batch_advantages(rewards, shards_of(lengths, truncated), AlgorithmSection(name=name, **fields), limit)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dr-grpo", (-0.25, -0.25, -0.25, 0.75)), ("rloo", (-1 / 3, -1 / 3, -1 / 3, 1.0)), ("reinforce++", (0.0, 0.0, 0.0, 1.0))],
)
def test_other_advantages_by_hand(name, expected):
    assert group_advantages([(0.0, 0.0, 0.0, 1.0)], AlgorithmSection(name=name))[0] == pytest.approx(expected, abs=1e-12)


def test_an_advantage_can_be_chosen_by_itself():
    assert advantages("dapo", [(0.0, 1.0)], [(2, 2)], advantage="group-mean") == ((-0.5, 0.5),)


@pytest.mark.parametrize("name", ["reinforce++", "reinforce++-baseline"])
def test_whitening_counts_every_token(name):
    rewards, lengths = [(0.0, 1.0), (1.0, 3.0)], [(1, 4), (2, 5)]
    values = [r if name == "reinforce++" else r - statistics.fmean(group) for group in rewards for r in group]
    tokens = [v for v, n in zip(values, [1, 4, 2, 5], strict=True) for _ in range(n)]
    expected = [(v - statistics.fmean(tokens)) / statistics.pstdev(tokens) for v in values]
    got = [a for group in advantages(name, rewards, lengths) for a in group]
    assert got == pytest.approx(expected, rel=1e-6)


def test_whitening_of_equal_rewards_gives_exact_zeros():
    assert advantages("reinforce++", [(0.1, 0.1), (0.1, 0.1)], [(3, 1), (2, 7)]) == ((0.0, 0.0), (0.0, 0.0))


def test_with_the_kl_in_the_reward_the_learner_whitens():
    assert advantages("reinforce++", [(0.0, 1.0)], [(2, 3)], kl_coef=0.1, kl_in="reward") == ((0.0, 1.0),)


def test_overlong_punishment_by_hand():
    # limit 10, cache 4: none up to 6 tokens, a quarter more for each token after that
    cfg = AlgorithmSection(overlong_cache_tokens=4, overlong_penalty=2.0)
    assert [overlong_punishment(n, cfg, 10) for n in (0, 6, 7, 9, 10, 12)] == [0.0, 0.0, 0.5, 1.5, 2.0, 2.0]
    # dapo: a fifth of the limit
    assert [overlong_punishment(n, AlgorithmSection(name="dapo"), 10) for n in (8, 9, 10)] == [0.0, 0.5, 1.0]
    assert overlong_punishment(10, AlgorithmSection(name="dapo", overlong_cache_tokens=0), 10) == 0.0
    long, short = advantages("dr-grpo", [(1.0, 1.0)], [(10, 5)], overlong_cache_tokens=4)[0]
    assert (long, short) == (-0.5, 0.5)


def test_overlong_filter_leaves_truncated_completions_out():
    cut = [[False, True], [False, False]]
    result = advantages("dr-grpo", [(0.0, 1.0), (1.0, 0.0)], [(2, 3), (1, 1)], cut, overlong_filter=True)
    assert result == ((-0.5, None), (0.5, -0.5))
    # whitened over the four tokens that stay: 0, 0, 1, 0
    first, last = advantages("reinforce++", [(0.0, 9.0), (1.0, 0.0)], [(2, 3), (1, 1)], cut, overlong_filter=True)
    assert first[1] is None
    assert last == pytest.approx((0.75 / 0.1875**0.5, -0.25 / 0.1875**0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "what"),
    [({"kl_coef": 0.1, "kl_in": "reward"}, "kl_in=reward"), ({"name": "cispo", "dual_clip": 3.0}, "dual_clip")],
)
def test_settings_that_contradict_each_other_are_refused(fields, what):
    with pytest.raises(ValueError, match=what):
        AlgorithmSection(**fields)


def test_every_name_has_a_recipe():
    assert set(RECIPES) == set(get_args(AlgorithmName))
    assert AlgorithmSection(name="gspo", clip_low=0.0).recipe.clip_low == 0.0  # 0 is a choice, too
