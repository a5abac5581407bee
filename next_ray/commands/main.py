"""`next-ray COMMAND ...`, also `python -m next_ray COMMAND ...`: one program for all commands.

Nothing is imported but the command that is asked for. `python -m next_ray.run` and the like are the same code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from next_ray import __version__
from next_ray.commands.table import Command, Table

TABLE = Table(
    (
        Command("run", "next_ray.run", "train a job, or go on with it: the embedded one, or a YAML file"),
        Command("warmstart", "next_ray.commands.warmstart", "supervised fine-tuning before a run"),
        Command("inspect", "next_ray.commands.inspect", "tell whether checkpoints are worth extrapolating"),
        Command("extrapolate", "next_ray.commands.extrapolate", "checkpoints in, extrapolated adapters or models out"),
        Command("evaluate", "next_ray.commands.evaluate", "measure and compare models on problem sets"),
        Command("report", "next_ray.commands.report", "one HTML page about runs, from the store alone"),
        Command("serve", "next_ray.commands.serve", "an OpenAI-compatible endpoint for a run's models"),
        Command("plan", "next_ray.commands.plan", "memory, time, cost and best split, before a start"),
        Command("dashboard", "next_ray.commands.dashboard", "Prometheus and Grafana for runs"),
        Command("export", "next_ray.commands.export", "a checkpoint of a run as a PEFT or model folder"),
        Command("runs", "next_ray.commands.runs", "runs of a store: list, show, diff, prune, fork, verify"),
        Command("completion", "next_ray.commands.completion", "a script that completes words in bash, zsh or fish"),
    ),
    "Reinforcement learning with verifiable rewards that predicts where the weights\n"
    "are going and jumps there when a test says so. Commands:",
    (
        "run",
        "run jobs/smollm2-135m.yaml run.steps=20 --dry-run",
        "runs list",
        "inspect grpo/checkpoint-*",
    ),
)


def main(argv: Sequence[str] | None = None, program: str = "next-ray") -> int:
    """Find the command and do it; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["--version"], ["-V"]):
        print(f"next-ray {__version__}")
        return 0
    return TABLE.dispatch(words, program)
