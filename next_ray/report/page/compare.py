"""Several runs side by side, and what their numbers allow to be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from next_ray.evaluate.comparing import Comparison, compare
from next_ray.report.page.data import RunData
from next_ray.report.page.layout import LETTERS
from next_ray.report.page.numbers import elapsed, models, seconds_by_phase, trained_points
from next_ray.report.text import duration
from next_ray.settings.flat import differing

OWN = ("run.name", "run.output_dir", "report.", "store.", "recovery.", "cluster.")
"""Settings that do not change what is trained."""

EXTRAPOLATION = "extrapolation."
TARGET = 0.9
"""Share of the plain run's final accuracy whose steps and seconds are compared."""


@dataclass(frozen=True)
class Reached:
    """When a run was first seen at an accuracy: after how many steps, and seconds of its critical path where known."""

    step: int
    seconds: float | None


def reference(runs: Sequence[RunData]) -> int:
    """The run the others are compared with: the first that does not extrapolate, else the first."""
    return next((i for i, run in enumerate(runs) if run.extrapolates is False), 0)


def differences(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, with their values; names, places and displays are passed over."""
    return differing([run.settings for run in runs], OWN)


def paired(first: RunData, second: RunData) -> Comparison | None:
    """Final accuracy of the second run minus the first's on the test prompts of both; None where these are not known to be the same."""
    if not first.scores or not second.scores or first.scores["prompts"] != second.scores["prompts"]:
        return None
    before, after = (np.asarray(run.scores["models"]["final"], np.float64)[:, None] for run in (first, second) if run.scores)
    return compare(before, after, seed=0)


def reached(run: RunData, accuracy: float) -> Reached | None:
    """The first evaluated model at or above an accuracy."""
    times = elapsed(run)
    for point in trained_points(run):
        if point.step and point.avg["mean"] >= accuracy:
            return Reached(point.step, times.get(point.step))
    return None


def verdict(runs: Sequence[RunData], labels: Sequence[str] = LETTERS) -> list[str]:
    """What can be said of each run against the reference, and what cannot; the first sentence is the answer."""
    base = reference(runs)
    lines: list[str] = []
    for i, run in enumerate(runs):
        if i != base:
            lines += _against(runs[base], run, labels[base], labels[i])
    return [*lines, *_doubts(runs)]


def _against(plain: RunData, run: RunData, plain_name: str, name: str) -> list[str]:
    """Accuracy, time and the way there."""
    if plain.fingerprint and run.fingerprint and plain.fingerprint != run.fingerprint:
        return [f"{name} and {plain_name} were trained from different base models: their numbers are not compared."]
    if not plain.summary or not run.summary:
        open_ = " and ".join(label for label, one in ((plain_name, plain), (name, run)) if not one.summary)
        return [f"{open_} has no final evaluation yet: which of {plain_name} and {name} is better cannot be said."]
    lines = [_accuracy(plain, run, plain_name, name), _time(plain, run, plain_name, name)]
    target = TARGET * models(plain)["final"]["avg_at_k"]["mean"]
    ours, theirs = reached(run, target), reached(plain, target)
    if ours and theirs and min(len(trained_points(plain)), len(trained_points(run))) >= 4:
        lines.append(
            f"90 % of {plain_name}'s final accuracy was first measured at step {theirs.step}{_after(theirs)} in {plain_name} "
            f"and at step {ours.step}{_after(ours)} in {name}."
        )
    if not any("rolled_back" not in row for row in run.accepted) and run.extrapolates:
        lines.append(f"No jump of {name} stood, so it differs from a plain run by the cost of trying and by chance alone.")
    return lines


def _accuracy(plain: RunData, run: RunData, plain_name: str, name: str) -> str:
    found = paired(plain, run)
    if found is None:
        a, b = (models(one)["final"]["avg_at_k"] for one in (plain, run))
        apart = a["high"] < b["low"] or b["high"] < a["low"]
        said = "do not overlap" if apart else "overlap, so the two cannot be told apart"
        return (
            f"Final accuracy: {name} {100 * b['mean']:.1f} %, {plain_name} {100 * a['mean']:.1f} %. Their test prompts are not known to be "
            f"the same, and their 95 % intervals {said}."
        )
    points = f"{100 * found.difference:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}], p = {found.p_value:.2g}"
    if found.low > 0:
        return f"{name} ended better than {plain_name} on the same test prompts: {points}."
    if found.high < 0:
        return f"{name} ended worse than {plain_name} on the same test prompts: {points}."
    return f"At the end {name} and {plain_name} cannot be told apart on the same test prompts: {points}."


def _time(plain: RunData, run: RunData, plain_name: str, name: str) -> str:
    ours, theirs = (sum(seconds_by_phase(one).values()) for one in (run, plain))
    steps = f"{run.last_step} steps against {plain.last_step}" if run.last_step != plain.last_step else f"{run.last_step} steps each"
    if not theirs:
        return f"{name} and {plain_name}: {steps}."
    return (
        f"{name} took {duration(ours)} of critical path, {plain_name} {duration(theirs)} ({100 * ours / theirs:.0f} % of it), for {steps}; "
        "this counts the gate, and says something only if both had the same machines to themselves."
    )


def _doubts(runs: Sequence[RunData]) -> list[str]:
    """Why a difference may come from something else."""
    lines = []
    others = [name for name in differences(runs) if not name.startswith(EXTRAPOLATION)]
    if any(not run.settings for run in runs):
        lines.append("Not every run kept its configuration, so they may differ in more than is shown here.")
    if others:
        lines.append(f"Besides extrapolation they differ in {', '.join(others)}: a difference may come from that.")
    if len({run.device for run in runs}) > 1:
        lines.append("They ran on different devices: seconds do not compare.")
    lines.append("These are single runs. Another seed may turn a difference around; only several of each show what extrapolation is worth.")
    return lines


def _after(found: Reached) -> str:
    return f" ({duration(found.seconds)})" if found.seconds is not None else ""
