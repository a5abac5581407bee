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


def main(argv: list[str]) -> int:
    """Run the job of each seed twice and print accuracy by step and by second of both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks smollm2", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-smollm2"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in arguments.seeds:
        plain = run(f"seed{seed}", seed, arguments.folder, ["--baseline", *arguments.overrides])
        jumped = run(f"seed{seed}", seed, arguments.folder, arguments.overrides)
        results.append({"seed": seed, "plain": plain, "extrapolated": jumped, "to_equal_accuracy": compare(plain, jumped)})
        print(json.dumps(results[-1]), flush=True)
    (arguments.folder / "results.json").write_text(json.dumps(results, indent=2))
    return 0


def run(name: str, seed: int, folder: Path, extra: list[str]) -> dict[str, Any]:
    """One run (or its kept result): the accuracy curve over steps and over seconds of the critical path."""
    output = folder / (f"{name}-baseline" if "--baseline" in extra else name)
    if not (output / "summary.json").exists():
        command = [sys.executable, "-m", "next_ray.run", JOB, f"run.seed={seed}", f"run.name={name}", f"run.output_dir={folder}"]
        command += [f"store.url=file://{folder.absolute()}/store", *extra]
        with (folder / f"{output.name}.txt").open("w") as log:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
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
        else:
            points.append({"step": row["step"], "seconds": round(seconds, 1), "accuracy": row["avg_at_k"]})
    return points


def compare(plain: dict[str, Any], jumped: dict[str, Any], target: float | None = None) -> dict[str, Any]:
    """Steps and seconds both needed for the highest accuracy both reached (None: never reached)."""
    reached = min(max(p["accuracy"] for p in run["curve"]) for run in (plain, jumped)) if target is None else target
    first = [next(p for p in run["curve"] if p["accuracy"] >= reached) for run in (plain, jumped)]
    return {"accuracy": reached, "plain": first[0], "extrapolated": first[1]}
