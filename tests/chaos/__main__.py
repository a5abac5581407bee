"""`python -m tests.chaos`: one run of tiny, hurt again and again by a seeded plan; prints what happened and whether the books balance."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from next_ray.commands.words import job_and_overrides
from next_ray.data.prepare import load_splits
from next_ray.settings import load_config
from next_ray.store.checkpoints import CheckpointStore
from tests.chaos.books import Witness, problems
from tests.chaos.faults import DRIVER, STORE, NothingThereError, inject, kinds
from tests.s3_server import s3_server
from tests.store.proxy import FaultyProxy, faulty_proxy
from tests.whole_jobs import SMALL

HURT = [
    *SMALL,
    "extrapolation.interval_steps=2",
    "extrapolation.methods=[next, two-point]",
    "extrapolation.repeat_every=3",
    "store.lease_s=10",
    "recovery.actor_restarts=8",
    "recovery.learner_restarts=8",
    "recovery.backoff_s=0.2",
    "recovery.hang_s=120",
    "recovery.on_hang=abort",
]


@dataclass(frozen=True)
class Planned:
    """A fault, and the step after which it comes."""

    step: int
    kind: str


def plan(seed: int, steps: int, count: int, names: Sequence[str]) -> list[Planned]:
    """`count` faults over a run: every kind in turn, in an order drawn from the seed, at steps drawn from it."""
    draw = random.Random(seed)
    chosen = [names[i % len(names)] for i in range(count)]
    draw.shuffle(chosen)
    at = sorted(draw.randint(1, steps - 1) for _ in chosen)
    return [Planned(step, kind) for step, kind in zip(at, chosen, strict=True)]


@dataclass
class Chaos:
    """A run under way: the driver's process, begun again whenever it ends before the last step."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    metrics: Path
    exits: list[int] = field(default_factory=list)

    def begin(self) -> None:
        """Start a driver."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def goes_on(self) -> bool:
        """Whether the run is still under way; a driver that has ended early is followed by another one."""
        code = self.process.poll()
        if code is None:
            return True
        self.exits.append(code)
        if code == 0 or "already has all of its" in self.log.read_text()[-1000:]:  # it was hit after its last word
            return False
        self.begin()
        return True

    def step(self) -> int:
        """The last step that the log tells of."""
        try:
            rows = [json.loads(line) for line in self.metrics.read_text().splitlines()]
        except (OSError, ValueError):
            return 0
        return max((row["step"] for row in rows if row["kind"] == "step"), default=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print the account as JSON; returns 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--faults", type=int, default=26, help="faults in all, every kind equally often")
    parser.add_argument("--kinds", nargs="+", help="only these kinds")
    parser.add_argument("--folder", type=Path, default=Path("outputs/chaos"))
    parser.add_argument("--limit-s", type=float, default=3600)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        server = stack.enter_context(s3_server())
        proxy = stack.enter_context(faulty_proxy(server.endpoint_url))
        account = hurt(arguments, f"{server.url}/chaos", proxy, dict(server.credentials))
    print(json.dumps(account, indent=2))
    return 0 if not account["problems"] else 1


def hurt(arguments: Any, url: str, proxy: FaultyProxy, credentials: dict[str, str]) -> dict[str, Any]:
    """One run under the plan; the account of it."""
    seed, steps = arguments.seed, arguments.steps
    name = f"chaos-{seed}-{os.getpid()}"
    where = [f"store.url={url}", f"store.endpoint_url={proxy.endpoint_url}", f"run.output_dir={arguments.folder}", f"run.name={name}"]
    settings = [*HURT, f"run.steps={steps}", f"run.seed={seed}", *where, *arguments.overrides]
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment = {**kept, **credentials, "NEXT_RAY_CACHE": str(arguments.folder / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "next_ray.run", *settings]
    chaos = Chaos(command, environment, arguments.folder / f"{name}.log", arguments.folder / name / "metrics.jsonl")
    os.environ.update(credentials)
    config = load_config(*job_and_overrides(settings))
    num_prompts = len(load_splits(config)[0].train)
    store = CheckpointStore(url, name, proxy.endpoint_url)
    witness, draw, started = Witness(store), random.Random(seed), time.monotonic()
    waiting, done = plan(seed, steps, arguments.faults, arguments.kinds or kinds(has_proxy=True)), Counter[str]()
    chaos.begin()
    ended = False
    while not ended and time.monotonic() - started < arguments.limit_s:
        time.sleep(0.1)
        ended = not chaos.goes_on()
        witness.look()
        if not waiting or waiting[0].step > chaos.step():
            continue
        fault = waiting[0]
        try:
            hit = inject(fault.kind, chaos.process.pid, proxy, draw)
        except NothingThereError:
            continue
        waiting.pop(0)
        done[fault.kind] += 1
        print(f"{time.monotonic() - started:7.1f} s  after step {fault.step}  {fault.kind}: {hit}", file=sys.stderr, flush=True)
        if fault.kind in DRIVER:
            chaos.process.wait(120)
        elif fault.kind not in STORE:
            time.sleep(1)
    if not ended:
        chaos.process.kill()
    found = [] if ended else [f"the run did not end within {arguments.limit_s:.0f} s: step {chaos.step()} of {steps}; see {chaos.log}"]
    proxy.plan.clear()
    if ended:
        found += problems(store, steps, config.extrapolation.interval_steps, num_prompts, witness.seen)
    faults = [json.loads(line) for line in chaos.metrics.read_text().splitlines() if '"fault"' in line]
    return {
        "seed": seed,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "injected": sum(done.values()),
        "by_kind": dict(done),
        "not_injected": dict(Counter(fault.kind for fault in waiting)),
        "exit_codes": dict(Counter(chaos.exits)),
        "checkpoints_seen": len(witness.seen),
        "recovery_s": recoveries(faults),
        "problems": found,
    }


def recoveries(faults: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Median and longest time until what was lost was back, by what it was, seconds."""
    times: dict[str, list[float]] = defaultdict(list)
    for row in faults:
        if row["event"] == "back":
            times[row["what"].rstrip(" 0123456789")].append(row["time_s"])
    return {what: f"{median(values):.1f} (at most {max(values):.1f}, {len(values)} times)" for what, values in times.items()}


if __name__ == "__main__":
    sys.exit(main())
