"""Records that tests of the report share."""

from __future__ import annotations

from typing import Any

from next_ray.evaluate.metrics import evaluation
from next_ray.report.final import Totals, summary
from next_ray.report.rows import step_row
from next_ray.types import BacktestScore, EvaluationResult, GateDecision, GateRow, JumpRecord, RollbackRecord, Sample, StepRecord

TIMES = {"rollout": 1.0, "reward": 0.25, "plan": 0.05, "update": 0.5, "load": 0.1, "total": 2.0}


def step_record(step: int, reward: float = 0.5, completion: str = "46", **metrics: float) -> StepRecord:
    sample = Sample("p1", "12+34=", completion, "46", 1.0)
    return StepRecord(step, step, reward, 4000, TIMES, {"loss": 0.1, **metrics}, (sample,))


def jump_record(step: int, accepted: str | None) -> JumpRecord:
    rows = (GateRow("next@1", 0.5, 0.04, 0.2), GateRow("two-point@1.5", 0.6, 0.14, 0.001))
    decision = GateDecision(accepted, "a reason", 0.46, rows)
    backtest = (BacktestScore(4, 0.9, 0.7, 0.6),)
    return JumpRecord(
        step, decision, backtest, "next lost", {"next": "loses"}, {"candidates": 0.5, "gate": 3.0}, {"fit_steps": 7.0}, "two-point", 1.5
    )


def rollback_record(step: int, jump_step: int) -> RollbackRecord:
    reason = "The accuracy fell."
    return RollbackRecord(step, jump_step, "two-point@1.5", f"{jump_step:08d}-trained", step - jump_step, 0.5, 0.25, 1e-6, reason)


def result(label: str, *correct: int, num_samples: int = 4) -> EvaluationResult:
    """One prompt for each number: that many of its samples are right."""
    return evaluation(label, tuple(tuple(float(i < n) for i in range(num_samples)) for n in correct), 1.0, seed=0)


def final_data() -> dict[str, Any]:
    """What `summary` says of a run of two steps that learned something."""
    totals = Totals()
    totals.add(step_row(step_record(1)))
    totals.add(step_row(step_record(2)))
    return summary([result("base", 1, 1), result("final", 3, 3)], totals, {}, 2, seed=0)
