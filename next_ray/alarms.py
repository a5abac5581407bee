"""Warnings that training itself goes wrong, each given once until its cause has passed. Pure.

What is remembered is plain JSON that travels with checkpoints, so that a resumed run warns as the uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from next_ray.config import AlarmSection
from next_ray.types import Alarm, StepRecord

HARMLESS_MISMATCH = 0.01
"""Mean difference of log-probabilities, nats, that is no reason to worry however it has grown: about that of bfloat16."""
CHANCE = 5.0
"""A fall of the mean reward of less than so many standard errors may be chance: the best of hundreds of means is a lucky one."""
PASSED = 0.8
"""Share of an alarm's limit below which its cause has passed; around the limit itself it would come again and again."""

State = dict[str, Any]
"""What `observe` remembers: `recent` values of each signal, the `first` mean of entropy and mismatch, the `best` mean reward, its
`noise` (number of steps, sum of their variances), alarms `in_force`."""


@dataclass(frozen=True)
class Observed:
    """What is remembered now, the alarms to give, and how many are in force."""

    state: State
    alarms: tuple[Alarm, ...]
    num_in_force: int


def observe(state: Mapping[str, Any], record: StepRecord, cfg: AlarmSection) -> Observed:
    """Look at one more step; `state` is what the last call remembered, empty before the first.

    A step that trained nothing tells nothing about entropy and mismatch, and a value that is not finite is passed over.
    """
    recent = {name: list(values) for name, values in state.get("recent", {}).items()}
    noise = _noise(state.get("noise", (0, 0.0)), recent.get("reward"), record.reward_mean)
    for name, value in _signals(record).items():
        if math.isfinite(value):
            recent[name] = [*recent.get(name, []), value][-cfg.window :]
    full = {name: values for name, values in recent.items() if len(values) == cfg.window}
    first = {name: fmean(full[name]) for name in ("entropy", "mismatch") if name in full} | dict(state.get("first", {}))
    best = fmean(full["reward"]) if "reward" in full else state.get("best")
    best = best if state.get("best") is None else max(best, state["best"])
    in_force = set(state.get("in_force", ()))
    alarms = []
    for name, (strain, alarm) in _strains(full, first, best, noise, cfg).items():
        if name in in_force and strain < PASSED:
            in_force.discard(name)
        elif name not in in_force and strain >= 1:
            in_force.add(name)
            alarms.append(alarm)
    remembered = {"recent": recent, "first": first, "best": best, "noise": noise, "in_force": sorted(in_force)}
    return Observed(remembered, tuple(alarms), len(in_force))


def _signals(record: StepRecord) -> dict[str, float]:
    metrics = record.metrics
    found = {"reward": record.reward_mean, "truncated": metrics.get("truncated_fraction", math.nan)}
    if metrics.get("trained_tokens", 0) > 0:
        found |= {"entropy": metrics.get("entropy", math.nan), "mismatch": metrics.get("mismatch_abs", math.nan)}
    return found


def _noise(known: Sequence[float], earlier: Sequence[float] | None, reward: float) -> list[float]:
    """The variance of a step's mean reward from neighbours' differences, which a trend hardly touches (von Neumann 1941)."""
    if not earlier or not math.isfinite(reward):
        return list(known)
    return [known[0] + 1, known[1] + (reward - earlier[-1]) ** 2 / 2]


def _strains(
    full: Mapping[str, Sequence[float]], first: Mapping[str, float], best: float | None, noise: Sequence[float], cfg: AlarmSection
) -> dict[str, tuple[float, Alarm]]:
    """How near each alarm is, 1 at its limit, and what it says."""
    found: dict[str, tuple[float, Alarm]] = {}
    if "reward" in full and best is not None and best > 0:
        deviation = math.sqrt(2 * noise[1] / noise[0] / cfg.window)
        found["reward"] = _reward(fmean(full["reward"]), best, deviation, cfg)
    if "entropy" in full and first["entropy"] > 0:
        found["entropy"] = _entropy(fmean(full["entropy"]), first["entropy"], cfg)
    if "truncated" in full:
        found["length"] = _length(fmean(full["truncated"]), cfg)
    if "mismatch" in full and first["mismatch"] > 0:
        found["mismatch"] = _mismatch(fmean(full["mismatch"]), first["mismatch"], cfg)
    return found


def _reward(mean: float, best: float, deviation: float, cfg: AlarmSection) -> tuple[float, Alarm]:
    is_chance = best - mean <= CHANCE * deviation
    message = (
        f"The mean reward of {cfg.window} steps fell from {best:.3g} to {mean:.3g}. Look at samples.jsonl and the verdicts; lower "
        "learner.lr or raise algorithm.kl_coef, and go back to an earlier checkpoint if it does not recover."
    )
    return min((best - mean) / best / cfg.reward_drop, PASSED if is_chance else math.inf), Alarm("reward", message)


def _entropy(mean: float, first: float, cfg: AlarmSection) -> tuple[float, Alarm]:
    limit = (1 - cfg.entropy_drop) * first
    message = (
        f"The policy's entropy fell from {first:.3g} nats per token in the first steps to {mean:.3g}: it hardly explores any more. "
        "Raise algorithm.entropy_coef or algorithm.clip_high, lower learner.lr, or take harder problems."
    )
    return limit / mean if mean > 0 else math.inf, Alarm("entropy", message)


def _length(mean: float, cfg: AlarmSection) -> tuple[float, Alarm]:
    message = (
        f"{100 * mean:.0f} % of the completions are cut at rollout.max_response_tokens before they end, and cannot earn what a whole "
        "answer does. Raise it, or punish length (algorithm.overlong_cache_tokens)."
    )
    return mean / cfg.truncated, Alarm("length", message)


def _mismatch(mean: float, first: float, cfg: AlarmSection) -> tuple[float, Alarm]:
    limit = max(cfg.mismatch * first, HARMLESS_MISMATCH)
    message = (
        f"Log-probabilities of engine and learner differ by {mean:.3g} nats on average, {first:.3g} in the first steps: the learner "
        "trains on completions that are less and less its own. Set algorithm.correction, or one format in rollout.dtype and learner.dtype."
    )
    return mean / limit, Alarm("mismatch", message)
