"""Which delta worker takes which modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from next_ray.types import CheckpointTriplets


def module_cost(out_features: int, in_features: int, rank: int) -> float:
    """Relative cost of one module's triplet from its factors: the QR of [O, 2R] and [I, 2R] dominates, O((O + I) R^2)."""
    return float((out_features + in_features) * rank * rank)


def shard_modules(costs: Mapping[str, float], num_workers: int) -> list[list[str]]:
    """Split modules over workers, longest processing time first (Graham 1969): at most 4/3 of the best makespan.

    Deterministic: equal costs go by name, equal loads to the lower worker. Workers beyond the number of modules stay empty.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    shards: list[list[str]] = [[] for _ in range(num_workers)]
    loads = [0.0] * num_workers
    for name in sorted(costs, key=lambda module: (-costs[module], module)):
        worker = min(range(num_workers), key=lambda index: (loads[index], index))
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
