"""Runs as the page gets them, small and with known numbers."""

from __future__ import annotations

from typing import Any

from next_ray.report.final import Totals, prompt_scores, summary
from next_ray.report.page.data import Checkpoint, RunData
from next_ray.report.rows import evaluation_row, jump_row, step_row
from next_ray.types import EvaluationResult, Prompt
from tests.report.records import jump_record, result, step_record

PROMPTS = [Prompt(f"p{i}", ({"role": "user", "content": str(i)},), "1", "exact") for i in range(20)]


def checkpoint(step: int, kind: str = "trained", parents: tuple[str, ...] = (), segment: int = 0) -> Checkpoint:
    return Checkpoint(f"{step:08d}-{kind}", step, kind, parents, segment, "2026-01-02T03:04:05Z", 2**20)


def many(label: str, right: int) -> EvaluationResult:
    """The same number of four samples is right for each of twenty prompts."""
    return result(label, *([right] * len(PROMPTS)))


def a_run(name: str = "one", right: int = 3, accepted: str | None = "two-point@1.5", ended: bool = True, **more: Any) -> RunData:
    """Ten steps of 2 s, an attempt of 3.5 s after step 4, evaluations after steps 3, 6 and 9, and an end."""
    rows, attempts, totals = [], [jump_row(jump_record(4, accepted))] if more.get("extrapolates", True) else [], Totals()
    more.pop("extrapolates", None)
    for step in range(1, 11):
        rows.append(step_row(step_record(step, reward=step / 10)))
        if step % 3 == 0:
            rows.append(evaluation_row(step, many(f"step {step}", min(right, step // 3))))
    for row in [*rows, *attempts]:
        totals.add(row)
    results = [many("base", 1), many("final", right)]
    data = summary(results, totals, {"delta": 1.5}, 10, seed=0) if ended else None
    known: dict[str, Any] = {
        "name": name,
        "url": f"file:///store/{name}",
        "fingerprint": "f",
        "checkpoints": tuple(checkpoint(step, parents=(f"{step - 2:08d}-trained",) if step > 2 else ()) for step in range(2, 11, 2)),
        "rows": rows,
        "attempts": attempts,
        "summary": data,
        "scores": prompt_scores(results, PROMPTS) if ended else None,
        "settings": {"run": {"steps": 10, "name": name}, "extrapolation": {"enabled": bool(attempts), "interval_steps": 2}, "seed": 1},
    }
    return RunData(**{**known, **more})
