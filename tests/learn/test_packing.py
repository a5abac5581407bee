from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from next_ray.errors import StaleCompletionError
from next_ray.learn.packing import Versions, plan_update
from next_ray.types import GroupSize, Ref, SampleIndex, Shard

SEVEN = Versions(7, 7)


def size(prompt, completions, version=7):
    n = len(completions)
    return GroupSize(prompt, tuple(completions), (version,) * n, (False,) * n)


@st.composite
def problems(draw):
    shards, advantages = [], []
    for s in range(draw(st.integers(0, 3))):
        sizes = []
        for _ in range(draw(st.integers(0, 5))):
            completions = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
            sizes.append(size(draw(st.integers(1, 20)), completions))
            advantages.append(tuple(draw(st.sampled_from([0.0, 1.0, -0.5])) for _ in completions))
        shards.append(Shard(Ref(f"shard {s}"), tuple(sizes)))
    return shards, advantages


@given(problems(), st.integers(1, 4), st.one_of(st.none(), st.integers(1, 4)), st.integers(50, 200), st.booleans())
def test_plan_properties(problem, ranks, per_mini, budget, drop):
    shards, advantages = problem
    plan = plan_update(shards, advantages, SEVEN, ranks, per_mini, budget, drop)
    where = [(s, g) for s, shard in enumerate(shards) for g in range(len(shard.sizes))]
    advantage_of = {SampleIndex(s, g, i): a for (s, g), row in zip(where, advantages, strict=True) for i, a in enumerate(row)}
    assert [ref.value for ref in plan.shards] == [f"shard {s}" for s in range(len(shards))]
    step = per_mini or max(1, len(where))
    assert len(plan.mini_batches) == -(-len(where) // step)
    for m, mini in enumerate(plan.mini_batches):
        members = where[m * step : (m + 1) * step]
        assert mini.num_sequences == sum(len(shards[s].sizes[g].completion_tokens) for s, g in members)
        assert mini.num_tokens == sum(sum(shards[s].sizes[g].completion_tokens) for s, g in members)
        assert len(mini.per_rank) == ranks
        assert len({len(rank) for rank in mini.per_rank}) == 1
        seen: Counter[SampleIndex] = Counter()
        loads = []
        for rank in mini.per_rank:
            load = 0
            for micro in rank:
                assert len(micro.samples) == len(micro.advantages)
                sizes = [(shards[i.shard].sizes[i.group], i.sample) for i in micro.samples]
                lengths = [group.prompt_tokens + group.completion_tokens[sample] for group, sample in sizes]
                assert lengths == sorted(lengths, reverse=True)
                assert not lengths or max(lengths) * len(lengths) <= budget
                assert [advantage_of[i] for i in micro.samples] == list(micro.advantages)
                seen.update(micro.samples)
                load += sum(lengths)
            loads.append(load)
        expected = {i for i, a in advantage_of.items() if (i.shard, i.group) in members and not (drop and a == 0.0)}
        assert seen == Counter(expected)
        assert max(loads) - min(loads) <= 50  # the longest sample there is


def test_sample_over_the_budget_is_alone():
    shards = [Shard(Ref(0), (size(10, [100, 3, 3]),))]
    plan = plan_update(shards, [(1.0, 1.0, 1.0)], SEVEN, 1, None, 64, False)
    assert [len(micro.samples) for micro in plan.mini_batches[0].per_rank[0]] == [1, 2]


def test_mini_batch_without_signal_has_no_samples():
    plan = plan_update([Shard(Ref(0), (size(4, [2, 2]),))], [(0.0, 0.0)], SEVEN, 2, None, 64, True)
    assert plan.mini_batches[0].per_rank == ((), ())
    assert plan.mini_batches[0].num_sequences == 2


def test_stale_sizes_are_refused():
    with pytest.raises(StaleCompletionError, match="version 6"):
        plan_update([Shard(Ref(0), (size(4, [2], version=6),))], [(1.0,)], SEVEN, 1, None, 64, True)


def test_versions_that_rollout_ahead_allows_are_taken_and_named_in_the_plan():
    shards = [Shard(Ref(0), (size(4, [2], version=6),))]
    plan = plan_update(shards, [(1.0,)], Versions(6, 7), 1, None, 64, True)
    assert (plan.oldest_version, plan.version) == (6, 7)
    with pytest.raises(StaleCompletionError, match="versions 7 to 8"):
        plan_update(shards, [(1.0,)], Versions(7, 8), 1, None, 64, True)
    with pytest.raises(StaleCompletionError, match="versions 4 to 5"):
        plan_update(shards, [(1.0,)], Versions(4, 5), 1, None, 64, True)


@pytest.mark.parametrize("advantages", [[], [(1.0,), (1.0,)], [(1.0, 2.0)]])
def test_wrong_shapes_are_refused(advantages):
    with pytest.raises(ValueError, match="advantages"):
        plan_update([Shard(Ref(0), (size(4, [2]),))], advantages, SEVEN, 1, None, 64, True)


def test_short_samples_of_a_prompt_come_together():
    """A micro batch computes each prompt once, so two prompts of four samples are two batches and not four halves."""
    shards = [Shard(Ref(0), (size(40, [5, 9, 7, 3]), size(40, [6, 8, 4, 2])))]
    plan = plan_update(shards, [(1.0,) * 4] * 2, SEVEN, 1, None, 200, False)
    assert [{i.group for i in micro.samples} for micro in plan.mini_batches[0].per_rank[0]] == [{0}, {1}]


def test_long_samples_come_by_length():
    shards = [Shard(Ref(0), (size(40, [900, 300, 900, 300]), size(40, [900, 300, 900, 300])))]
    plan = plan_update(shards, [(1.0,) * 4] * 2, SEVEN, 1, None, 4000, False)
    assert [{i.sample for i in micro.samples} for micro in plan.mini_batches[0].per_rank[0]] == [{0, 2}, {1, 3}]
