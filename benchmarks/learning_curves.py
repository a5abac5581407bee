"""`python -m benchmarks learning_curves`: GRPO on the tiny model by next_ray and by TRL, same seeds and prompts, several seeds each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.grpo_runs import GrpoSpec, run_ours, run_trl

WINDOW = 5
"""Steps over which a curve is averaged before it is compared."""


def main(argv: list[str]) -> int:
    """Run what is not there yet, compare, plot; exit code 1 when the curves are further apart than the seeds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks learning_curves", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-curves"))
    parser.add_argument("--plot", type=Path, default=Path("docs/grpo-curves.svg"))
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    curves: dict[str, list[list[float]]] = {"next_ray": [], "trl": []}
    for seed in arguments.seeds:
        spec = GrpoSpec("tiny", arguments.steps, seed, 64, 8, 1, response_tokens=8, lr=5e-4, micro_batch=512, micro_batch_tokens=8192)
        for name, run in (("next_ray", run_ours), ("trl", run_trl)):
            curves[name].append([row["reward"] for row in _rows(name, spec, arguments.folder, run)])
    result = compared({name: np.array(rows) for name, rows in curves.items()})
    plot({name: np.array(rows) for name, rows in curves.items()}, arguments.plot)
    print(json.dumps({"seeds": arguments.seeds, "steps": arguments.steps, **result, "plot": str(arguments.plot)}, indent=2))
    return 0 if result["within_spread"] else 1


def _rows(name: str, spec: GrpoSpec, folder: Path, run: Any) -> list[dict[str, float]]:
    """A finished run's rows, kept so that an interrupted benchmark goes on."""
    kept = folder / f"{name}-{spec.steps}-{spec.seed}.json"
    if not kept.exists():
        kept.write_text(json.dumps(run(spec, folder)))
    return json.loads(kept.read_text())


def compared(curves: dict[str, np.ndarray]) -> dict[str, Any]:
    """Curves [seeds, steps]: the difference of the means over windows against the spread of the seeds in both.

    The spread is the standard error of that difference; `within_spread` says that no window is further apart than three of them.
    """
    ours, theirs = (smoothed(curves[name]) for name in ("next_ray", "trl"))
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    seeds = len(ours)
    error = np.sqrt((ours.var(axis=0, ddof=1) + theirs.var(axis=0, ddof=1)) / seeds) if seeds > 1 else np.full(len(difference), np.nan)
    return {
        "first": {name: round(float(smoothed(curves[name])[:, 0].mean()), 4) for name in curves},
        "last": {name: round(float(smoothed(curves[name])[:, -1].mean()), 4) for name in curves},
        "largest_difference": round(float(np.abs(difference).max()), 4),
        "in_standard_errors": round(float(np.max(np.abs(difference) / np.maximum(error, 1e-3))), 2) if seeds > 1 else None,
        "within_spread": bool(np.all(np.abs(difference) <= 3 * np.maximum(error, 1e-3))) if seeds > 1 else False,
    }


def smoothed(curves: np.ndarray) -> np.ndarray:
    """Means over consecutive windows [seeds, steps // window]."""
    usable = max(1, curves.shape[1] // WINDOW) * min(WINDOW, curves.shape[1])
    return curves[:, :usable].reshape(len(curves), -1, min(WINDOW, curves.shape[1])).mean(axis=2)


def plot(curves: dict[str, np.ndarray], target: Path) -> None:
    """Every seed thin, the means thick."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for (name, rows), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        steps = np.arange(1, rows.shape[1] + 1)
        for row in rows:
            axes.plot(steps, row, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, rows.mean(axis=0), color=colour, linewidth=2, label=f"{name}, mean of {len(rows)} seeds")
    axes.set_xlabel("GRPO step")
    axes.set_ylabel("mean training reward")
    axes.legend()
    figure.tight_layout()
    figure.savefig(target)
    plt.close(figure)
