"""`python -m benchmarks protections`: what the protections against faults cost a step of tiny in which nothing goes wrong.

One run whose driver has its protections switched off and on every few steps: the notes of who is waited for and the watchdog, the
questions about drained nodes, the places where a stop is heeded, the alarms, the accuracies kept for a rollback and the account of the
prompts. Neighbouring blocks meet the same load of the machine; the figures are over pairs of them. Ray's own note of where a call was
made cannot be switched within a process: it is timed call by call in two processes, and counted for the calls of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import next_ray.actors.cluster as cluster
import next_ray.actors.draining as draining
import next_ray.actors.watchdog as watchdog
import next_ray.loop as loop
from benchmarks.rows import read_run, spread, steady_steps, step_seconds
from next_ray.alarms import Observed
from next_ray.rollback import Rollback
from next_ray.run import main as run
from next_ray.stopping import Stop

CALLS = """
import ray, time
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
actor = ray.remote(type("Actor", (), {"ask": lambda self: None})).remote()
ray.get(actor.ask.remote())
def block():
    started = time.perf_counter()
    refs = [actor.ask.remote() for _ in range(200)]
    took = time.perf_counter() - started
    ray.get(refs)
    return took / 200
print(sorted(block() for _ in range(15))[7])
"""
CALLS_A_STEP = 12
"""Remote calls of the driver in a step of tiny with one engine and one learner, a commit included; more than there are."""


class Switch:
    """Puts what does nothing in the place of the protections while it is off."""

    is_on = True

    def either(self, owner: Any, name: str, off: Callable[..., Any]) -> None:
        """Replace a function of a module or class by one that asks the switch."""
        on = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: (on if self.is_on else off)(*args, **kwargs))


@contextmanager
def unnoted(*_: object) -> Iterator[None]:
    """In place of `waiting`."""
    yield


@asynccontextmanager
async def unheeded(_: Stop) -> AsyncIterator[None]:
    """In place of `Stop.heeded`."""
    yield


def switched(block: int) -> Switch:
    """The driver of this process, its protections switched every `block` steps."""
    switch = Switch()
    switch.either(cluster, "waiting", unnoted)
    switch.either(watchdog, "overdue", lambda _: [])
    switch.either(draining, "draining_nodes", dict)
    switch.either(loop, "observe", lambda state, record, cfg: Observed(state, (), 0))
    switch.either(Rollback, "note", lambda *_: None)
    switch.either(Rollback, "due", lambda *_: None)
    switch.either(Stop, "heeded", unheeded)
    step = loop.TrainingLoop.step

    async def one(self: loop.TrainingLoop) -> None:
        switch.is_on = is_on(self.progress.step + 1, block)
        await step(self)
        if not switch.is_on:
            self._trained.clear()

    loop.TrainingLoop.step = one
    return switch


def is_on(step: int, block: int) -> bool:
    """Whether the protections are on in a step, counted from one."""
    return (step - 1) // block % 2 == 0


def main(argv: list[str]) -> int:
    """Run and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks protections", description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--block", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-protections"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    folder, name = arguments.folder.absolute(), f"run-{os.getpid()}"
    settings = [f"run.steps={arguments.steps}", f"run.name={name}", f"run.output_dir={folder}", f"store.url=file://{folder}/store"]
    switched(arguments.block)
    if code := run([*settings, "extrapolation.enabled=false", "recovery.drain_poll_s=1", *arguments.overrides]):
        return code
    rows, _ = read_run(folder / name)
    print(json.dumps({"steps": arguments.steps, "block": arguments.block, **figures(steady_steps(rows), arguments.block)}, indent=2))
    return 0


def figures(steps: list[dict[str, Any]], block: int) -> dict[str, Any]:
    """Medians of a step with and without, and the overhead over pairs of neighbouring blocks with its interquartile range."""
    blocks: dict[int, list[float]] = {}
    for row in steps:
        blocks.setdefault((row["step"] - 1) // block, []).append(step_seconds(row))
    medians = {index: statistics.median(values) for index, values in sorted(blocks.items())}
    ratios = [a / b - 1 if i % 2 == 0 else b / a - 1 for (i, a), (_, b) in pairwise(medians.items())]
    low, middle, high = statistics.quantiles(ratios, n=4)
    with_, without = ([value for index, value in medians.items() if index % 2 == odd] for odd in (0, 1))
    noted, unnoted_ = (call_s(flag) for flag in ("1", "0"))
    step_s = statistics.median(with_)
    return {
        "step_s_with": str(spread(with_)),
        "step_s_without": str(spread(without)),
        "overhead": f"{middle:+.1%} (middle half {low:+.1%} to {high:+.1%}, {len(ratios)} pairs)",
        "call_us_with_and_without_note": [round(noted * 1e6, 1), round(unnoted_ * 1e6, 1)],
        "overhead_of_notes": f"{CALLS_A_STEP * (noted - unnoted_) / step_s:+.2%}",
    }


def call_s(note: str) -> float:
    """Seconds that the driver needs for a remote call, with or without Ray's note of its place."""
    environment = {**os.environ, "RAY_record_ref_creation_sites": note}
    done = subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
