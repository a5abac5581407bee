"""What stages took on this CPU beside what the planner says of them, and the constants that fit best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from next_ray.config import Config
from next_ray.model_facts import ModelFacts, facts_of
from next_ray.planning.devices import DEVICES, Device
from next_ray.planning.rates import Rates
from next_ray.planning.steps import Layout, Plan, delta_s, plan
from next_ray.planning.workload import Workload

PHASES = ("rollout", "update")
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


Delta = Sequence[tuple[str, Config, float]]
"""Settings by name, with the measured seconds of their triplets."""


def delta_fitted(runs: Delta) -> list[float]:
    """`DELTA_MODULE_S`, `DELTA_CORE_S` and `DELTA_FEATURE_S`, likewise."""
    rows = []
    for _, config, seconds in runs:
        lora, facts = config.learner.lora, known(config)
        shapes = facts.targeted(lora.target_modules)
        modules, factors = sum(s.count for s in shapes), facts.lora_parameters(lora.rank, lora.target_modules)
        rows.append(np.array([modules, modules * lora.rank**3, factors]) / seconds)
    return nnls(np.array(rows), np.ones(len(rows)))[0].tolist()


def delta_table(runs: Delta) -> list[str]:
    """A line a setting in Markdown."""
    lines = ["| model, rank | measured | planned | off by |", "|---|---|---|---|"]
    for name, config, seconds in runs:
        alone = config.extrapolation.model_copy(update={"delta_workers": 1})
        planned = delta_s(config.model_copy(update={"extrapolation": alone}), known(config))
        lines.append(f"| {name} | {seconds:.3g} s | {planned:.3g} s | {planned / seconds - 1:+.0%} |")
    return lines


def known(config: Config) -> ModelFacts:
    """The model's shapes, which are in the table."""
    facts = facts_of(config.model)
    assert facts is not None
    return facts


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
