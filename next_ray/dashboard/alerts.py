"""Alert rules for Prometheus: `alerts.yml` beside this file is what `document()` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from next_ray.dashboard.queries import grown, series

STALLED_S = 1800
"""Silence after which a run that has steps left counts as stalled, seconds; steps of an hour need more."""


LOST, REWARD, NOT_REWARD, TAKEN_BACK = 'event="lost"', 'alarm="reward"', 'alarm!="reward"', 'outcome="taken back"'


@dataclass(frozen=True)
class Alert:
    """A rule: what it asks, for how long the answer must hold, and what to do about it."""

    name: str
    expr: str
    hold: str
    severity: Literal["info", "warning", "critical"]
    summary: str
    action: str


def _remembered(name: str) -> str:
    """A gauge's last value of the last hour: that of a driver that died stays."""
    return f"max by (run) (last_over_time({series(name, where='')}[1h]))"


ALERTS = (
    Alert(
        "NextRayRunStalled",
        f"time() - {_remembered('last_phase_timestamp_seconds')} > {STALLED_S} and "
        f"({_remembered('step')} < {_remembered('planned_steps')})",
        "1m",
        "critical",
        "Run {{ $labels.run }} has begun no phase for {{ $value | humanizeDuration }} and has steps left.",
        "Its driver died, or an actor hangs: look at its console and infrastructure.log, then run the same command again.",
    ),
    Alert(
        "NextRayActorsLostOften",
        f"{grown('faults', '15m', where=LOST)} > 3",
        "0m",
        "warning",
        "Run {{ $labels.run }} lost {{ $value }} actors in 15 minutes.",
        "Look at nodes and memory; the panel Faults and recoveries says which actors, infrastructure.log why.",
    ),
    Alert(
        "NextRayNonFiniteUpdates",
        f"{grown('nonfinite_updates', '15m')} > 0",
        "0m",
        "warning",
        "Run {{ $labels.run }} left out {{ $value }} optimizer steps whose loss or gradient was not finite.",
        "Lower learner.lr or algorithm.clip_high; the run ends itself after recovery.nonfinite_steps in a row.",
    ),
    Alert(
        "NextRayRewardCollapsed",
        f"{grown('alarms_given', '30m', where=REWARD)} > 0",
        "0m",
        "critical",
        "The reward of run {{ $labels.run }} fell far below its best.",
        "Look at samples.jsonl and the verdicts; lower learner.lr or raise algorithm.kl_coef, and go back if it does not recover.",
    ),
    Alert(
        "NextRayTrainingWarning",
        f"{grown('alarms_given', '30m', 'alarm', where=NOT_REWARD)} > 0",
        "0m",
        "warning",
        "Run {{ $labels.run }} warns of its {{ $labels.alarm }}.",
        "The warning in metrics.jsonl says what it is and what to do.",
    ),
    Alert(
        "NextRayStaleCompletions",
        f"avg_over_time({series('staleness', where='')}[15m]) > 4",
        "5m",
        "warning",
        "Run {{ $labels.run }} trains on completions that are {{ $value | humanize }} updates old on average.",
        "Add engines or lower rollout.max_staleness; set algorithm.correction if it is none.",
    ),
    Alert(
        "NextRayStoreRetries",
        f"{grown('store_retries', '15m')} > 10",
        "0m",
        "warning",
        "Run {{ $labels.run }} repeated {{ $value }} operations on its store in 15 minutes.",
        "The server is busy or the network loses connections; after 60 s of retries the run ends.",
    ),
    Alert(
        "NextRayStoreFailed",
        f"{grown('store_failures', '15m')} > 0",
        "0m",
        "critical",
        "{{ $value }} operations of run {{ $labels.run }} on its store failed for good.",
        "Check the server, the disk and the credentials, then run the same command again.",
    ),
    Alert(
        "NextRayJumpTakenBack",
        f"{grown('jumps', '1h', where=TAKEN_BACK)} > 0",
        "0m",
        "info",
        "Run {{ $labels.run }} took a jump back.",
        "Nothing needs to be done; a stricter extrapolation.gate.level makes it rarer.",
    ),
)


def document() -> dict[str, Any]:
    """The rules as Prometheus reads them."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.hold,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.action},
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": "next_ray", "rules": rules}]}
