"""`python -m benchmarks sharding`: how even the shards of a trajectory are (computed), and what a second worker brings (measured)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks.shapes import MODELS, write_adapters
from benchmarks.triplets import timed
from next_ray.actors.cluster import open_cluster
from next_ray.actors.library import Location, TripletWorkers, module_costs
from next_ray.config import ClusterSection
from next_ray.delta.sharding import shard_modules, trajectory_cost

WORKERS = range(1, 65)


def main(argv: list[str]) -> int:
    """Print both as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sharding", description=__doc__)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--model", choices=MODELS, default="Qwen2.5-1.5B", help="whose adapters are measured")
    parser.add_argument("--checkpoints", type=int, default=6)
    parser.add_argument("--horizon", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-sharding"))
    parser.add_argument("--computed-only", action="store_true")
    arguments = parser.parse_intermixed_args(argv)
    report: dict[str, Any] = {"slowest_over_mean": {name: evenness(name, arguments.rank) for name in MODELS}}
    if not arguments.computed_only:
        report["measured"] = _measured(arguments)
    print(json.dumps(report, indent=2))
    return 0


def evenness(model: str, rank: int, checkpoints: int = 15) -> dict[str, float]:
    """Largest ratio of the slowest worker's cost to the mean over all numbers of workers, and where it is."""
    costs = {name: trajectory_cost(o, i, rank, checkpoints) for name, (o, i) in MODELS[model].shapes.items()}
    ratios = {}
    for workers in WORKERS:
        loads = [sum(costs[name] for name in shard) for shard in shard_modules(costs, workers)]
        ratios[workers] = max(loads) / (sum(loads) / workers)
    worst = max(ratios, key=lambda workers: ratios[workers])
    return {"worst": round(ratios[worst], 4), "at_workers": worst}


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Wall clock of one and of two workers of one thread each, in turn, with all workers up; and how well the costs foretell."""
    write_adapters(MODELS[arguments.model], arguments.rank, arguments.checkpoints, arguments.folder)
    location = Location((str(arguments.folder),))
    loads = [os.getloadavg()[0]]
    times: dict[int, list[float]] = {1: [], 2: []}
    shares: list[float] = []
    try:
        with (
            open_cluster(ClusterSection(dashboard=False), "bench-sharding", embedded_cpus=3),
            TripletWorkers(location, 1) as one,
            TripletWorkers(location, 2) as two,
        ):
            costs = module_costs(location.open().trajectory.modules)
            expected = [sum(costs[name] for name in shard) for shard in two.shards]
            for _ in range(arguments.runs):
                times[1].append(timed(lambda: one.compute(arguments.horizon)))
                shards = []
                times[2].append(timed(lambda shards=shards: shards.extend(two.compute(arguments.horizon))))
                shares.append(shards[0].seconds / sum(shard.seconds for shard in shards))
                loads.append(os.getloadavg()[0])
    finally:
        shutil.rmtree(arguments.folder)
    return {
        "what": f"{arguments.model}, rank {arguments.rank}, {arguments.checkpoints} checkpoints, horizon {arguments.horizon}",
        "one_worker_s": times[1],
        "two_workers_s": times[2],
        "times_faster": statistics.median(times[1]) / statistics.median(times[2]),
        "first_worker_share_of_cost": expected[0] / sum(expected),
        "first_worker_share_of_seconds": shares,
        "load_averages": loads,
    }
