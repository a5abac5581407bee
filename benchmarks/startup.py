"""`python -m benchmarks startup`: how long do --help, plans and mistakes in settings take, each in a process of its own?"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import spread
from next_ray.commands.main import TABLE

LIMIT_S = 1.0
"""What an answer about words may take."""
SETTINGS_MISTAKE = ["run", "rollout.promts_per_step=3"]


@dataclass(frozen=True)
class Start:
    """One process: wall-clock and CPU seconds, and the modules whose import took longest, with seconds of their own."""

    wall_s: float
    cpu_s: float
    imports: Sequence[tuple[str, float]]


def main(argv: list[str]) -> int:
    """Start every command `--repeats` times; exit code 1 when the fastest start of one took longer than `LIMIT_S` of CPU time.

    CPU time is judged, because other processes of the machine do not change it; a process that has the machine to itself waits no longer.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks startup", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args(argv).repeats
    rows = [row_of(words, [start(words) for _ in range(repeats)]) for words in asked()]
    print(json.dumps(rows, indent=2))
    return int(any(row["cpu_s_least"] > LIMIT_S for row in rows))


def asked() -> list[list[str]]:
    """The command lines."""
    names = [name for name in TABLE.names if name != "completion"]
    plan = [["plan", "jobs/qwen2.5-7b-next.yaml", "--gpus", "8xH100"]] if "plan" in names else []
    return [["--help"], *([name, "--help"] for name in names), SETTINGS_MISTAKE, *plan]


def start(words: Sequence[str]) -> Start:
    """One start of `python -m next_ray WORDS`."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    found = subprocess.run([sys.executable, "-X", "importtime", "-m", "next_ray", *words], env=os.environ, capture_output=True, text=True)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if found.returncode not in (0, 2):
        raise SystemExit(f"next-ray {' '.join(words)} ended with {found.returncode}:\n{found.stderr[-2000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Start(wall_s, cpu_s, slowest_imports(found.stderr))


def slowest_imports(importtime: str, count: int = 3) -> list[tuple[str, float]]:
    """Of what `-X importtime` wrote: module and seconds without those it imports itself."""
    lines = (line.removeprefix("import time:").split("|") for line in importtime.splitlines() if line.startswith("import time:"))
    own = [(parts[2].strip(), int(parts[0]) / 1e6) for parts in lines if parts[0].strip().isdecimal()]
    return sorted(own, key=lambda row: -row[1])[:count]


def row_of(words: Sequence[str], starts: Sequence[Start]) -> dict[str, Any]:
    """A row of the report."""
    fastest = min(starts, key=lambda one: one.cpu_s)
    return {
        "command": " ".join(["next-ray", *words]),
        "wall_s": str(spread([one.wall_s for one in starts])),
        "cpu_s": str(spread([one.cpu_s for one in starts])),
        "cpu_s_least": round(fastest.cpu_s, 3),
        "slowest_imports": {name: round(seconds, 3) for name, seconds in fastest.imports},
    }
