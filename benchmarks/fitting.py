"""`python -m benchmarks fitting`: NExt's predictor as it is here against the released training loop, same data, same machine.

The trajectory has c + k checkpoints; both see the first c = 15 and foretell T_c, and the error is
|T_hat - T_c|_F / |T_c|_F, mean over modules, T_c being the top singular triplet of W_{c+k} - W_c.
Ours counts the first fit, all later ones and the back test, as a run has them; the release fits once at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import spread
from benchmarks.trajectories import Checkpoints, synthetic, tiny_under_rl
from next_ray.config import PredictorSection
from next_ray.delta.trajectory import from_adapters
from next_ray.extrapolate.methods.released import with_own_signs
from next_ray.predict.baselines import linear, persistence, relative_error
from next_ray.predict.predictor import TrajectoryPredictor
from next_ray.predict.released import foretell, groups, num_parameters
from next_ray.predict.trajectory import AlignedTrajectory
from next_ray.types import CheckpointTriplets, Triplet

WIDE = {
    f"model.layers.{n}.self_attn.{name}_proj": shape
    for n in range(2)
    for name, shape in {"q": (896, 896), "k": (128, 896), "o": (896, 896)}.items()
}
"""Attention of two layers of Qwen2.5-0.5B."""


@dataclass(frozen=True)
class Seen:
    """What the methods see, and what they are asked for."""

    past: list[CheckpointTriplets]
    future: dict[str, Triplet]


def main(argv: list[str]) -> int:
    """Fit both to every trajectory, print times, errors and parameters as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fitting", description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=15, help="c, checkpoints that are seen")
    parser.add_argument("--horizon", type=int, default=5, help="k")
    parser.add_argument("--interval", type=int, default=3, help="RL updates of the tiny model between checkpoints")
    parser.add_argument("--tiny-seeds", type=int, default=3, help="RL runs of the tiny model, one seed of the fits each")
    parser.add_argument("--wide-seeds", type=int, default=2, help="synthetic trajectories of width 896, one seed of the fits each")
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    count = arguments.checkpoints + arguments.horizon
    report: dict[str, Any] = {}
    tiny: list[Mapping[str, Any]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.tiny_seeds):
        checkpoints, rewards = tiny_under_rl(count, arguments.interval, seed)
        tiny.append(compare(seen(checkpoints, arguments.checkpoints, arguments.horizon), arguments.horizon, seed))
        report.setdefault("tiny_rewards", []).append([round(reward, 3) for reward in rewards])
    report["tiny"] = summary(tiny)
    wide = [
        compare(seen(synthetic(count, WIDE, seed), arguments.checkpoints, arguments.horizon), arguments.horizon, seed)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.wide_seeds)
    ]
    report["wide"] = summary(wide)
    print(json.dumps({"settings": vars(arguments), **report}, indent=2))
    return 0


def seen(checkpoints: Checkpoints, count: int, horizon: int) -> Seen:
    """Triplets of the first `count` checkpoints, and the target that lies behind them."""
    triplets = from_adapters(range(1, count + horizon + 1), checkpoints).triplets(horizon)
    future = {name: module.target for name, module in triplets[-1].modules.items() if module.target is not None}
    return Seen(triplets[:count], future)


def compare(data: Seen, horizon: int, seed: int) -> dict[str, Any]:
    """One trajectory: seconds of processor time, held-out error and parameters of all contestants."""
    predictor = TrajectoryPredictor(PredictorSection(), horizon, seed, abstain=False)

    def ours() -> dict[str, Triplet]:
        for checkpoint in data.past:
            predictor.observe(checkpoint)
        return predictor.predict()

    foretell(data.past, horizon, seed, steps=1)  # torch loads parts of itself at the first optimizer step
    own_signs = [with_own_signs(checkpoint) for checkpoint in data.past]
    result: dict[str, Any] = {
        "next": timed(ours, data.future),
        "released": timed(lambda: foretell(own_signs, horizon, seed), data.future),
        "released_aligned": timed(lambda: foretell(data.past, horizon, seed), data.future),
    }
    result["next"]["parameters"] = int(predictor.stats["parameters"])
    for name in ("released", "released_aligned"):
        result[name]["parameters"] = num_parameters(list(groups(data.past, horizon)))
    aligned = AlignedTrajectory(horizon)
    for checkpoint in data.past:
        aligned.append(checkpoint)
    result["persistence"] = {"error": relative_error(persistence(aligned), data.future)}
    result["linear"] = {"error": relative_error(linear(aligned), data.future)}
    return result


def timed(work: Callable[[], dict[str, Triplet]], future: Mapping[str, Triplet]) -> dict[str, Any]:
    """Processor seconds of this process (the machine may be shared; both fits use one thread) and the held-out error."""
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    return {
        "seconds": time.process_time() - processor,
        "wall_seconds": time.perf_counter() - wall,
        "error": relative_error(found, future),
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and range over the runs, and ours as a share of the released."""
    if not runs:
        return {}
    result: dict[str, Any] = {name: {field: str(spread([run[name][field] for run in runs])) for field in runs[0][name]} for name in runs[0]}
    for released in ("released", "released_aligned"):
        result[f"next_over_{released}"] = {
            field: str(spread([run["next"][field] / run[released][field] for run in runs])) for field in ("seconds", "error", "parameters")
        }
    return result
