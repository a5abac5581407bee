"""`python -m benchmarks overlap`: what sampling one step ahead of the learner gains on tiny, in time and in reward.

Runs in turn (`rollout.max_staleness=0`) and one step off (`=1`, with token-level importance sampling) alternate over the seeds,
without extrapolation, engine and learner on a core each; what each of the two costs is in the report.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import accuracy_of, read_run, spread, steady_steps, step_seconds
from benchmarks.watched import watch

WAYS = {
    "in turn": ("rollout.max_staleness=0",),
    "one step off": ("rollout.max_staleness=1", "algorithm.correction=token-tis"),
}


def main(argv: list[str]) -> int:
    """Run every way once per seed and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks overlap", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-overlap"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in arguments.seeds:
        for way in WAYS:
            runs[way].append(one_run(way, seed, arguments))
    print(json.dumps({"steps": arguments.steps, "runs": runs, **summary(runs)}, indent=2))
    return 0


def one_run(way: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step and of its phases, reward over the last ten steps, accuracy of the final model."""
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{way.replace(' ', '-')}-seed{seed}"
    settings = [f"run.seed={seed}", f"run.name={name}", f"run.output_dir={folder}", f"run.steps={arguments.steps}"]
    settings += [f"store.url=file://{folder.absolute()}/store", "extrapolation.enabled=false", "evaluation.every_steps=null"]
    seen = watch([sys.executable, "-m", "next_ray.run", *settings, *WAYS[way], *arguments.overrides], folder / f"{name}.txt")
    if seen.returncode:
        raise SystemExit(f"{name} failed with exit code {seen.returncode}; see {folder / f'{name}.txt'}")
    rows, result = read_run(folder / name)
    steps = steady_steps(rows)
    phases = ("rollout", "reward", "update", "load")
    return {
        "seed": seed,
        "step_s": statistics.median(step_seconds(row) for row in steps),
        **{f"{phase}_s": statistics.median(row.get(f"time_{phase}_s", 0.0) for row in steps) for phase in phases},
        "tokens_per_s": sum(row["num_tokens"] for row in steps) / sum(step_seconds(row) for row in steps),
        "reward": statistics.fmean(row["reward_mean"] for row in steps[-10:]),
        "accuracy": accuracy_of(result, "final")["mean"],
    }


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and ranges, and how much faster one step off is, seed by seed."""
    fields = [name for name in runs["in turn"][0] if name != "seed"]
    spreads = {way: {name: str(spread([run[name] for run in found])) for name in fields} for way, found in runs.items()}
    pairs = zip(runs["in turn"], runs["one step off"], strict=True)
    return {"medians": spreads, "times_faster": str(spread([slow["step_s"] / fast["step_s"] for slow, fast in pairs]))}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
