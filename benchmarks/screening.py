"""`python -m benchmarks screening`: how often gates with and without screening accept, and what they gain, at what cost. Simulated.

Prompts have a normal log-odds of being solved, candidates add a gain to it and a little noise of their own per prompt; the gates
are the ones that a job runs (`extrapolate/gate.py`, `extrapolate/screening.py`). Cost is in prompts answered.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np

from next_ray.config import GateSection
from next_ray.extrapolate.gate import decide
from next_ray.extrapolate.screening import num_evaluations, plan_rounds, survivors

GRIDS = {
    "nothing is better": (0.0,) * 8,
    "all are worse": (-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.8, -1.0),
    "a hump": (0.1, 0.2, 0.35, 0.45, 0.45, 0.3, 0.0, -0.4),
    "the farther the better": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "one of eight": (0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0),
    "four candidates": (0.2, 0.4, 0.0, 0.3),
}
"""Gains in log-odds; 0.4 is up to 10 points of accuracy."""
SAMPLES, PROMPTS, BUDGET = 4, 96, 0.75
MEAN, SPREAD, NOISE = -0.3, 1.7, 0.3


def main(argv: list[str]) -> int:
    """Simulate and print JSON: per grid and gate the share of accepted attempts, the mean gain (log-odds) and the cost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks screening", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=300)
    arguments = parser.parse_args(argv)
    report = {}
    for name, gains in GRIDS.items():
        full = num_evaluations(len(gains), PROMPTS, 0.0)
        more = next(p for p in range(PROMPTS, 100 * PROMPTS) if num_evaluations(len(gains), p, BUDGET) >= full)
        gates = {"all tested": (PROMPTS, 0.0), "screened": (PROMPTS, BUDGET), "screened, equal cost": (more, BUDGET)}
        report[name] = {label: simulate(gains, *gate, arguments.repetitions) for label, gate in gates.items()}
    print(json.dumps(report, indent=2))
    return 0


def simulate(gains: Sequence[float], num_prompts: int, budget: float, repetitions: int) -> dict[str, float]:
    """Many attempts of one gate."""
    rng = np.random.default_rng(0)
    taken = [attempt(rng, gains, num_prompts, budget) for _ in range(repetitions)]
    return {
        "prompts": num_prompts,
        "accepted": float(np.mean([t is not None for t in taken])),
        "gain": float(np.mean([0.0 if t is None else gains[t] for t in taken])),
        "cost": num_evaluations(len(gains), num_prompts, budget),
    }


def attempt(rng: np.random.Generator, gains: Sequence[float], num_prompts: int, budget: float) -> int | None:
    """One attempt; the index of the accepted candidate."""
    odds = rng.normal(MEAN, SPREAD, num_prompts)
    own = np.stack([odds, *(odds + gain + NOISE * rng.normal(size=num_prompts) for gain in gains)])
    rewards = (rng.random((*own.shape, SAMPLES)) < 1.0 / (1.0 + np.exp(-own))[..., None]).astype(float)
    scores: dict[str, list[float]] = {str(i): [] for i in range(len(gains))}
    rounds = plan_rounds(len(gains), num_prompts, budget)
    for turn in rounds:
        for name in scores:
            scores[name] += rewards[1 + int(name), turn.start : turn.stop].mean(axis=1).tolist()
        scores = {name: scores[name] for name in survivors(scores, turn.kept)}
    rest = slice(rounds[-1].stop if rounds else 0, None)
    decision = decide(rewards[0, rest], {name: rewards[1 + int(name), rest] for name in scores}, GateSection(), seed=0)
    return None if decision.accepted is None else int(decision.accepted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
