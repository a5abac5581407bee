"""`python -m benchmarks memory`: does any process grow over a long run of the tiny model?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.rows import read_run
from benchmarks.watched import watch


def main(argv: list[str]) -> int:
    """Run `--steps` steps and compare every process's memory in the middle with that at the last step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-memory"))
    arguments = parser.parse_intermixed_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "next_ray.run", f"run.steps={arguments.steps}", "run.name=long", f"run.output_dir={arguments.folder}"]
    seen = watch([*command, f"store.url=file://{arguments.folder.absolute()}/store"], arguments.folder / "long.txt")
    if seen.returncode:
        raise SystemExit(f"the run failed with exit code {seen.returncode}; see {arguments.folder / 'long.txt'}")
    rows, _ = read_run(arguments.folder / "long")
    training_s = sum(
        sum(v for k, v in row.items() if k.startswith("time_") and k != "time_total_s") for row in rows if row["kind"] == "step"
    )
    report = []
    for pid, series in seen.series.items():
        end = series[-1][0]
        half = [mib for at, mib in series if end - training_s / 2 - 5 <= at <= end - training_s / 2 + 5]
        last = [mib for at, mib in series if at >= end - 10]
        if half and end > seen.wall_s - 15:
            report.append(
                {
                    "process": seen.names[pid],
                    "middle_mib": round(max(half)),
                    "end_mib": round(max(last)),
                    "growth_mib": round(max(last) - max(half)),
                }
            )
    print(json.dumps(sorted(report, key=lambda r: -r["growth_mib"]), indent=2))
    return 0
