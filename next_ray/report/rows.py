"""Records as flat JSON rows, and back to what a resumed run needs of them.

A row has a `kind` (step, alarm, rollback, evaluation, jump, fault) and a `step`. What depends on the clock starts with `time`,
`tokens_per_s` or `stats`; everything else is equal in two runs of a deterministic job. Numbers that are not finite and empty values are
left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from next_ray.errors import StoreError
from next_ray.types import (
    Alarm,
    BacktestScore,
    EvaluationResult,
    Fault,
    GateDecision,
    GateRow,
    JumpRecord,
    RollbackRecord,
    ScreenedRow,
    StepRecord,
)

Row = dict[str, Any]

STEP, ALARM, ROLLBACK, EVALUATION, JUMP, FAULT = "step", "alarm", "rollback", "evaluation", "jump", "fault"
_ORDER = {kind: i for i, kind in enumerate((STEP, ALARM, ROLLBACK, EVALUATION, JUMP, FAULT))}


def step_row(record: StepRecord) -> Row:
    """A row of an RL step; phases become `time_<phase>_s`."""
    total = record.times.get("total", 0.0)
    return _clean(
        {
            "kind": STEP,
            "step": record.step,
            "version": record.version,
            "reward_mean": record.reward_mean,
            "num_tokens": record.num_tokens,
            "tokens_per_s": record.num_tokens / total if total > 0 else None,
            **_times(record.times),
            **{name: float(value) for name, value in record.metrics.items()},
        }
    )


def evaluation_row(step: int, result: EvaluationResult) -> Row:
    """A row of an evaluation: point estimates and their 95 % intervals, and how it was decoded."""
    return _clean(
        {
            "kind": EVALUATION,
            "step": step,
            "label": result.label,
            "num_prompts": result.num_prompts,
            "num_samples": result.num_samples,
            "temperature": result.temperature,
            "avg_at_k": result.avg_at_k.mean,
            "avg_at_k_low": result.avg_at_k.low,
            "avg_at_k_high": result.avg_at_k.high,
            "pass_at_k": result.pass_at_k.mean,
            "pass_at_k_low": result.pass_at_k.low,
            "pass_at_k_high": result.pass_at_k.high,
        }
    )


def interval(row: Mapping[str, Any], name: str) -> dict[str, float]:
    """A number of an evaluation's row with its 95 % interval, as `Accuracy` has them."""
    return {"mean": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}


def jump_row(record: JumpRecord) -> Row:
    """A row of an attempted jump: the gate's decision with all candidates, the backtest and what it cost."""
    decision = record.decision
    return _clean(
        {
            "kind": JUMP,
            "step": record.step,
            "accepted": decision.accepted,
            "reason": decision.reason,
            "method": record.method,
            "alpha": record.alpha,
            "baseline_accuracy": decision.baseline_accuracy,
            "candidates": [
                {"name": row.name, "accuracy": row.accuracy, "difference": row.difference, "p_value": row.p_value} for row in decision.rows
            ],
            "screened": [{"name": row.name, "accuracy": row.accuracy, "num_prompts": row.num_prompts} for row in decision.screened],
            "backtest": [
                {"index": score.index, "next": score.next_, "persistence": score.persistence, "linear": score.linear}
                for score in record.backtest
            ],
            "evidence": record.evidence,
            "abstained": dict(record.abstained),
            **_times(record.times),
            **{f"stats_{name}": float(value) for name, value in record.stats.items()},
        }
    )


def rollback_row(record: RollbackRecord) -> Row:
    """A row of a jump that was taken back."""
    return _clean({"kind": ROLLBACK, **asdict(record)})


def alarm_row(step: int, alarm: Alarm) -> Row:
    """A row of a warning."""
    return {"kind": ALARM, "step": step, "alarm": alarm.name, "message": alarm.message}


def fault_row(step: int, fault: Fault) -> Row:
    """A row of a fault, or of the recovery from one, after `step`; `time_s` is how long that took."""
    said = {"what": fault.what, "event": str(fault.event), "detail": fault.detail}
    return _clean({"kind": FAULT, "step": step, **said, "time_s": fault.seconds})


def under_way(row: Row) -> Row:
    """A fault's row as the store has it: of the step that was under way, since the one before may be committed already."""
    return {**row, "step": row["step"] + 1}


def is_stored(fault: Row, stored: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a fault is among the store's rows, whichever step it was put to."""
    said = ("what", "event", "detail", "time_s")
    return any(row["kind"] == FAULT and all(row.get(name) == fault.get(name) for name in said) for row in stored)


def attempt_row(record: Mapping[str, Any]) -> Row:
    """The row of an attempted jump from the store's record of it, `records/attempts/`; raises `StoreError` for one that is none."""
    try:
        decision, back = record["decision"], {name: record[name] for name in ("rolled_back", "why") if name in record}
        rows = tuple(GateRow(**row) for row in decision["rows"])
        screened = tuple(ScreenedRow(**row) for row in decision["screened"])
        judged = GateDecision(decision["accepted"], decision["reason"], decision["baseline_accuracy"], rows, screened)
        backtest = tuple(BacktestScore(**score) for score in record["backtest"])
        rest = {name: record[name] for name in ("step", "evidence", "abstained", "times", "stats", "method", "alpha")}
        rest["stats"] = {name: value for name, value in rest["stats"].items() if value is not None}
        return {**jump_row(JumpRecord(decision=judged, backtest=backtest, **rest)), **back}
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"A record of an attempted jump is not readable ({error}). Delete it, or restore it from a copy.") from None


def merged(step: int, stored: Sequence[Mapping[str, Any]], local: Sequence[Row], jumps: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The log of a run that goes on after `step`, in order.

    Steps, what was said of them, and evaluations come from the store's table, which ends exactly there; where the store has none (an older
    run), from the local file, as evaluations of step 0 always do. Jumps are only in the local file and, the accepted ones, in the run's
    progress. A refused attempt at `step` itself is dropped, since it will be made again. All faults stay that either of them knows.
    """
    rows = [_clean(dict(row)) for row in stored if row["step"] <= step and row["kind"] != FAULT]
    first = 0 if rows else step
    rows += [row for row in local if row["kind"] not in (JUMP, FAULT) and row["step"] <= first]
    attempts = [row for row in local if row["kind"] == JUMP and (row["step"] < step or (row["step"] == step and "accepted" in row))]
    known = {row["step"] for row in attempts if "accepted" in row}
    for jump in jumps:
        if jump["step"] not in known:
            named = {name: jump.get(name) for name in ("method", "alpha")}
            attempts.append(_clean({"kind": JUMP, "step": jump["step"], "accepted": jump["candidate"], **named}))
    faults = [row for row in local if row["kind"] == FAULT]
    faults += [
        {**_clean(dict(row)), "step": row["step"] - 1} for row in stored if row["kind"] == FAULT and not is_stored(dict(row), faults)
    ]
    return sorted([*rows, *attempts, *faults], key=lambda row: (row["step"], _ORDER[row["kind"]]))


def _times(times: Mapping[str, float]) -> Row:
    return {f"time_{phase.replace(' ', '_')}_s": seconds for phase, seconds in times.items()}


def cleaned(row: Mapping[str, Any]) -> Row:
    """A row of the store without the columns that only other rows have."""
    return _clean(dict(row))


def _clean(value: Any) -> Any:
    """Without None, empty containers and numbers that JSON lacks; the same whether a row came from memory or from parquet."""
    if isinstance(value, Mapping):
        cleaned = {name: _clean(item) for name, item in value.items()}
        return {name: item for name, item in cleaned.items() if item is not None and item != [] and item != {}}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
