"""`python -m benchmarks plan`: what the planner foretells beside what stages took on one core, and the constants it takes from them.

The stages are a run's own, an engine and a learner with one thread each, in this process and without Ray, so that processor seconds can
be read; on a free core they are wall clock. The settings of `CALIBRATION` give the constants; those of `CHECK`, with other batches, ranks
and lengths, say how far the planner is off. Measurements that are in the folder already are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from benchmarks.calibration import Observed, delta_fitted, delta_table, fitted, known, table
from next_ray.config import Config
from next_ray.data.prepare import load_splits
from next_ray.delta.window import DeltaWindow
from next_ray.planning.devices import DEVICES
from next_ray.planning.workload import Workload
from next_ray.precision import resolve_dtypes
from next_ray.settings import load_config
from next_ray.types import Group, GroupSize, LoraFactors, Ref, RolloutRequest, Sampling, Shard

T = TypeVar("T")
SMOL = "jobs/smollm2-135m.yaml"
QWEN = "jobs/qwen2.5-1.5b-next.yaml"
SHARED = ("rollout.threads=1", "learner.threads=1", "rollout.kv_cache_gib=1")
WORDY = "data.train.question='What is {a} {op} {b}? Explain it in a sentence, then say the number.'"
REPETITIONS = 2
"""After a first time that is not counted; the faster one counts, since whatever else the machine does only adds."""


@dataclass(frozen=True)
class Setting:
    """A job file (None: tiny) and overrides."""

    job: str | None
    overrides: tuple[str, ...]


def _sized(prompts: int, samples: int, rank: int, *more: str) -> tuple[str, ...]:
    return (f"rollout.prompts_per_step={prompts}", f"rollout.samples_per_prompt={samples}", f"learner.lora.rank={rank}", *more)


CALIBRATION = {
    "tiny-64x8": Setting(None, _sized(64, 8, 16)),
    "tiny-16x4": Setting(None, _sized(16, 4, 16)),
    "smollm2-8x4": Setting(SMOL, _sized(8, 4, 16)),
    "smollm2-2x4": Setting(SMOL, _sized(2, 4, 16)),
}
CHECK = {
    "tiny-128x4-rank-32": Setting(None, _sized(128, 4, 32, "learner.mini_batch_prompts=64", "learner.micro_batch_tokens=1024")),
    "tiny-24x16-rank-8": Setting(None, _sized(24, 16, 8)),
    "smollm2-4x6-longer-rank-32": Setting(SMOL, _sized(4, 6, 32, "rollout.max_response_tokens=40", WORDY)),
    "smollm2-12x4-rank-8": Setting(SMOL, _sized(12, 4, 8, "rollout.max_response_tokens=8")),
}

DELTA_CALIBRATION = {"tiny, 16": Setting(None, ()), "SmolLM2-135M, 16": Setting(SMOL, ()), "Qwen2.5-1.5B, 64": Setting(QWEN, ())}
DELTA_CHECK = {
    "tiny, 8": Setting(None, ("learner.lora.rank=8",)),
    "tiny, 32": Setting(None, ("learner.lora.rank=32",)),
    "SmolLM2-135M, 8": Setting(SMOL, ("learner.lora.rank=8",)),
    "SmolLM2-135M, 32": Setting(SMOL, ("learner.lora.rank=32",)),
    "Qwen2.5-1.5B, 16": Setting(QWEN, ("learner.lora.rank=16",)),
}


def main(argv: list[str]) -> int:
    """Measure what is missing; then print constants and tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plan", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-plan"))
    parser.add_argument("--only", choices=[*CALIBRATION, *CHECK], nargs="+", help="measure these and print nothing")
    parser.add_argument("--deltas", action="store_true", help="the triplets instead, which need neither engine nor learner")
    arguments = parser.parse_args(argv)
    if arguments.deltas:
        report_deltas()
        return 0
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, setting in (CALIBRATION | CHECK).items():
        file = arguments.folder / f"{name}.json"
        if not file.exists() and (arguments.only is None or name in arguments.only):
            found = measure(config_of(setting)) | {"load_average": os.getloadavg()[0]}
            file.write_text(json.dumps(found))
            print(name, found, flush=True)
    if arguments.only is None:
        report(arguments.folder)
    return 0


def config_of(setting: Setting) -> Config:
    """The job with its number formats decided."""
    return resolve_dtypes(load_config(setting.job, [*SHARED, *setting.overrides]), "cpu")


def report(folder: Path) -> None:
    """The constants that fit the calibration, and the planner with its present ones beside everything."""

    def read(settings: dict[str, Setting]) -> list[Observed]:
        return [
            _observed(name, config_of(setting), json.loads((folder / f"{name}.json").read_text())) for name, setting in settings.items()
        ]

    calibration, check = read(CALIBRATION), read(CHECK)
    print("fitted:", fitted(calibration, DEVICES["cpu"]))
    print("\nwhat the constants were taken from", *table(calibration), sep="\n")
    print("\nother settings", *table(check), sep="\n")


def report_deltas() -> None:
    """Measure triplets, which takes a minute, and print likewise."""

    def timed_deltas(settings: dict[str, Setting]) -> list[tuple[str, Config, float]]:
        configs = {name: config_of(setting) for name, setting in settings.items()}
        return [(name, config, delta_seconds(config)) for name, config in configs.items()]

    calibration, check = timed_deltas(DELTA_CALIBRATION), timed_deltas(DELTA_CHECK)
    print("fitted: DELTA_MODULE_S, DELTA_CORE_S, DELTA_FEATURE_S =", *(f"{value:.3g}" for value in delta_fitted(calibration)))
    print("\nwhat they were taken from", *delta_table(calibration), sep="\n")
    print("\nother settings", *delta_table(check), sep="\n")


def _observed(name: str, config: Config, found: dict[str, Any]) -> Observed:
    return Observed(name, config, known(config), Workload(**found["work"]), found["seconds"])


def measure(config: Config) -> dict[str, Any]:
    """Processor seconds of every stage for one batch, and what the batch was like."""
    from next_ray.actors.launch import engine_spec, learner_spec
    from next_ray.learn.deepspeed_learner import DeepSpeedLearner
    from next_ray.models.resolve import prepare_model
    from next_ray.rollout.engine import VllmEngine
    from next_ray.rollout.probe import probe_adapter

    model = prepare_model(config.model, _trained_tiny)
    adapter = probe_adapter(model.linear_shapes, config.learner.lora.rank, 1.0, seed=0, amplitude=0.02)
    seconds: dict[str, float] = {}
    with VllmEngine(engine_spec(config, model, "cpu")) as engine:
        versions = iter(range(1, 100))

        def hand_over() -> int:
            version = next(versions)
            engine.load({version: adapter}, version)
            return version

        seconds["load"], version = timed(hand_over)
        sampling = Sampling(config.rollout.temperature, 1.0, config.rollout.max_response_tokens)
        prompts = load_splits(config)[0].train[: 4 * config.rollout.prompts_per_step]
        turns = iter(range(100))

        def sample() -> list[Group]:
            start = next(turns) * config.rollout.prompts_per_step
            own = [prompts[(start + i) % len(prompts)] for i in range(config.rollout.prompts_per_step)]
            requests = [RolloutRequest(p, version, start * 1000 + i * 100, config.rollout.samples_per_prompt) for i, p in enumerate(own)]
            return engine.generate(requests, sampling)

        seconds["rollout"], groups = timed(sample)
    plan = update_plan(groups, config, version)
    with DeepSpeedLearner(learner_spec(config, model, "cpu")) as learner:
        seconds["update"], _ = timed(lambda: learner.update(plan, [groups]))
        seconds["snapshot"], _ = timed(learner.snapshot)
    return {"seconds": seconds, "work": asdict(work_of(groups, config))}


def delta_seconds(config: Config) -> float:
    """Processor seconds for the triplets of one checkpoint in a window that is full, from random factors of the model's shapes."""
    facts, rank = known(config), config.learner.lora.rank
    draw = np.random.default_rng(0)
    shapes = [(f"{i}.{s.name}", s) for s in facts.targeted(config.learner.lora.target_modules) for i in range(s.count)]
    window, indices = DeltaWindow(2), iter(range(1, 100))

    def observe() -> None:
        index = next(indices)
        factors = {
            name: LoraFactors(draw.standard_normal((rank, s.in_features), "f4"), draw.standard_normal((s.out_features, rank), "f4"), 1.0)
            for name, s in shapes
        }
        started = time.process_time()
        window.observe(index, index, factors)
        spent.append(time.process_time() - started)

    spent: list[float] = []
    for _ in range(REPETITIONS + 3):
        observe()
    return min(spent[3:])


def timed(what: Callable[[], T]) -> tuple[float, T]:
    """The least processor seconds of this process, and the last result."""
    result, spent = what(), []
    for _ in range(REPETITIONS):
        started = time.process_time()
        result = what()
        spent.append(time.process_time() - started)
    return min(spent), result


def update_plan(groups: Sequence[Group], config: Config, version: int) -> Any:
    """An update over all completions, each with an advantage."""
    from next_ray.learn.packing import Versions, plan_update

    sizes = []
    for group in groups:
        num = len(group.completions)
        sizes.append(
            GroupSize(len(group.prompt_token_ids), tuple(len(c.token_ids) for c in group.completions), (version,) * num, (False,) * num)
        )
    advantages = [[1.0 if i % 2 else -1.0 for i in range(len(g.completions))] for g in groups]
    learner = config.learner
    return plan_update(
        [Shard(Ref(list(groups)), tuple(sizes))],
        advantages,
        Versions(version, version),
        num_ranks=1,
        prompts_per_mini_batch=learner.mini_batch_prompts,
        micro_batch_tokens=learner.micro_batch_tokens,
        drop_zero_advantage=True,
    )


def work_of(groups: Sequence[Group], config: Config) -> Workload:
    """Lengths as they were."""
    lengths = [len(c.token_ids) for g in groups for c in g.completions]
    return Workload(fmean(len(g.prompt_token_ids) for g in groups), fmean(lengths), config.rollout.max_response_tokens, 1.0)


def _trained_tiny(spec: Any, folder: Path) -> None:
    from next_ray.models.tiny import train

    train(spec, folder, lambda report: None)
