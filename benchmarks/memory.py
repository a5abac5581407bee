"""`python -m benchmarks memory`: does any process grow over a long run of the tiny model?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.watched import watch

WINDOW_STEPS = 20
"""The peak over this many steps is compared: one evaluation of the default schedule falls into each window."""


def main(argv: list[str]) -> int:
    """Run `--steps` steps; compare every process's peak just before the middle with its peak just before the last step.

    The final evaluation is left out: it is larger than what training does, and a process that grew by it need not grow by steps.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-memory"))
    arguments = parser.parse_intermixed_args(argv)
    steps, folder = arguments.steps, arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "long" / "metrics.jsonl"
    command = [sys.executable, "-m", "next_ray.run", f"run.steps={steps}", "run.name=long", f"run.output_dir={folder}"]
    seen = watch(
        [*command, f"store.url=file://{folder.absolute()}/store"], folder / "long.txt", mark=lambda: steps_done(metrics), interval_s=0.5
    )
    if seen.returncode:
        raise SystemExit(f"the run failed with exit code {seen.returncode}; see {folder / 'long.txt'}")
    report = []
    for pid, series in seen.series.items():
        middle, end = window_peak(series, steps // 2), window_peak(series, steps)
        if middle is not None and end is not None:
            row = {"process": seen.names[pid], "middle_mib": round(middle), "end_mib": round(end), "growth_mib": round(end - middle)}
            report.append(row)
    print(json.dumps(sorted(report, key=lambda r: -r["growth_mib"]), indent=2))
    return 0


def steps_done(metrics: Path) -> int:
    """Steps that a run has logged so far."""
    return metrics.read_bytes().count(b'"kind": "step"') if metrics.exists() else 0


def window_peak(series: Sequence[tuple[int, float]], last_step: int) -> float | None:
    """Largest MiB while the `WINDOW_STEPS` steps up to `last_step` ran; None when the process was not there."""
    return max((mib for step, mib in series if last_step - WINDOW_STEPS <= step < last_step), default=None)
