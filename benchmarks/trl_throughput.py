"""`python -m benchmarks trl_throughput`: end-to-end GRPO tokens a second of next_ray and of TRL's GRPOTrainer, in turns."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.grpo_runs import MODELS, GrpoSpec, run_ours, run_trl
from benchmarks.rows import spread

GOALS = {"smollm2-135m": 2.0, "tiny": 1.0}
MICRO_BATCHES = {"smollm2-135m": (16, 1024), "tiny": (128, 2048)}
"""Sequences (TRL) and padded tokens (next_ray) of a forward pass: as many sequences, for tiny the whole batch."""
WARM_UP = 1
"""Steps of each run that are not counted."""


def main(argv: list[str]) -> int:
    """Both trainers in turns, several rounds; prints medians, spreads and the ratio as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks trl_throughput", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=5, help="steps of a run, the first of which is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-trl"))
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = [compared(model, arguments) for model in arguments.models]
    print(json.dumps(results, indent=2))
    return 0 if all(result["ratio"] >= result["goal"] for result in results) else 1


def compared(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model; rounds alternate so that other work on the machine meets both alike."""
    rows: dict[str, list[dict[str, float]]] = {"next_ray": [], "trl": []}
    loads = []
    for seed in range(arguments.rounds):
        sequences, tokens = MICRO_BATCHES[model]
        spec = GrpoSpec(
            model,
            arguments.steps,
            seed,
            arguments.prompts,
            arguments.samples,
            arguments.threads,
            micro_batch=sequences,
            micro_batch_tokens=tokens,
        )
        folder = arguments.folder / f"{model}-round{seed}-{os.getpid()}"
        folder.mkdir()
        for name, run in (("next_ray", run_ours), ("trl", run_trl)):
            loads.append(round(os.getloadavg()[0], 1))
            rows[name] += [row for row in run(spec, folder) if row["step"] > WARM_UP]
    rates = {name: [row["tokens"] / row["seconds"] for row in found] for name, found in rows.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "model": model,
        "goal": GOALS[model],
        "ratio": round(medians["next_ray"] / medians["trl"], 2),
        "tokens_per_s": {name: str(spread(values)) for name, values in rates.items()},
        "step_s": {name: str(spread([row["seconds"] for row in found])) for name, found in rows.items()},
        "completion_tokens": {name: round(statistics.mean(row["completion_tokens"] for row in found)) for name, found in rows.items()},
        "steps_counted": {name: len(found) for name, found in rows.items()},
        "load_before_each_run": loads,
    }
