"""`python -m benchmarks alpha_sweep`: what evaluating 8 alphas costs, side by side in one engine, against evaluating one.

Every candidate answers the same prompts. Five ways, on the tiny model and a real vLLM engine:
one        one adapter is loaded and evaluated;
screened   all adapters are loaded at once, halved round by round on the first prompts, and the last is evaluated on the others, as
           `gate.screening` asks for;
together   all adapters are loaded at once and evaluated in one batch;
in turn    the adapters are loaded and evaluated one after the other;
merged     the published way: every candidate is merged into a full model on disk, which the engine loads before it evaluates it.

Both wall clock and processor time are given: the engine works in this process, so that the latter is hardly disturbed by others.
`load` is the part of `one` and `together` that goes into loading adapters.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from next_ray.checkpoints.card import Lineage, Parent
from next_ray.checkpoints.export import Result, export_merged
from next_ray.config import Config
from next_ray.data.prepare import load_splits
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.extrapolate.materialize import to_adapter
from next_ray.extrapolate.methods.registry import make
from next_ray.extrapolate.plan import Plans, Setting
from next_ray.extrapolate.screening import plan_rounds, survivors
from next_ray.models.resolve import PreparedModel, prepare_model
from next_ray.models.tiny import train as train_tiny
from next_ray.models.tiny_spec import TinySpec
from next_ray.reward.verifiers import judge_exact
from next_ray.rollout.engine import EngineSpec, VllmEngine
from next_ray.rollout.probe import probe_adapter
from next_ray.types import Adapter, Group, LoraFactors, Prompt, RolloutRequest, Sampling

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
SIZES = ((1, 1), (8, 1), (32, 1), (96, 1), (96, 4))
"""Prompts and samples of each; the last is the default gate's evaluation."""
SCREENING = 0.75
"""What screening may cost, in evaluations of one."""
AMPLITUDE = 0.02
"""Root mean square of a checkpoint's delta times x for x of root mean square 1: answers keep their length."""


def main(argv: list[str]) -> int:
    """Measure and print JSON: seconds (median, min, max over the repetitions) and the ratios to one evaluation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks alpha_sweep", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--merged-repetitions", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", default=[f"{p}x{s}" for p, s in SIZES], metavar="PROMPTSxSAMPLES")
    arguments = parser.parse_intermixed_args(argv)
    sizes = [(int(prompts), int(samples)) for prompts, _, samples in (size.partition("x") for size in arguments.sizes)]
    config = Config()
    model = prepare_model(config.model, _train)
    trajectory, plans = sweep(model, config.learner.lora.rank)
    adapters = [to_adapter(plan, trajectory).adapter for plan in plans]
    prompts = [*load_splits(config)[0].gate]
    report: dict[str, Any] = {"alphas": len(ALPHAS), "adapter_rank": max(f.rank for f in adapters[0].values()), "sizes": {}}
    with tempfile.TemporaryDirectory() as scratch, VllmEngine(_spec(config, model)) as engine:
        report["engine_start_s"] = engine.info().startup_s
        runner = Runner(engine, config, prompts)
        merged = [Path(scratch) / f"{alpha:g}" for alpha in ALPHAS]
        started = time.perf_counter()
        for folder, plan in zip(merged, plans, strict=True):
            export_merged(folder, Result(plan, trajectory, LINEAGE), Path(model.path))
        report["merging_8_models_s"] = time.perf_counter() - started
        for size in sizes:
            report["sizes"]["x".join(map(str, size))] = measure(runner, size, adapters, merged, arguments)
    print(json.dumps(report, indent=2))
    return 0


LINEAGE = Lineage("tiny", (Parent(1, "made for the benchmark", "peft"),), "two-point", 1.0, 1)


def _train(spec: TinySpec, folder: Path) -> None:
    train_tiny(spec, folder, lambda report: None)


def sweep(model: PreparedModel, rank: int) -> tuple[WeightTrajectory, list[Plans]]:
    """Two checkpoints that differ a little, and two-point's plans for every alpha."""
    first = probe_adapter(model.linear_shapes, rank, 0.5, seed=0, amplitude=AMPLITUDE)
    noise = probe_adapter(model.linear_shapes, rank, 0.5, seed=1, amplitude=AMPLITUDE / 10)
    second = {name: LoraFactors(f.a + 0.1 * noise[name].a, f.b + noise[name].b, f.scale) for name, f in first.items()}
    trajectory = from_adapters([10, 20], [first, second])
    fitted = make("two-point").fit(trajectory, Setting(horizon=1))
    return trajectory, [fitted.at(alpha) for alpha in ALPHAS]


def _spec(config: Config, model: PreparedModel) -> EngineSpec:
    return EngineSpec(
        model_path=model.path,
        base_name=model.name,
        rollout=config.rollout,
        max_lora_rank=2 * config.learner.lora.rank,
        max_adapters=len(ALPHAS),
        max_model_len=config.data.max_prompt_tokens + config.rollout.max_response_tokens,
        seed=0,
        device="cpu",
        deterministic=False,
        data=config.data,
    )


class Runner:
    """The four ways of an evaluation; each returns the number of sampled tokens."""

    def __init__(self, engine: VllmEngine, config: Config, prompts: Sequence[Prompt]) -> None:
        self._engine, self._prompts = engine, prompts
        self._sampling = Sampling(config.evaluation.temperature, 1.0, config.rollout.max_response_tokens)
        self._fresh = 1

    def one(self, size: tuple[int, int], adapter: Adapter) -> int:
        """Load and evaluate one."""
        return self.together(size, [adapter])

    def together(self, size: tuple[int, int], adapters: Sequence[Adapter]) -> int:
        """Load and evaluate all in one batch."""
        self.load(adapters)
        return self._evaluate(size, range(1, len(adapters) + 1))

    def screened(self, size: tuple[int, int], adapters: Sequence[Adapter]) -> int:
        """Load all, choose one on the first prompts and evaluate it on the others."""
        self.load(adapters)
        num_prompts, samples = size
        scores: dict[str, list[float]] = {str(version): [] for version in range(1, len(adapters) + 1)}
        start = sampled = 0
        for turn in plan_rounds(len(adapters), num_prompts, SCREENING):
            groups = self._groups([int(name) for name in scores], self._prompts[turn.start : turn.stop], samples)
            sampled += _num_tokens(groups)
            per_version = turn.stop - turn.start
            for i, name in enumerate(scores):
                for group in groups[i * per_version : (i + 1) * per_version]:
                    scores[name].append(fmean(judge_exact(c.text, group.prompt.answer) for c in group.completions))
            scores = {name: scores[name] for name in survivors(scores, turn.kept)}
            start = turn.stop
        (finalist,) = scores
        return sampled + _num_tokens(self._groups([int(finalist)], self._prompts[start:num_prompts], samples))

    def load(self, adapters: Sequence[Adapter]) -> int:
        """Load them and no more."""
        self._engine.load(dict(enumerate(adapters, start=1)))
        return 0

    def in_turn(self, size: tuple[int, int], adapters: Sequence[Adapter]) -> int:
        """One after the other."""
        return sum(self.one(size, adapter) for adapter in adapters)

    def merged(self, size: tuple[int, int], folders: Sequence[Path]) -> int:
        """Full models from disk, one after the other; the weights are replaced in the running engine, which is faster than a new one."""
        self._engine.load({})
        sampled = 0
        for folder in folders:
            llm: Any = self._engine._llm
            llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            llm.reset_prefix_cache()
            sampled += self._evaluate(size, [0])
        return sampled

    def _evaluate(self, size: tuple[int, int], versions: Sequence[int]) -> int:
        num_prompts, samples = size
        return _num_tokens(self._groups(versions, self._prompts[:num_prompts], samples))

    def _groups(self, versions: Sequence[int], prompts: Sequence[Prompt], samples: int) -> list[Group]:
        requests = [RolloutRequest(prompt, version, 0, samples) for version in versions for prompt in prompts]
        return self._engine.generate(requests, self._sampling)


def _num_tokens(groups: Sequence[Group]) -> int:
    return sum(len(completion.token_ids) for group in groups for completion in group.completions)


def measure(
    runner: Runner, size: tuple[int, int], adapters: Sequence[Adapter], merged: Sequence[Path], arguments: argparse.Namespace
) -> dict[str, Any]:
    """All ways at one size, repetitions interleaved so that a busy machine disturbs them alike."""
    ways: dict[str, Callable[[], int]] = {
        "one": lambda: runner.one(size, adapters[3]),
        "load_one": lambda: runner.load(adapters[3:4]),
        "together": lambda: runner.together(size, adapters),
        "load_together": lambda: runner.load(adapters),
        "in_turn": lambda: runner.in_turn(size, adapters),
    }
    if plan_rounds(len(adapters), size[0], SCREENING):
        ways["screened"] = lambda: runner.screened(size, adapters)
    clocks = Clocks()
    for repetition in range(1 + arguments.repetitions):
        for name, way in ways.items():
            clocks.time(name, way, warm_up=repetition == 0)
    for _ in range(arguments.merged_repetitions):
        clocks.time("merged", lambda: runner.merged(size, merged))
    return clocks.report()


class Clocks:
    """Seconds of every way, by the wall and by the processor."""

    def __init__(self) -> None:
        self._seconds: dict[str, dict[str, list[float]]] = {"wall": {}, "cpu": {}}
        self._tokens: dict[str, int] = {}

    def time(self, name: str, way: Callable[[], int], warm_up: bool = False) -> None:
        """Run once."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._tokens[name] = way()
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        if not warm_up:
            for clock, seconds in found.items():
                self._seconds[clock].setdefault(name, []).append(seconds)

    def report(self) -> dict[str, Any]:
        """Medians with least and largest, and the ratios: those to `one` repetition by repetition, the others of medians."""
        result: dict[str, Any] = {"sampled_tokens": {name: count for name, count in self._tokens.items() if count}}
        for clock, seconds in self._seconds.items():
            ratios = {
                f"{way}_over_one": _spread([found / one for one, found in zip(seconds["one"], seconds[way], strict=True)], 2)
                for way in ("screened", "together")
                if way in seconds
            }
            middle = {name: float(np.median(found)) for name, found in seconds.items()}
            result[clock] = {
                "seconds": {name: _spread(found, 4) for name, found in seconds.items()},
                **ratios,
                "in_turn_over_together": round(middle["in_turn"] / middle["together"], 2),
                "merged_over_together": round(middle["merged"] / middle["together"], 2),
            }
        return result


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
