"""What a finished run left in its output folder, and the figures that the documentation quotes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 5
"""First steps of a process that are left out of steady-state figures: caches, first compilations."""


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of a series."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def read_run(output: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of `metrics.jsonl` and the content of `summary.json`."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return rows, json.loads((output / "summary.json").read_text())


def steady_steps(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Step rows without the warm-up."""
    return [row for row in rows if row["kind"] == "step" and row["step"] > WARM_UP_STEPS]


def step_seconds(row: dict[str, Any]) -> float:
    """A step's critical path, the checkpoint that began in it included."""
    return row["time_total_s"] + row.get("time_checkpoint_s", 0.0)


def outside_share(row: dict[str, Any]) -> float:
    """Share of a step that is neither rollout nor update."""
    return 1.0 - (row["time_rollout_s"] + row["time_update_s"]) / step_seconds(row)


def jump_seconds(row: dict[str, Any]) -> float:
    """An attempt's critical path: all its phases."""
    return sum(value for name, value in row.items() if name.startswith("time_"))


def accuracy_of(summary: dict[str, Any], label: str) -> dict[str, Any]:
    """The avg@k entry of a model of the final table."""
    return next(model for model in summary["models"] if model["label"].startswith(label))["avg_at_k"]
