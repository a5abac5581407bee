"""`python tests/side_by_side.py`: all tests, two files of whole jobs (or one, and all other tests) at a time, since whole jobs mostly wait.

What each part printed is shown when it has ended. Exit code 0 when all parts pass.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WHOLE_JOBS = [
    "tests/test_end_to_end.py",
    "tests/commands",
    "tests/integrations",
    "tests/dashboard",
    "tests/docs",
    "tests/test_autoscaler.py",
    "tests/test_nodes.py",
    "tests/test_numerics_end_to_end.py",
    "tests/test_supervised_run.py",
    "tests/security/test_embedded_run.py",
    "tests/report",
    "tests/chaos",
]
"""Tests that start commands of this project as its users do; those that take long first."""


def main() -> int:
    """Run all parts; whoever of the two is free takes the next."""
    parts = [["tests", *(f"--ignore={path}" for path in WHOLE_JOBS)], *([path] for path in WHOLE_JOBS)]
    with ThreadPoolExecutor(2) as pool:
        return max(pool.map(passed, parts))


def passed(words: Sequence[str]) -> int:
    """Run a part and show what it printed; returns pytest's exit code, or the signal that killed it."""
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "--durations=10", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    name = words[0] if len(words) == 1 else "all other tests"
    print(f"\n{'=' * 30} {name}, {time.monotonic() - started:.0f} s {'=' * 30}\n{done.stdout}", flush=True)
    return abs(done.returncode)


if __name__ == "__main__":
    missing = [path for path in WHOLE_JOBS if not Path(path).exists()]
    sys.exit(f"not here: {', '.join(missing)}" if missing else main())
