"""The numbers of a row under the names that trackers show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from next_ray.report.rows import EVALUATION, JUMP, ROLLBACK, STEP
from next_ray.report.text import jump_sentence, rollback_sentence

_PLAIN = {"kind", "step", "label", "num_prompts", "num_samples", "temperature", "version"}


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of a row, under train/, time/, evaluation/ or jump/."""
    if row["kind"] == STEP:
        for name, value in row.items():
            if name not in _PLAIN:
                yield (f"time/{name.removeprefix('time_')}" if name.startswith("time_") else f"train/{name}"), value
    elif row["kind"] == EVALUATION:
        model = row["label"].split(" (")[0]
        model = "current" if model.startswith("step ") else model
        for name in ("avg_at_k", "pass_at_k"):
            yield f"evaluation/{model}/{name}", row[name]
    elif row["kind"] == JUMP:
        yield "jump/accepted", float("accepted" in row)
        for candidate in row.get("candidates", ()):
            if "difference" in candidate:
                yield f"jump/difference/{candidate['name']}", candidate["difference"]


def mark(row: Mapping[str, Any]) -> str | None:
    """A sentence for a row that trackers mark: an attempt to jump, or a jump taken back."""
    if row["kind"] == JUMP:
        return jump_sentence(dict(row))
    return rollback_sentence(dict(row)) if row["kind"] == ROLLBACK else None


def final_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The final table, flat: one row a model, its gain over the base empty for the base itself."""
    rows = []
    for model in summary["models"]:
        row = {"model": model["label"], "steps": model["steps"]}
        for name in ("avg_at_k", "pass_at_k", "gain"):
            interval = model[name] or {}
            row |= {name: interval.get("mean"), f"{name}_low": interval.get("low"), f"{name}_high": interval.get("high")}
        rows.append({**row, "icer": model["icer"]})
    return rows
