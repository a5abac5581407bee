"""The page of the Python API: what is listed here is meant for use from other programs, the rest of the package is not promised."""

from __future__ import annotations

INTRODUCTION = """# Python
What is meant to be used from programs of your own. Other modules may change without notice. This page is made from the docstrings.
"""
PARTS = {
    "TRL": ["next_ray.integrations.trl.ExtrapolationCallback"],
    "Open a trajectory": [
        "next_ray.checkpoints.open.open_trajectory",
        "next_ray.checkpoints.imported.Imported",
        "next_ray.delta.trajectory.WeightTrajectory",
    ],
    "Extrapolate": [
        "next_ray.extrapolate.methods.registry.make",
        "next_ray.extrapolate.methods.registry.settings_of",
        "next_ray.extrapolate.plan.Extrapolator",
        "next_ray.extrapolate.plan.Setting",
        "next_ray.extrapolate.plan.Fitted",
        "next_ray.extrapolate.plan.ModulePlan",
        "next_ray.extrapolate.materialize.to_adapter",
    ],
    "Inspect": ["next_ray.inspect.analysis.inspect_trajectory", "next_ray.inspect.analysis.Inspection"],
    "Judge": [
        "next_ray.extrapolate.gate.decide",
        "next_ray.evaluate.metrics.avg_at_k",
        "next_ray.evaluate.metrics.pass_at_k",
        "next_ray.evaluate.metrics.bootstrap",
        "next_ray.evaluate.comparing.compare",
    ],
    "Runs in a store": ["next_ray.store.checkpoints.CheckpointStore", "next_ray.types.Manifest"],
    "Settings": ["next_ray.settings.load_config", "next_ray.settings.load_as", "next_ray.settings.to_yaml"],
    "Errors": ["next_ray.errors"],
}
"""Heading to what stands below it."""


def page() -> str:
    """Markdown that mkdocstrings fills in."""
    blocks = [INTRODUCTION]
    for heading, names in PARTS.items():
        blocks.append(f"## {heading}")
        blocks += [f"::: {name}" for name in names]
    return "\n\n".join(blocks) + "\n"
