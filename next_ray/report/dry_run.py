"""`--dry-run`: what a configuration amounts to, without starting anything."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from next_ray import estimate
from next_ray.config import Config
from next_ray.model_facts import ModelFacts
from next_ray.precision import resolve_dtypes
from next_ray.settings import to_yaml


def dry_run(config: Config, facts: ModelFacts | None) -> RenderableType:
    """The resolved configuration, derived sizes, schedule, placement and memory estimate, ready for `Console.print`."""
    on_gpu = _on_gpu(config, facts)
    config = resolve_dtypes(config, "gpu" if on_gpu else "cpu")
    return Group(
        _title("Resolved configuration"),
        Syntax(to_yaml(config), "yaml", background_color="default", word_wrap=True),
        _title("One RL step"),
        _batches(config),
        _title("Schedule"),
        _schedule(config),
        _title(
            f"Placement on {'GPUs' if on_gpu else 'CPUs'}"
            + (" (cluster.device: auto; decided when the cluster is known)" if _undecided(config) else "")
        ),
        _placement(config, on_gpu),
        _title("Memory per device, estimated from shapes"),
        _memory(config, facts, on_gpu),
        *(Text(f"\nWorth a look: {advice}", style="yellow") for advice in estimate.advice(config)),
        Text("Nothing was started.", style="dim"),
    )


def _undecided(config: Config) -> bool:
    return config.cluster.device == "auto"


def _on_gpu(config: Config, facts: ModelFacts | None) -> bool:
    """`auto` is decided by the cluster; until then a billion parameters or more, or delta workers that want GPUs, mean GPUs."""
    if _undecided(config):
        return bool(estimate.delta_bundle(config)) or (facts is not None and facts.num_parameters >= 10**9)
    return config.cluster.device == "gpu"


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _pairs(rows: Iterable[tuple[str, str]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return Padding(table, (0, 0, 0, 2))


def _batches(config: Config) -> RenderableType:
    sizes = estimate.batch_sizes(config)
    rollout, learner = config.rollout, config.learner
    longest = f"({config.data.max_prompt_tokens} + {rollout.max_response_tokens})"
    return _pairs(
        [
            ("completions", f"{sizes.completions_per_step:,} = {rollout.prompts_per_step} prompts x {rollout.samples_per_prompt} samples"),
            ("tokens, at most", f"{sizes.max_tokens_per_step:,} = {sizes.completions_per_step:,} x {longest}"),
            ("of them sampled", f"{sizes.max_response_tokens_per_step:,}"),
            (
                "optimizer steps",
                f"{sizes.optimizer_steps_per_step} a step, {sizes.optimizer_steps_in_all:,} in all {config.run.steps} steps",
            ),
            ("mini batch", f"{sizes.completions_per_mini_batch:,} completions over {learner.ranks} rank(s)"),
            (
                "micro batches, at most",
                f"{sizes.max_micro_batches_per_rank} a rank and optimizer step, "
                f"{sizes.sequences_per_micro_batch} full sequence(s) in {learner.micro_batch_tokens:,} tokens",
            ),
        ]
    )


def _steps(steps: tuple[int, ...]) -> str:
    if len(steps) <= 20:
        return ", ".join(map(str, steps)) or "none"
    return f"{', '.join(map(str, steps[:4]))}, ... {steps[-1]} ({len(steps)} in all)"


def _schedule(config: Config) -> RenderableType:
    times, plan = estimate.run_schedule(config), config.extrapolation
    rows = [("checkpoints at", _steps(times.checkpoint_steps))]
    if not plan.enabled:
        rows.append(("jumps", "none: extrapolation.enabled is false"))
    elif not times.jump_steps:
        rows.append(
            (
                "jumps",
                f"none: the first would be at step {times.first_jump_step} = {plan.interval_steps} x {plan.checkpoints} "
                f"(interval_steps x checkpoints), which is not before run.steps={config.run.steps}",
            )
        )
    else:
        rows.append(
            ("jumps tried after", _steps(times.jump_steps) + (" (an accepted one starts the count anew)" if plan.repeat_every else ""))
        )
        rows.append(("looking ahead", f"{plan.horizon} checkpoints = {plan.horizon * plan.interval_steps} steps"))
        rows.append(("candidates", f"{times.num_candidates}: " + ", ".join(f"{m}@{a:g}" for m, a in plan.proposals)))
        gate = f"{times.gate_completions:,} completions" if plan.gate.kind == "paired" else f"none, {plan.gate.fixed} is taken"
        rows.append(("gate", gate))
    rows.append(("an evaluation", f"{times.evaluation_completions:,} completions a model"))
    return _pairs(rows)


def _placement(config: Config, on_gpu: bool) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for name in ("actor", "number", "each reserves", "node labels", "CPUs", "GPUs"):
        table.add_column(name, justify="right" if name in ("number", "CPUs", "GPUs") else "left")
    rows = estimate.placement(config, on_gpu=on_gpu)
    for row in rows:
        reserves = ", ".join(f"{amount:g} {resource}" for resource, amount in row.bundle.items()) or "nothing"
        labels = ", ".join(f"{key}={value}" for key, value in sorted(row.labels.items())) or "any"
        table.add_row(row.actor, str(row.count), reserves, labels, f"{row.total('CPU'):g}", f"{row.total('GPU'):g}")
    table.add_row("in all", "", "", "", *(f"{sum(row.total(resource) for row in rows):g}" for resource in ("CPU", "GPU")), style="bold")
    return Padding(table, (0, 0, 0, 2))


def _memory(config: Config, facts: ModelFacts | None, on_gpu: bool) -> RenderableType:
    if facts is None:
        where = "not in the table, no local folder, not in the hub's cache"
        text = f"Not estimated: the shapes of {config.model.name} are not known here ({where})."
        return Padding(Text(text), (0, 0, 0, 2))
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("device")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    devices = [
        ("rollout engine", estimate.engine_memory(config, facts, on_gpu=on_gpu)),
        ("learner rank", estimate.learner_memory(config, facts)),
    ]
    if config.extrapolation.enabled:
        devices.append(("delta worker", estimate.delta_memory(config, facts)))
    for device, parts in devices:
        for index, part in enumerate(parts):
            table.add_row(device if index == 0 else "", part.part, _gib(part.num_bytes))
        table.add_row("", "together", _gib(sum(part.num_bytes for part in parts)), style="bold", end_section=True)
    share = f"{facts.name}: {facts.num_parameters:,} parameters, {_trained(config, facts)}."
    return Padding(Group(Text(share), table), (0, 0, 0, 2))


def _trained(config: Config, facts: ModelFacts) -> str:
    if config.learner.mode == "full":
        return f"all trained ({_gib(12 * facts.num_parameters)} GiB of float32 weights and moments a checkpoint)"
    adapter = facts.lora_parameters(config.learner.lora.rank, config.learner.lora.target_modules)
    return f"{adapter:,} of the adapter ({4 * adapter / 2**20:,.1f} MiB of float32 factors a checkpoint)"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.2f}" if num_bytes >= 2**30 / 100 else f"{num_bytes / 2**30:,.4f}"
