"""What the page's curves are made of: rows in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from next_ray.report.final import Totals
from next_ray.report.page.data import RunData
from next_ray.report.rows import interval

PHASE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "rollout": ("rollout",),
    "reward": ("reward",),
    "update": ("plan", "update"),
    "hand-over": ("load",),
    "checkpoint": ("checkpoint", "wait for commit"),
    "candidates": ("candidates",),
    "gate": ("gate",),
    "jump": ("adopt", "roll back"),
    "evaluation": ("evaluate",),
}
"""Phases of the critical path as the page brings them together; what is in none is `other`."""

EXTRAPOLATION = ("candidates", "gate", "jump")
"""What a plain run does not spend."""


ACCEPTED, REFUSED, TAKEN_BACK = "\N{BLACK UP-POINTING TRIANGLE}", "\N{MULTIPLICATION SIGN}", "\N{LEFTWARDS ARROW WITH HOOK}"
"""Signs of what became of an attempt to jump."""


@dataclass(frozen=True)
class Point:
    """An evaluated model: its steps, its name, and avg@k and pass@k with intervals; `final` when all were evaluated at the end."""

    step: int
    label: str
    avg: Mapping[str, float]
    pass_: Mapping[str, float]
    final: bool


def totals(run: RunData) -> Totals:
    """Sums over the rows that the store has."""
    found = Totals()
    for row in sorted([*run.rows, *run.attempts], key=lambda row: row["step"]):
        found.add(row)
    return found


def seconds_by_phase(run: RunData) -> dict[str, float]:
    """Seconds on the critical path, from the end's summary where there is one."""
    seconds = dict(run.summary["seconds_on_critical_path"]) if run.summary else dict(totals(run).seconds)
    seconds.pop("all", None)
    found = {group: sum(seconds.pop(phase, 0.0) for phase in phases) for group, phases in PHASE_GROUPS.items()}
    return {**found, "other": sum(seconds.values())}


def elapsed(run: RunData) -> dict[int, float]:
    """Seconds on the critical path when each step was done, attempts to jump after it not yet counted."""
    running, found = Totals(), {}
    attempts = {row["step"]: row for row in run.attempts}
    for row in run.steps:
        running.add(row)
        found[row["step"]] = running.critical_path_s
        if row["step"] in attempts:
            running.add(attempts[row["step"]])
    return found


def evaluated(run: RunData) -> list[Point]:
    """Every evaluation by steps, those on the way before those of the end."""
    points = [
        Point(row["step"], row["label"], interval(row, "avg_at_k"), interval(row, "pass_at_k"), False)
        for row in run.evaluations
        if row["label"].startswith("step ")
    ]
    if run.summary:
        points += [Point(m["steps"], m["label"], m["avg_at_k"], m["pass_at_k"], True) for m in run.summary["models"]]
    return sorted(points, key=lambda point: point.step)


def trained_points(run: RunData) -> list[Point]:
    """`evaluated` without the model before a jump, and with the base: one point a step, as the run went."""
    found = {}
    for point in evaluated(run):
        if not point.label.startswith("before the jump"):
            found[point.step] = point
    return list(found.values())


def models(run: RunData) -> Mapping[str, Mapping[str, Any]]:
    """The end's evaluated models by `base` and `final`; empty until then."""
    if not run.summary:
        return {}
    found = run.summary["models"]
    return {"base": found[0], "final": found[-1]}


def outcome(attempt: Mapping[str, Any]) -> tuple[str, str]:
    """A sign and a word for an attempt."""
    if "rolled_back" in attempt:
        return TAKEN_BACK, "taken back"
    return (ACCEPTED, "jump") if "accepted" in attempt else (REFUSED, "refused")


def parted(candidate: str) -> tuple[str, float | None]:
    """`two-point@1.5` as method and alpha; None where there is no number."""
    method, _, alpha = candidate.partition("@")
    try:
        return method, float(alpha)
    except ValueError:
        return candidate, None


def series_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have the number."""
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
