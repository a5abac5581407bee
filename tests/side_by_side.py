"""`python tests/side_by_side.py`: the tests in two halves at once, since whole jobs mostly wait. Exit code 0 when both halves pass."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

WHOLE_JOBS = [
    "tests/test_end_to_end.py",
    "tests/test_autoscaler.py",
    "tests/test_nodes.py",
    "tests/test_numerics_end_to_end.py",
    "tests/test_supervised_run.py",
    "tests/security/test_embedded_run.py",
    "tests/chaos",
    "tests/dashboard",
    "tests/integrations",
    "tests/commands",
]
"""Tests that start commands of this project as its users do."""


def main() -> int:
    """Run both; the second half's output is shown when the first one has ended."""
    pytest = [sys.executable, "-m", "pytest", "--durations=20"]
    with tempfile.TemporaryFile("w+") as output:
        jobs = subprocess.Popen([*pytest, *WHOLE_JOBS], stdout=output, stderr=output)
        try:
            others = subprocess.call([*pytest, "tests", *(f"--ignore={path}" for path in WHOLE_JOBS)])
            code = jobs.wait()
        finally:
            jobs.kill()
        output.seek(0)
        print(f"\n{'=' * 40} whole jobs {'=' * 40}\n{output.read()}", flush=True)
    return others or code


if __name__ == "__main__":
    missing = [path for path in WHOLE_JOBS if not Path(path).exists()]
    sys.exit(f"not here: {', '.join(missing)}" if missing else main())
