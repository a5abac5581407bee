from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_ray.delta.sharding import dense_cost, module_cost, shard_modules, trajectory_cost


def test_golden_example():
    costs = {"a": 7.0, "b": 6.0, "c": 5.0, "d": 4.0, "e": 3.0}
    assert shard_modules(costs, 2) == [["a", "b"], ["c", "d", "e"]]  # longest first alone: 14 and 11
    assert shard_modules(dict(reversed(costs.items())), 2) == [["a", "b"], ["c", "d", "e"]]


def test_more_workers_than_modules():
    assert shard_modules({"a": 1.0}, 3) == [["a"], [], []]
    assert shard_modules({}, 2) == [[], []]
    with pytest.raises(ValueError, match="num_workers"):
        shard_modules({"a": 1.0}, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_partition_within_four_thirds_of_the_optimum(sizes, workers):
    costs = {f"m{i}": float(size) for i, size in enumerate(sizes)}
    plan = shard_modules(costs, workers)
    assert sorted(name for shard in plan for name in shard) == sorted(costs)
    makespan = max(sum(costs[name] for name in shard) for shard in plan)
    best = min(
        max(sum(size for size, owner in zip(sizes, owners, strict=True) if owner == worker) for worker in range(workers))
        for owners in product(range(workers), repeat=len(sizes))
    )
    assert makespan <= (4 / 3 - 1 / (3 * workers)) * best + 1e-9


def test_cost_grows_with_size_and_rank_squared():
    assert module_cost(6, 4, 2) == 40.0
    assert module_cost(6, 4, 4) == 160.0


def test_costs_of_a_trajectory_grow_with_what_is_read_and_multiplied():
    assert trajectory_cost(600, 400, 8, 15) == 15 * trajectory_cost(600, 400, 8, 1)
    small, large = trajectory_cost(0, 0, 8, 1), trajectory_cost(1000, 0, 8, 1)
    assert small > 0
    assert trajectory_cost(2000, 0, 8, 1) - large == large - small
    assert dense_cost(6, 4, 3) == 72.0
