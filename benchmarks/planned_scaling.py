"""`python -m benchmarks planned_scaling`: the planner's table of models and numbers of devices, as docs/planning.md has it.

Foretold, not measured: it follows from vendors' figures and assumed efficiencies. A test keeps the document's copy current.
"""

from __future__ import annotations

from math import inf

from next_ray.model_facts import facts_of
from next_ray.planning.devices import DEVICES, Pool
from next_ray.planning.splits import find_splits
from next_ray.planning.steps import Plan
from next_ray.planning.workload import workload_of
from next_ray.precision import resolve_dtypes
from next_ray.report.planned import duration
from next_ray.settings import load_config

MODELS = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-72B-Instruct")
COUNTS = (4, 8, 16, 64, 256, 1024)
SETTINGS = ("rollout.max_staleness=1", "algorithm.correction=token-tis")
JOB = "jobs/qwen2.5-7b-next.yaml"


def best(model: str, count: int, device: str = "H100") -> Plan | None:
    """The fastest split of so many devices for the paper's batch; None where the model does not fit."""
    config = resolve_dtypes(load_config(JOB, [f"model.name={model}", *SETTINGS]), "gpu")
    facts = facts_of(config.model)
    assert facts is not None
    found = find_splits(config, facts, [Pool(count, DEVICES[device.lower()])], workload_of(config), keep=1).best
    return found[0] if found else None


def scaling_table() -> list[str]:
    """Markdown: a line a model and number of devices."""
    lines = [
        "| model | H100 | engines | learner ranks | ZeRO | a step | against the line above | bound by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        before = inf
        for count in COUNTS:
            found = best(model, count)
            name = model.partition("/")[2].removesuffix("-Instruct")
            if found is None:
                lines.append(f"| {name} | {count:,} | does not fit | | | | | |")
                continue
            layout, phase = found.layout, found.bottleneck
            spans = f" of {layout.spans}" if layout.spans > 1 else ""
            times = f"{before / found.step_s:.2f} x" if before < inf else ""
            lines.append(
                f"| {name} | {count:,} | {layout.engines}{spans} | {layout.ranks} | {layout.zero_stage} | "
                f"{duration(found.step_s)} | {times} | {phase.name}: {phase.bound} |"
            )
            before = found.step_s
    return lines


def main(argv: list[str]) -> int:
    """Print it."""
    print(*scaling_table(), sep="\n")
    return 0
