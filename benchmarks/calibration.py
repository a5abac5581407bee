"""What stages took on this CPU beside what the planner says of them, and the constants that fit best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from next_ray.config import Config
from next_ray.delta.sharding import module_cost
from next_ray.model_facts import ModelFacts
from next_ray.planning.devices import DEVICES, Device
from next_ray.planning.rates import Rates
from next_ray.planning.steps import Layout, Plan, plan
from next_ray.planning.workload import Workload

PHASES = ("rollout", "update", "delta")
SAMPLING = ("decode", "token_s", "layer_token_s", "sequence_token_s")
UPDATING = ("update", "update_s", "layer_s")
"""Rates that are fitted, the share of the arithmetic first: its inverse is what a time grows with."""


@dataclass(frozen=True)
class Observed:
    """A setting: its configuration, what its texts were like, and seconds of its stages each time."""

    name: str
    config: Config
    facts: ModelFacts
    work: Workload
    seconds: Mapping[str, float]

    def planned(self, device: Device) -> Plan:
        """What the planner says of it, on one engine and one learner."""
        return plan(self.config, self.facts, Layout(1, 1, device, 1, self.config.learner.zero_stage, device), self.work)


def fitted(runs: Sequence[Observed], device: Device) -> Rates:
    """The rates with which the planner comes nearest to these settings, in relative error; none is negative."""
    rates = replace(device.rates, bandwidth=1e9)  # a core is bound by arithmetic but for the smallest batches
    sampling = _solve(runs, device, rates, SAMPLING, "rollout")
    return replace(device.rates, **sampling, prefill=sampling["decode"], **_solve(runs, device, rates, UPDATING, "update"))


def _solve(runs: Sequence[Observed], device: Device, rates: Rates, names: Sequence[str], phase: str) -> dict[str, float]:
    """A time is linear in the inverse share and in the seconds, so one plan a rate gives the coefficients."""
    share, *seconds = names
    none = {share: 1e12, **dict.fromkeys(seconds, 0.0)}
    columns = []
    for setting in (none | {share: 1.0}, *(none | {name: 1.0} for name in seconds)):
        own = setting | ({"prefill": setting[share]} if share == "decode" else {})
        columns.append([run.planned(replace(device, rates=replace(rates, **own))).seconds(phase) / run.seconds[phase] for run in runs])
    solution, _ = nnls(np.array(columns).T, np.ones(len(runs)))
    return {share: float(1 / max(solution[0], 1e-12)), **dict(zip(seconds, map(float, solution[1:]), strict=True))}


def delta_unit_s(runs: Sequence[Observed]) -> tuple[float, float]:
    """Seconds for a module and for a unit of `module_cost`, likewise."""
    rows = []
    for run in runs:
        lora = run.config.learner.lora
        shapes = run.facts.targeted(lora.target_modules)
        units = sum(s.count * module_cost(s.out_features, s.in_features, lora.rank) for s in shapes)
        rows.append(np.array([sum(s.count for s in shapes), units]) / run.seconds["delta"])
    solution, _ = nnls(np.array(rows), np.ones(len(runs)))
    return float(solution[0]), float(solution[1])


def table(runs: Sequence[Observed], device: Device = DEVICES["cpu"]) -> list[str]:
    """A line a setting and phase in Markdown: measured, planned, and by how much the plan is off."""
    lines = ["| setting | tokens | phase | measured | planned | off by |", "|---|---|---|---|---|---|"]
    for run in runs:
        found = run.planned(device)
        for phase in PHASES:
            off = found.seconds(phase) / run.seconds[phase] - 1
            texts = f"{run.work.prompt_tokens:.0f} + {run.work.response_tokens:.1f}" if phase == PHASES[0] else ""
            times = f"{run.seconds[phase]:.3g} s | {found.seconds(phase):.3g} s"
            lines.append(f"| {run.name if texts else ''} | {texts} | {phase} | {times} | {off:+.0%} |")
    return lines
