"""`python -m benchmarks smollm2`: SmolLM2-135M with and without extrapolation, several seeds, all costs counted."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import accuracy_of, read_run

JOB = "jobs/smollm2-135m.yaml"
SHARES = (0.5, 0.75, 0.9, 1.0)
"""Shares of the plain run's final accuracy at which the two are compared."""


def main(argv: list[str]) -> int:
    """Run the job of each seed plainly and with extrapolation, side by side, and print accuracy by step and by second of both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks smollm2", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-smollm2"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in arguments.seeds:
        plain, jumped = pair(seed, arguments.folder, arguments.overrides)
        results.append({"seed": seed, "plain": plain, "extrapolated": jumped, "to_equal_accuracy": compare(plain, jumped)})
        print(json.dumps(results[-1]), flush=True)
    (arguments.folder / "results.json").write_text(json.dumps(results, indent=2))
    return 0


def pair(seed: int, folder: Path, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both runs of a seed at the same time, one thread each, so that they share whatever else the machine does."""
    name = f"seed{seed}"
    command = [sys.executable, "-m", "next_ray.run", JOB, f"run.seed={seed}", f"run.name={name}", f"run.output_dir={folder}"]
    command += [
        f"store.url=file://{folder.absolute()}/store",
        "rollout.threads=1",
        "learner.threads=1",
        "cluster.dashboard=false",
        *overrides,
    ]
    running = []
    for output, flags in ((f"{name}-baseline", ["--baseline"]), (name, [])):
        if not (folder / output / "summary.json").exists():
            with (folder / f"{output}.txt").open("w") as log:
                running.append(subprocess.Popen([*command, *flags], stdout=log, stderr=subprocess.STDOUT))
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"a run of seed {seed} failed; see {folder}/{name}*.txt")
    return result(folder / f"{name}-baseline"), result(folder / name)


def result(output: Path) -> dict[str, Any]:
    """A finished run: the accuracy curve over steps and over seconds of the critical path, attempts and final accuracy."""
    rows, summary = read_run(output)
    return {"curve": curve(rows), "jumps": [row for row in rows if row["kind"] == "jump"], "final": accuracy_of(summary, "final")}


def curve(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Held-out accuracy with the steps and the seconds spent to get there; evaluation for the curve itself is not counted."""
    points, seconds = [], 0.0
    for row in rows:
        if row["kind"] == "step":
            seconds += row["time_total_s"] + row.get("time_checkpoint_s", 0.0)
        elif row["kind"] == "jump":
            seconds += sum(value for name, value in row.items() if name.startswith("time_") and "evaluate" not in name)
        elif row["label"] == "final" or row["label"].startswith("step "):
            points.append({"step": row["step"], "seconds": round(seconds, 1), "accuracy": row["avg_at_k"]})
    return points


def compare(plain: dict[str, Any], jumped: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps and seconds both needed for shares of the plain run's final accuracy (None: never reached)."""
    final = plain["final"]["mean"]
    return [
        {"share": share, "accuracy": share * final, "plain": first(plain, share * final), "extrapolated": first(jumped, share * final)}
        for share in SHARES
    ]


def first(run: dict[str, Any], accuracy: float) -> dict[str, float] | None:
    """The first point of a run's curve that reaches an accuracy."""
    return next((point for point in run["curve"] if point["accuracy"] >= accuracy), None)
