"""A plan as tables: splits, phases, memory, cost, and what all that stands on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from next_ray.config import Config
from next_ray.model_facts import ModelFacts
from next_ray.planning.devices import Pool
from next_ray.planning.splits import Splits
from next_ray.planning.steps import Plan
from next_ray.planning.workload import Workload

COST_STEPS = 100


def planned(
    config: Config, facts: ModelFacts, pools: Sequence[Pool], work: Workload, splits: Splits, said: Collection[str], jump_saves: float
) -> RenderableType:
    """Everything that is foretold, ready for `Console.print`. `said` are the fields of `work` that the user gave."""
    best = splits.best[0]
    there = ", ".join(f"{pool.count} x {pool.device.name}" for pool in pools)
    return Group(
        Text(f"{config.run.name}: {facts.name} ({facts.num_parameters:,} parameters) on {there}", style="bold"),
        Text(f"\nSplits, the fastest first (dollars for {COST_STEPS} steps)", style="bold"),
        _splits(splits),
        Text(f"\nThe fastest: {best.layout.settings}", style="bold"),
        _phases(best),
        Text(_bottleneck(config, best)),
        Text("\nMemory per device", style="bold"),
        _memory(best),
        Text("\nCost", style="bold"),
        _cost(config, best, jump_saves),
        Text("\nWhat this stands on", style="bold"),
        _grounds(pools, work, said),
    )


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left or name in ("bound by", "engines", "ranks") else "right")
    return table


def _indented(what: RenderableType) -> RenderableType:
    return Padding(what, (0, 0, 0, 2))


def _splits(splits: Splits) -> RenderableType:
    table = _table("", "engines", "ranks", "ZeRO", "step", "rollout", "update", "dollars")
    rows = [("job", splits.own)] if splits.own is not None else []
    rows += [(f"{place}.", found) for place, found in enumerate(splits.best, start=1)]
    for label, found in rows:
        layout, cost = found.layout, found.cost(COST_STEPS)
        spans = f" of {layout.spans}" if layout.spans > 1 else ""
        engines, ranks = f"{layout.engines}{spans} x {layout.engine_device.name}", f"{layout.ranks} x {layout.learner_device.name}"
        times = [duration(seconds) for seconds in (found.step_s, found.seconds("rollout"), found.seconds("update"))]
        table.add_row(label, engines, ranks, str(layout.zero_stage), *([*times, _dollars(cost)] if found.fits else ["does not fit"]))
    if splits.own is None:
        return _indented(Group(table, Text("The job's own layout wants more devices than there are.", style="dim")))
    return _indented(table)


def _phases(found: Plan) -> RenderableType:
    table = _table("phase", "takes", "step", "s a step", "bound by")
    for phase in found.phases:
        often = "each" if phase.per_step >= 1 else f"1 of {1 / phase.per_step:.3g}"
        beside = "" if phase.is_waited_for else " (beside training)"
        table.add_row(phase.name, duration(phase.seconds), often, f"{phase.step_seconds:,.3g}", phase.bound + beside)
    table.add_row("a step", "", "", f"{found.step_s:,.3g}", "", style="bold")
    return _indented(table)


def _bottleneck(config: Config, found: Plan) -> str:
    phase = found.bottleneck
    ahead = config.rollout.max_staleness
    how = "rollout and update go on beside each other" if ahead else "one phase waits for the other"
    share = phase.step_seconds / found.step_s
    return f"  Bottleneck: {phase.name}, {share:.0%} of a step, bound by {phase.bound}; {how} (rollout.max_staleness={ahead})."


def _memory(found: Plan) -> RenderableType:
    table = _table("device", "part", "GiB", left=2)
    for need in found.needs:
        for index, part in enumerate(need.parts):
            table.add_row(need.who if index == 0 else "", part.part, _gib(part.num_bytes))
        table.add_row("", f"together, of {_gib(need.has)} that it can use", _gib(need.num_bytes), style="bold", end_section=True)
    slots = f"The cache holds {found.slots:,} sequences of mean age at once in an engine."
    return _indented(Group(table, Text(slots)))


def _cost(config: Config, found: Plan, jump_saves: float) -> RenderableType:
    devices = {device.name: device for device in (found.layout.engine_device, found.layout.learner_device)}.values()
    whose = "; ".join(
        f"{d.name} at {_dollars(d.price_per_hour)} an hour, {'your price' if d.is_own_price else 'a placeholder: give yours with --price'}"
        for d in devices
    )
    steps = config.run.steps
    lines = [
        f"{_dollars(found.cost(COST_STEPS))} for {COST_STEPS} steps ({duration(COST_STEPS * found.step_s)}), "
        f"{_dollars(found.cost(steps))} for the job's {steps:,} ({duration(steps * found.step_s)}), starts and final evaluation left out.",
        f"{found.layout.num_devices} devices: {whose}.",
    ]
    if jump_saves:
        left = steps * (1 - jump_saves)
        lines.append(
            f"If jumps saved {jump_saves:.0%} of the steps, which is your assumption and not a forecast: "
            f"{_dollars(found.cost(left))} ({duration(left * found.step_s)})."
        )
    return _indented(Text("\n".join(lines)))


def _grounds(pools: Sequence[Pool], work: Workload, said: Collection[str]) -> RenderableType:
    def whose(name: str) -> str:
        return "yours" if name in said else "assumed"

    vendor = "; ".join(f"{pool.device.name}: {pool.device.source}" for pool in pools)
    is_gpu = pools[0].device.is_gpu
    lines = [
        f"you:      {work.prompt_tokens:,.0f} tokens a prompt ({whose('prompt_tokens')}), {work.response_tokens:,.0f} a completion "
        f"({whose('response_tokens')}), {work.signal:.0%} of the groups trained on ({whose('signal')})",
        f"devices:  {vendor}",
        "rates:    "
        + (
            "shares of these figures that engines and learners reach on GPUs are assumed; nothing was measured on a GPU"
            if is_gpu
            else "of one core, measured on tiny alone and in part assumed; docs/planning.md says what, and how far off they were"
        ),
        "measured: verifiers, driver, delta workers and the store, on CPU",
    ]
    return _indented(Text("\n".join(lines)))


def duration(seconds: float) -> str:
    """Seconds for a reader: ms, s, min, h or days."""
    for limit, unit, size in ((1, "ms", 0.001), (120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:,.3g} days"


def _dollars(amount: float) -> str:
    return f"${amount:,.0f}" if amount >= 100 else f"${amount:,.2f}" if amount >= 1 else f"${amount:.4f}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.1f}" if num_bytes >= 2**30 else f"{num_bytes / 2**30:,.4f}"
