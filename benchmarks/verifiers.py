"""`python -m benchmarks verifiers`: integer answers judged per second, and what isolation adds to a batch of 512.

Half of the answers are right. The same function judges in this process and in the pool; the pool's processes are warm. Goals: at
least 5,000 answers/s with two workers, at most 50 ms added to a batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.rows import spread
from next_ray.config import RewardSection
from next_ray.data.prompts import user_prompt
from next_ray.reward.pool import VerifierPool
from next_ray.reward.verifiers import load, load_unit, verify
from next_ray.types import Prompt

KINDS = {
    "exact": "%d",
    "number": "The sum is %d.",
    "math": r"So it is \boxed{%d}.",
    "gsm8k": "#### %d",
    "math, 2,000 characters": "",
}
BATCH = 512

Items = Sequence[tuple[str, Prompt]]


def main(argv: list[str]) -> int:
    """Measure and print JSON: per verifier answers/s, and milliseconds of a batch isolated and not, medians with their spread."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks verifiers", description=__doc__)
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    report: dict[str, object] = {"workers": arguments.workers, "cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()}
    for name, form in KINDS.items():
        kind = name.partition(",")[0]
        form = form or "Let us think. " * 143 + r"\boxed{%d}"
        items = [(form % (i % 997 + i % 2), user_prompt("q", str(i % 997), kind)) for i in range(arguments.answers)]
        report[name] = measure(kind, items, arguments.workers, arguments.repetitions)
    report["load_after"] = os.getloadavg()
    print(json.dumps(report, indent=2))
    return 0


def measure(kind: str, items: Items, workers: int, repetitions: int) -> dict[str, object]:
    """One verifier."""
    load(load_unit(kind))
    expected = in_process(items)
    with VerifierPool(RewardSection(workers=workers)) as pool:
        if [judgement.reward for judgement in pool.score(items)] != expected:
            raise AssertionError("the pool judges otherwise than the function")
        rates = [len(items) / seconds(lambda: pool.score(items)) for _ in range(repetitions)]
        pairs = [(seconds(lambda: in_process(items[:BATCH])), seconds(lambda: pool.score(items[:BATCH]))) for _ in range(4 * repetitions)]
    return {
        "answers_per_s": dataclasses.asdict(spread(rates)),
        "batch_in_process_ms": dataclasses.asdict(spread([1e3 * inside for inside, _ in pairs])),
        "batch_in_pool_ms": dataclasses.asdict(spread([1e3 * outside for _, outside in pairs])),
        "added_ms": dataclasses.asdict(spread([1e3 * (outside - inside) for inside, outside in pairs])),
    }


def in_process(items: Items) -> list[float]:
    """What the pool does, without it."""
    return [verify(prompt.verifier, text, prompt.answer, prompt.metadata) for text, prompt in items]


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
