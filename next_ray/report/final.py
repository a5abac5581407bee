"""The end of a run: what was gained, what it cost, and an honest sentence about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from next_ray.evaluate.metrics import bootstrap, icer
from next_ray.report.rows import FAULT, JUMP, ROLLBACK, STEP
from next_ray.report.text import duration, jump_sentence, percent
from next_ray.types import Accuracy, EvaluationResult, Prompt

IN_STEP = ("rollout", "reward", "plan", "update", "load")
"""Phases inside a step's `total`; checkpoints, jumps and evaluations come on top of it."""


@dataclass
class Totals:
    """Sums over a run's rows, kept as they come so that nothing grows with the number of steps.

    `seconds` is the critical path by phase; what a step's own phases leave of its total is `rest of the steps`.
    """

    num_steps: int = 0
    num_tokens: int = 0
    num_nonfinite: int = 0
    step_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row; the seconds of a recovery lie within those of the phases that waited for it."""
        if row["kind"] == FAULT:
            self.faults.append(dict(row))
            return
        times = {name[5:-2].replace("_", " "): value for name, value in row.items() if name.startswith("time_")}
        total = times.pop("total", 0.0)
        if row["kind"] == STEP:
            self.num_steps += 1
            self.num_tokens += row["num_tokens"]
            self.num_nonfinite += int(row.get("skipped_nonfinite", 0))
            self.step_seconds += total
            times["rest of the steps"] = max(0.0, total - sum(times.get(phase, 0.0) for phase in IN_STEP))
        if row["kind"] == JUMP:
            self.attempts.append(dict(row))
        if row["kind"] == ROLLBACK:
            for attempt in self.attempts:
                if attempt["step"] == row["jump_step"]:
                    attempt |= {"rolled_back": row["step"], "why": row["reason"]}
        for phase, seconds in times.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @property
    def critical_path_s(self) -> float:
        """Seconds of all phases together."""
        return sum(self.seconds.values())


def summary(
    results: Sequence[EvaluationResult], totals: Totals, background_s: Mapping[str, float], total_steps: int, seed: int
) -> dict[str, Any]:
    """Everything of the final table as plain data, for `summary.json`."""
    base = results[0]
    models = []
    for result in results:
        steps = steps_of(result.label, totals, total_steps)
        gain = result.avg_at_k.mean - base.avg_at_k.mean
        models.append(
            {
                "label": result.label,
                "steps": steps,
                "num_prompts": result.num_prompts,
                "num_samples": result.num_samples,
                "temperature": result.temperature,
                "avg_at_k": _interval(result.avg_at_k),
                "pass_at_k": _interval(result.pass_at_k),
                "gain": None if result is base else _interval(paired_gain(base, result, seed)),
                "icer": icer(steps, gain) if steps else None,
            }
        )
    return {
        "models": models,
        "attempts": totals.attempts,
        "faults": totals.faults,
        "seconds_on_critical_path": {**totals.seconds, "all": totals.critical_path_s},
        "seconds_off_critical_path": dict(background_s),
        "num_tokens": totals.num_tokens,
        "skipped_nonfinite": totals.num_nonfinite,
        "tokens_per_s": totals.num_tokens / totals.step_seconds if totals.step_seconds else None,
    }


def prompt_scores(results: Sequence[EvaluationResult], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The mean reward of every test prompt under every evaluated model, with which another run can be compared prompt by prompt."""
    means = {result.label: [float(np.mean(row)) for row in result.correct] for result in results}
    return {"prompts": [prompt.id for prompt in prompts], "models": means}


def paired_gain(base: EvaluationResult, other: EvaluationResult, seed: int) -> Accuracy:
    """Difference of avg@k on the same prompts, with a 95 % bootstrap interval over prompts."""
    difference = np.asarray(other.correct, np.float64).mean(axis=1) - np.asarray(base.correct, np.float64).mean(axis=1)
    return bootstrap(difference, seed)


def steps_of(label: str, totals: Totals, total_steps: int) -> int:
    """Training steps behind an evaluated model: none for the base, those before the jump for its two ends, else all."""
    if label == "base":
        return 0
    if label.startswith(("before the jump", "jumped")):
        return next((row["step"] for row in totals.attempts if "accepted" in row), total_steps)
    return total_steps


def final_table(data: Mapping[str, Any]) -> RenderableType:
    """The tables and sentences of `summary`'s data."""
    return Group(Text(), _models(data["models"]), Text(), _times(data), Text(), *(Text(line) for line in verdict(data)))


def _models(models: Sequence[Mapping[str, Any]]) -> Table:
    k = models[0]["num_samples"]
    table = Table(box=None, pad_edge=False, padding=(0, 2), title="What was gained", title_justify="left", title_style="bold")
    table.add_column("model")
    for name in ("steps", f"avg@{k} [95 %]", f"pass@{k} [95 %]", "gain over base [95 %]", "ICER"):
        table.add_column(name, justify="right")
    for model in models:
        gain = model["gain"]
        table.add_row(
            model["label"],
            str(model["steps"]),
            _shown(model["avg_at_k"]),
            _shown(model["pass_at_k"]),
            "" if gain is None else f"{100 * gain['mean']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]",
            _icer(model),
        )
    first = models[0]
    table.caption = (
        f"{first['num_prompts']} held-out prompts x {k} samples at temperature {first['temperature']:g}; intervals by bootstrap over "
        "prompts. ICER: steps for each accuracy point gained, lower is better."
    )
    table.caption_justify, table.caption_style = "left", "dim"
    return table


def _icer(model: Mapping[str, Any]) -> str:
    if not model["steps"]:
        return ""
    return "undefined" if model["icer"] is None else f"{model['icer']:.1f}"


def _times(data: Mapping[str, Any]) -> Table:
    on = dict(data["seconds_on_critical_path"])
    everything = on.pop("all")
    table = Table(box=None, pad_edge=False, padding=(0, 2), title="Where the time went", title_justify="left", title_style="bold")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    table.add_column("of the critical path", justify="right")
    for phase, seconds in sorted(on.items(), key=lambda item: -item[1]):
        table.add_row(phase, f"{seconds:.1f}", percent(seconds / everything) if everything else "")
    table.add_row("together", f"{everything:.1f}", "", style="bold")
    for phase, seconds in data["seconds_off_critical_path"].items():
        table.add_row(f"{phase}, beside training", f"{seconds:.1f}", "off it")
    if data["tokens_per_s"]:
        table.caption = f"{data['num_tokens']:,} tokens, {data['tokens_per_s']:,.0f} a second of the steps' time."
        table.caption_justify, table.caption_style = "left", "dim"
    return table


def verdict(data: Mapping[str, Any]) -> list[str]:
    """What the numbers allow to be said, and no more."""
    lines = [jump_sentence(row) for row in data["attempts"]] or ["No jump was tried in this run."]
    final = data["models"][-1]
    gain = final["gain"]
    if gain is None:
        return lines
    points = f"{100 * gain['mean']:+.1f} points [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    if gain["low"] > 0:
        lines.append(f"The final model is better than the base on this test set: {points}.")
    elif gain["high"] < 0:
        lines.append(f"The final model is worse than the base on this test set: {points}. Nothing was gained.")
    else:
        lines.append(f"Final model and base cannot be told apart on this test set: {points}. Nothing was shown to be gained.")
    if any("accepted" in row and "rolled_back" not in row for row in data["attempts"]):
        lines.append("What the jump saved shows only against the same budget without it: run again with --baseline.")
    if data["skipped_nonfinite"]:
        lines.append(f"Optimizer steps skipped because loss or gradient was not finite: {data['skipped_nonfinite']}.")
    seconds = data["seconds_on_critical_path"]["all"]
    if seconds:
        lines.append(f"The critical path took {duration(seconds)}.")
    return lines


def _interval(value: Accuracy) -> dict[str, float]:
    return {"mean": value.mean, "low": value.low, "high": value.high}


def _shown(value: Mapping[str, float]) -> str:
    return f"{percent(value['mean'])} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
