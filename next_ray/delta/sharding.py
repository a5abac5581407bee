"""What triplets cost, and which delta worker takes which modules. Without numpy: estimates read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from next_ray.types import CheckpointTriplets

CORE_SHARE = 25
"""Measured at rank 64 with 15 checkpoints and one thread; `python -m benchmarks sharding` reports how well it holds."""

GRAM_BATCH_BYTES = 256 * 2**20
"""Float64 factors that one Gram batch may hold."""

MULTIFIT_ROUNDS = 12
"""Halvings of the interval in which the makespan is sought."""


def module_cost(out_features: int, in_features: int, rank: int) -> float:
    """Relative cost of one module's triplet from its factors: the QR of [O, 2R] and [I, 2R] dominates, O((O + I) R^2)."""
    return float((out_features + in_features) * rank * rank)


def trajectory_cost(out_features: int, in_features: int, rank: int, num_checkpoints: int) -> float:
    """Relative cost of all triplets of one module of a trajectory of factors (`trajectory_triplets.py`).

    Products over the long sides, (O + I) R^2 a checkpoint, and the R x R cores, which cost as much as `CORE_SHARE` R more features.
    """
    return float((out_features + in_features + CORE_SHARE * rank) * rank * rank * num_checkpoints)


def dense_cost(out_features: int, in_features: int, num_checkpoints: int) -> float:
    """Relative cost of all triplets of one module of a trajectory of full matrices: reading and products, O I a checkpoint."""
    return float(out_features * in_features * num_checkpoints)


def shard_modules(costs: Mapping[str, float], num_workers: int) -> list[list[str]]:
    """Split modules over workers: the better of longest processing time first (Graham 1969, at most 4/3 of the best makespan) and
    MULTIFIT (Coffman, Garey and Johnson 1978, at most 13/11 of it).

    Deterministic: equal costs go by name, equal loads to the lower worker. Workers beyond the number of modules stay empty.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    order = sorted(costs, key=lambda module: (-costs[module], module))
    shards: list[list[str]] = [[] for _ in range(num_workers)]
    loads = [0.0] * num_workers
    for name in order:
        worker = min(range(num_workers), key=lambda index: (loads[index], index))
        shards[worker].append(name)
        loads[worker] += costs[name]
    low, high = max([sum(costs.values()) / num_workers, *costs.values()]), max(loads)
    for _ in range(MULTIFIT_ROUNDS):
        capacity = (low + high) / 2
        fitted = _first_fit(order, costs, capacity, num_workers)
        if fitted is None:
            low = capacity
        else:
            shards, high = fitted, max(sum(costs[name] for name in shard) for shard in fitted)
    return shards


def _first_fit(order: Sequence[str], costs: Mapping[str, float], capacity: float, num_workers: int) -> list[list[str]] | None:
    """Each module to the first worker with room for it; None when there is none."""
    shards: list[list[str]] = [[] for _ in range(num_workers)]
    loads = [0.0] * num_workers
    for name in order:
        worker = next((index for index, load in enumerate(loads) if load + costs[name] <= capacity), None)
        if worker is None:
            return None
        shards[worker].append(name)
        loads[worker] += costs[name]
    return shards


def merge_shards(shards: Sequence[CheckpointTriplets]) -> CheckpointTriplets:
    """One checkpoint's triplets from all workers' shards, modules by name; refuses shards of different checkpoints or modules twice."""
    heads = {(shard.index, shard.step) for shard in shards}
    if len(heads) != 1:
        raise ValueError(f"shards of one checkpoint are needed, got (index, step) {sorted(heads)}")
    names = [name for shard in shards for name in shard.modules]
    if len(set(names)) != len(names):
        raise ValueError(f"modules in more than one shard: {sorted({name for name in names if names.count(name) > 1})[:3]}")
    merged = {name: triplets for shard in shards for name, triplets in shard.modules.items()}
    index, step = heads.pop()
    return CheckpointTriplets(index, step, {name: merged[name] for name in sorted(merged)})
