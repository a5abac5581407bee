"""`python -m benchmarks controller`: what the driver itself takes for a step with up to 1,000 engines that answer at once.

The driver's side is the run's own: the loop, its feed, the planning of the update, and `RayRollout` over one seat an engine; every
engine gets its own calls and its own part of the batch. The engines are toys: Ray actors that make up a group of completions a request
without sampling. A thousand Python processes do not fit here, so at most `--processes` actors are processes of their own, and
engines beyond that share them. Learner and verifiers are toys in the driver that take no time.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray

from benchmarks.toy_engines import SAMPLES, Engines
from next_ray.actors.cluster import open_cluster
from next_ray.actors.engines import RayRollout
from next_ray.actors.seats import Seat
from next_ray.config import ClusterSection, Config, RecoverySection
from next_ray.data.splits import Splits
from next_ray.loop import TrainingLoop
from next_ray.ports import Stages
from next_ray.types import (
    LoraFactors,
    Prompt,
    Ref,
    Scores,
    Shard,
    StepRecord,
    UpdatePlan,
    UpdateResult,
)

WARM_UP_STEPS = 2


class Handle:
    """One engine of a process that holds several."""

    def __init__(self, process: Any, index: int) -> None:
        self.ready, self.load, self.close = process.ready, process.load, process.close
        self.begin, self.collect, self.abort = (_Named(method, index) for method in (process.begin, process.collect, process.abort))


class _Named:
    """A method whose batches are told from those of the process's other engines."""

    def __init__(self, method: Any, index: int) -> None:
        self._method, self._index = method, index

    def options(self, **options: Any) -> _Named:
        return _Named(self._method.options(**options), self._index)

    def remote(self, call: str, *arguments: Any) -> Any:
        return self._method.remote(f"{self._index}/{call}", *arguments)


class Rewards:
    """Half of the completions of a group are right."""

    async def score(self, shards: Sequence[Shard], num_samples: int = 0) -> Scores:
        """From the sizes alone."""
        rows = [tuple(float(i % 2) for i in range(SAMPLES)) for shard in shards for _ in shard.sizes]
        return Scores(tuple(rows), {"ok": len(rows) * SAMPLES})


class Learner:
    """A new adapter of tiny's size for every update."""

    def __init__(self) -> None:
        self._factors = LoraFactors(a=np.ones((16, 1024), np.float32), b=np.ones((1024, 16), np.float32), scale=1.0)

    async def update(self, plan: UpdatePlan) -> UpdateResult:
        """No time but that of `ray.put`."""
        return UpdateResult(Ref(ray.put({"layers.0": self._factors})), {"optimizer_steps": 1.0})


class Report:
    """Keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def phase(self, name: str) -> None:
        """Nobody looks."""

    def step(self, record: StepRecord) -> None:
        """One more."""
        self.steps.append(record)


async def measure(processes: Sequence[Any], num_engines: int, steps: int, profile: cProfile.Profile | None) -> Mapping[str, float]:
    """Seconds of a step with so many engines: medians of wall clock, the driver's processor time, and the two parts with actors."""

    def seat(index: int) -> Seat:
        async def start() -> Handle:
            return Handle(processes[index % len(processes)], index)

        return Seat(f"engine {index}", start, RecoverySection(), lambda fault: None)

    rollout, report = RayRollout([seat(i) for i in range(num_engines)], num_engines), Report()
    await rollout.ready()
    prompts = [Prompt(f"p{i}", ({"role": "user", "content": f"{i}+{i}="},), str(2 * i), "exact") for i in range(num_engines)]
    config = Config.model_validate(
        {"run": {"steps": steps + WARM_UP_STEPS}, "rollout": {"prompts_per_step": num_engines, "samples_per_prompt": SAMPLES}}
    )
    stages: Any = Stages(rollout, Rewards(), Learner(), None, None)  # type: ignore[arg-type]  # only steps are made
    loop = TrainingLoop(config, Splits(prompts, prompts[:1], prompts[:1]), stages, report)  # type: ignore[arg-type]
    await loop.serving.serve()
    cpu = []
    for index in range(steps + WARM_UP_STEPS):
        if index == WARM_UP_STEPS and profile is not None:
            profile.enable()
        before = time.process_time()
        await loop.step()
        cpu.append(time.process_time() - before)
    if profile is not None:
        profile.disable()
    times = [record.times for record in report.steps[WARM_UP_STEPS:]]
    parts = {name: statistics.median(found[name] for found in times) for name in ("total", "rollout", "load", "plan")}
    parts |= {"least_total": min(found["total"] for found in times), "driver_cpu": statistics.median(cpu[WARM_UP_STEPS:])}
    return {"engines": num_engines, "processes": len(processes), **parts}


def main(argv: list[str]) -> int:
    """Print the curve as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks controller", description=__doc__)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="say where the time of the last number of engines goes (and take longer)")
    arguments = parser.parse_args(argv)
    with open_cluster(ClusterSection(dashboard=False), "bench-controller", embedded_cpus=2):
        remote = ray.remote(Engines)
        actors = [remote.options(num_cpus=0).remote() for _ in range(min(arguments.processes, max(arguments.engines)))]
        ray.get([actor.ready.remote() for actor in actors])
        for num in arguments.engines:
            profile = cProfile.Profile() if arguments.profile and num == arguments.engines[-1] else None
            row = asyncio.run(measure(actors[: min(num, len(actors))], num, arguments.steps, profile))
            print(json.dumps(dict(row) | {"load_average": os.getloadavg()[0]}), flush=True)
            if profile is not None:
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    return 0
