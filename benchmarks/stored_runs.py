"""A made-up run in a real checkpoint store: what a run of that many steps leaves, without training anything."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from next_ray.config import Config
from next_ray.evaluate.metrics import evaluation
from next_ray.progress import Progress
from next_ray.report.final import Totals, prompt_scores, summary
from next_ray.report.rows import alarm_row, attempt_row, evaluation_row, fault_row, step_row, under_way
from next_ray.settings import load_config
from next_ray.store.checkpoints import CheckpointStore
from next_ray.store.layout import ATTEMPTS, CONFIG, SCORES, SUMMARY
from next_ray.types import (
    Adapter,
    Alarm,
    BacktestScore,
    CheckpointKind,
    EvaluationResult,
    Fault,
    FaultEvent,
    GateDecision,
    GateRow,
    JumpRecord,
    LearnerState,
    LoraFactors,
    Prompt,
    Sample,
    StepRecord,
)

FINGERPRINT = "tiny-0123456789abcdef"
PROJECTIONS = {"q": (128, 128), "k": (64, 128), "v": (64, 128), "o": (128, 128), "gate": (256, 128), "up": (256, 128), "down": (128, 256)}
"""Sizes (O, I) of the matrices of a layer of the tiny model."""

VERDICTS = ("verdict_ok", "verdict_wrong", "verdict_no_answer", "verdict_timeout", "verdict_error")
LEARNER = ("loss", "grad_norm", "entropy", "kl", "clip_fraction", "ratio_mean", "ratio_max", "mismatch_kl", "lr", "optimizer_steps")


@dataclass(frozen=True)
class MadeUp:
    """What is made.

    Args:
        name: of the run.
        steps: RL steps done.
        planned: `run.steps`; the run has ended when it is `steps`.
        interval: steps between checkpoints.
        jump_at: the step of an accepted jump, or None for a plain run.
        back_at: the step at which a second, later jump is taken back, or None; it is made `interval` steps before.
        layers, rank: of the adapters.
        seed: of everything.
    """

    name: str
    steps: int = 400
    planned: int = 400
    interval: int = 10
    jump_at: int | None = 150
    back_at: int | None = None
    layers: int = 4
    rank: int = 16
    seed: int = 0

    @property
    def config(self) -> Config:
        """A configuration that fits."""
        settings = [f"run.name={self.name}", f"run.steps={self.planned}", f"run.seed={self.seed}", "evaluation.every_steps=20"]
        settings += [f"extrapolation.enabled={str(self.jump_at is not None).lower()}", f"extrapolation.interval_steps={self.interval}"]
        count = (self.jump_at or 150) // self.interval
        settings += [f"extrapolation.checkpoints={count}", f"extrapolation.horizon={count // 3}"]
        return load_config(None, settings)

    def age(self, step: int) -> float:
        """Steps of a plain run that come to the same: a jump is worth some."""
        return step + (60.0 if self.jump_at is not None and step > self.jump_at else 0.0)

    def skill(self, step: int) -> float:
        """The chance of a right answer after a step."""
        return 0.38 + 0.45 * (1.0 - math.exp(-self.age(step) / 120.0))


def write_run(url: str, made: MadeUp, prompt: str = "Add the numbers.\n{a}+{b}=", endpoint_url: str | None = None) -> CheckpointStore:
    """Write the run into the store at `url` and return it, open; `prompt` is the text of the samples."""
    store, draw, totals = CheckpointStore(url, made.name, endpoint_url), random.Random(made.seed), Totals()
    store.claim_identity({"base_fingerprint": FINGERPRINT, "model": "tiny", "lora_rank": made.rank})
    store.put_json(CONFIG, {"version": "0.1.0", "device": "cpu", "config": made.config.model_dump(mode="json")})
    progress, pending, samples = Progress(), [], []
    for step in range(1, made.steps + 1):
        record = _step(made, step, draw, prompt)
        pending.append(step_row(record))
        samples += [{"step": step, **asdict(sample)} for sample in record.samples]
        if step % 20 == 0 and step < made.planned:
            pending.append(evaluation_row(step, evaluated(made, f"step {step}", step)))
        if step == 37:
            pending.append(alarm_row(step, Alarm("entropy", "The policy's entropy fell by half in ten steps: lower learner.lr.")))
        if step == 203:
            pending += [under_way(fault_row(step - 1, fault)) for fault in _faults()]
        if step % made.interval == 0 or step == made.steps:
            _tables(store, step - (step - 1) % made.interval, step, pending, samples)
            for row in pending:
                totals.add(row)
            pending, samples = [], []
            progress = _checkpoint(store, made, replace(progress, step=step))
            if step in (made.jump_at, made.back_at and made.back_at - made.interval):
                progress = _jump(store, made, progress, totals)
    if made.steps == made.planned:
        _end(store, made, totals)
    return store


def evaluated(made: MadeUp, label: str, step: int, prompts: int = 256, samples: int = 4) -> EvaluationResult:
    """An evaluation on the same prompts in every run, each with a difficulty of its own."""
    hard = np.random.default_rng(7).normal(0.0, 0.25, size=prompts)
    chance = np.clip(made.skill(step) + hard, 0.02, 0.99)
    drawn = np.random.default_rng([made.seed, step, len(label)]).random((prompts, samples))
    return evaluation(label, (drawn < chance[:, None]).astype(np.float64), 1.0, seed=0)


def adapter(made: MadeUp, step: int) -> Adapter:
    """Weights that move fast at first and then slowly, mostly in one direction, with a little noise."""
    rng, found = np.random.default_rng(made.seed), {}
    far = 1.0 - math.exp(-made.age(step) / 150.0)
    for layer in range(made.layers):
        for kind, (out_features, in_features) in PROJECTIONS.items():
            block = "mlp" if kind in ("gate", "up", "down") else "self_attn"
            a = rng.normal(size=(made.rank, in_features)).astype(np.float32)
            ends = [rng.normal(size=(out_features, made.rank)) * (0.02 * (0.5 + rng.random()) ** np.arange(made.rank)) for _ in range(2)]
            noise = np.random.default_rng([made.seed, step, layer]).normal(size=(out_features, made.rank)) * 2e-4
            b = (far * ends[0] + far**2 * 0.5 * ends[1] + noise).astype(np.float32)
            found[f"model.layers.{layer}.{block}.{kind}_proj"] = LoraFactors(a, b, 0.5)
    return found


def _step(made: MadeUp, step: int, draw: random.Random, prompt: str) -> StepRecord:
    reward = made.skill(step) + draw.gauss(0.0, 0.03)
    times = {"rollout": draw.uniform(0.9, 1.3), "reward": 0.12, "plan": 0.03, "update": draw.uniform(0.7, 0.9), "load": 0.11}
    total = sum(times.values()) + 0.02
    metrics = {name: float(draw.randrange(60)) for name in VERDICTS} | {name: draw.random() for name in LEARNER}
    metrics |= {"entropy": 1.1 * math.exp(-step / 300) + draw.gauss(0, 0.02), "completion_tokens_mean": 4.0 + draw.random()}
    metrics |= {"equal_reward_groups": 0.2 + 0.1 * draw.random(), "truncated_fraction": 0.01 * draw.random(), "alarms": 0.0}
    extra = {"checkpoint": 0.04, "evaluate": 1.5} if step % 20 == 1 else {}
    a, b = draw.randrange(10, 90), draw.randrange(10, 90)
    shown = tuple(
        Sample(f"p{step}-{i}", prompt.format(a=a, b=b), f"{a + b - (not right)}", str(a + b), float(right))
        for i, right in enumerate((draw.random() < reward, draw.random() < reward))
    )
    return StepRecord(step, step, reward, 4000 + draw.randrange(400), {**times, **extra, "total": total}, metrics, shown)


def _tables(store: CheckpointStore, start: int, end: int, rows: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]]) -> None:
    store.write_table("metrics", start, end, rows)
    store.write_table("samples", start, end, samples)
    store.write_table(
        "prompts", start, end, [{"step": step, "place": i, "prompt_id": f"{step}-{i}"} for step in range(start, end + 1) for i in range(64)]
    )


def _checkpoint(store: CheckpointStore, made: MadeUp, progress: Progress) -> Progress:
    jump = progress.jumps[-1] if progress.jumps else None
    if jump is not None and made.back_at == progress.step:
        why = (
            "The accuracy of the training completions fell from 0.701 in the 10 steps before it to 0.512 in the 10 steps since (p = 2e-07)."
        )
        taken = {**jump, "rolled_back": progress.step, "why": why}
        progress = replace(progress, jumps=[*progress.jumps[:-1], taken], segment_start=progress.step, trajectory=[])
        path = f"{ATTEMPTS}/{jump['step']:08d}"
        store.put_json(path, {**store.get_json(path), "rolled_back": progress.step, "why": why})
    kind = CheckpointKind.REVERTED if progress.is_reverted else CheckpointKind.TRAINED
    state = LearnerState(adapter(made, progress.step), {}, {"optimizer_steps": progress.step})
    manifest = store.commit(progress.step, kind, state, progress.parents(), FINGERPRINT, progress.to_json())
    return replace(progress, last_checkpoint=manifest.id, trajectory=[*progress.trajectory, manifest.id])


def _jump(store: CheckpointStore, made: MadeUp, progress: Progress, totals: Totals) -> Progress:
    level = made.skill(progress.step)
    rows = [
        GateRow(f"{method}@{alpha:g}", level + gain, gain, 0.6 if gain < 0.02 else 0.004)
        for method, best in (("next", 0.05), ("two-point", 0.07))
        for alpha in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
        for gain in [round(best * (1 - (alpha - 1.5) ** 2 / 3), 4)]
    ]
    backtest = tuple(BacktestScore(i, 0.9 - 0.03 * i, 0.75 - 0.01 * i, 0.7 + 0.01 * i) for i in range(4, 10))
    decision = GateDecision(
        "two-point@1.5", "It is better than the last checkpoint by 7.0 points (p = 0.004, 12 candidates).", level, tuple(rows)
    )
    record = JumpRecord(
        progress.step, decision, backtest, "two-point was nearest", {"alpharl": "one accuracy is missing"},
        {"candidates": 0.6, "gate": 21.0, "adopt": 0.4}, {"truncation_error": 0.01, "digest_wait_s": 0.2}, "two-point", 1.5,
    )  # fmt: skip
    store.put_json(f"{ATTEMPTS}/{progress.step:08d}", asdict(record))
    totals.add(attempt_row(asdict(record)))
    jump = {"step": progress.step, "candidate": "two-point@1.5", "method": "two-point", "alpha": 1.5, "from": progress.last_checkpoint}
    jumped = replace(progress, jumps=[*progress.jumps, jump], segment_start=progress.step, trajectory=[])
    state = LearnerState(adapter(made, progress.step + 1), {}, {"optimizer_steps": progress.step})
    parents = (progress.last_checkpoint,) if progress.last_checkpoint else ()
    manifest = store.commit(progress.step, CheckpointKind.JUMPED, state, parents, FINGERPRINT, jumped.to_json())
    return replace(jumped, last_checkpoint=manifest.id)


def _faults() -> tuple[Fault, Fault]:
    lost = "The actor died unexpectedly before finishing this task (worker died)."
    return Fault("rollout engine 0", FaultEvent.LOST, lost), Fault("rollout engine 0", FaultEvent.BACK, "it serves version 203", 41.5)


def _end(store: CheckpointStore, made: MadeUp, totals: Totals) -> None:
    results = [replace(evaluated(made, "base", 0))]
    if made.jump_at is not None:
        results += [evaluated(made, f"before the jump (step {made.jump_at})", made.jump_at)]
        results += [evaluated(made, "jumped (two-point@1.5)", made.jump_at + 1)]
    results.append(evaluated(made, "final", made.steps))
    prompts = [Prompt(f"{i:016x}", ({"role": "user", "content": str(i)},), str(i), "exact") for i in range(len(results[0].correct))]
    store.put_json(SCORES, prompt_scores(results, prompts))
    store.put_json(SUMMARY, summary(results, totals, {"delta": 14.2, "fit": 9.8}, made.planned, made.seed))
