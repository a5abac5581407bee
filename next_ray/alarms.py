"""Warnings that training itself goes wrong, each given once until its cause has passed. Pure.

What is remembered is plain JSON that travels with checkpoints, so that a resumed run warns as the uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from next_ray.config import AlarmSection
from next_ray.types import Alarm, StepRecord

HARMLESS_MISMATCH = 0.01
"""Mean difference of log-probabilities, nats, that is no reason to worry however it has grown: about that of bfloat16."""
CHANCE = 4.0
"""A fall of the mean reward of less than so many of its standard errors may be chance."""
PASSED = 0.8
"""Share of an alarm's limit below which its cause has passed; around the limit itself it would come again and again."""

State = dict[str, Any]
"""`recent` values of each signal, the `first` mean of entropy and mismatch, the `best` mean reward with its variance, alarms in force."""


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
    for name, value in _signals(record).items():
        if math.isfinite(value):
            recent[name] = [*recent.get(name, []), value][-cfg.window :]
    full = {name: values for name, values in recent.items() if len(values) == cfg.window}
    first = {name: fmean(full[name]) for name in ("entropy", "mismatch") if name in full} | dict(state.get("first", {}))
    best = _best(state.get("best"), full.get("reward"))
    in_force = set(state.get("in_force", ()))
    alarms = []
    for name, (strain, alarm) in _strains(full, first, best, cfg).items():
        if name in in_force and strain < PASSED:
            in_force.discard(name)
        elif name not in in_force and strain >= 1:
            in_force.add(name)
            alarms.append(alarm)
    remembered = {"recent": recent, "first": first, "best": best, "in_force": sorted(in_force)}
    return Observed(remembered, tuple(alarms), len(in_force))


def _signals(record: StepRecord) -> dict[str, float]:
    metrics = record.metrics
    found = {"reward": record.reward_mean, "truncated": metrics.get("truncated_fraction", math.nan)}
    if metrics.get("trained_tokens", 0) > 0:
        found |= {"entropy": metrics.get("entropy", math.nan), "mismatch": metrics.get("mismatch_abs", math.nan)}
    return found


def _best(known: Sequence[float] | None, values: Sequence[float] | None) -> list[float] | None:
    """The best mean reward of a window so far, and the variance of that mean."""
    if values is None:
        return None if known is None else list(known)
    now = [fmean(values), stdev(values) ** 2 / len(values)]
    return now if known is None or now[0] > known[0] else list(known)


def _strains(
    full: Mapping[str, Sequence[float]], first: Mapping[str, float], best: Sequence[float] | None, cfg: AlarmSection
) -> dict[str, tuple[float, Alarm]]:
    """How near each alarm is, 1 at its limit, and what it says."""
    found: dict[str, tuple[float, Alarm]] = {}
    if "reward" in full and best is not None and best[0] > 0:
        found["reward"] = _reward(full["reward"], best, cfg)
    if "entropy" in full and first["entropy"] > 0:
        found["entropy"] = _entropy(fmean(full["entropy"]), first["entropy"], cfg)
    if "truncated" in full:
        found["length"] = _length(fmean(full["truncated"]), cfg)
    if "mismatch" in full and first["mismatch"] > 0:
        found["mismatch"] = _mismatch(fmean(full["mismatch"]), first["mismatch"], cfg)
    return found


def _reward(values: Sequence[float], best: Sequence[float], cfg: AlarmSection) -> tuple[float, Alarm]:
    mean, variance = fmean(values), stdev(values) ** 2 / len(values)
    lost = best[0] - mean
    is_chance = lost <= CHANCE * math.sqrt(variance + best[1])
    message = (
        f"The mean reward of {len(values)} steps fell from {best[0]:.3g} to {mean:.3g}. Look at samples.jsonl and the verdicts; lower "
        "learner.lr or raise algorithm.kl_coef, and go back to an earlier checkpoint if it does not recover."
    )
    return min(lost / best[0] / cfg.reward_drop, PASSED if is_chance else math.inf), Alarm("reward", message)


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
