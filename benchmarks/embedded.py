"""`python -m benchmarks embedded`: the embedded run as `make run` starts it, with its time, memory and gain."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.rows import accuracy_of, jump_seconds, outside_share, read_run, spread, steady_steps, step_seconds
from benchmarks.watched import watch


def main(argv: list[str]) -> int:
    """Run once per seed and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks embedded", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-embedded"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    results = [one_run(seed, arguments.folder, arguments.overrides) for seed in arguments.seeds]
    print(json.dumps(results, indent=2))
    return 0


def one_run(seed: int, folder: Path, overrides: list[str]) -> dict[str, object]:
    """One embedded run in a fresh store: wall time, peak memory, step times, extrapolation's share, accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"seed{seed}"
    command = [sys.executable, "-m", "next_ray.run", f"run.seed={seed}", f"run.name={name}", f"run.output_dir={folder}"]
    seen = watch([*command, f"store.url=file://{folder.absolute()}/store", *overrides], folder / f"{name}.txt")
    if seen.returncode:
        raise SystemExit(f"seed {seed} failed with exit code {seen.returncode}; see {folder / f'{name}.txt'}")
    rows, summary = read_run(folder / name)
    steps = steady_steps(rows)
    attempts = [row for row in rows if row["kind"] == "jump"]
    step_s = spread([step_seconds(row) for row in steps])
    background = summary["seconds_off_critical_path"]
    waited = sum(row.get("stats_digest_wait_s", 0.0) for row in attempts)
    return {
        "seed": seed,
        "wall_s": round(seen.wall_s, 1),
        "peak_memory_gib": round(seen.peak_mib / 1024, 2),
        "step_s": str(step_s),
        "outside_rollout_and_update": str(spread([outside_share(row) for row in steps])),
        "jump_critical_path_in_steps": [round(jump_seconds(row) / step_s.median, 2) for row in attempts],
        "trajectory_work_off_critical_path": round(1 - waited / max(1e-9, sum(background.values())), 3),
        "accepted": [row.get("accepted") for row in attempts],
        "base": accuracy_of(summary, "base"),
        "final": accuracy_of(summary, "final"),
    }
