"""The run's numbers as Ray metrics, so that the Ray dashboard and Prometheus show them."""

from __future__ import annotations

import time
from functools import cache
from statistics import fmean
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from next_ray.dashboard.catalogue import BY_NAME, NOT_EXPORTED, Metric, other
from next_ray.store.usage import Usage
from next_ray.types import Alarm, CheckpointTriplets, EvaluationResult, Fault, JumpRecord, RollbackRecord, StepRecord

NAMESPACE = "next_ray-"
"""What a run's namespace in Ray begins with; its name follows, by which actors know whose numbers theirs are."""


class Exported:
    """The metrics of `dashboard.catalogue`, made at first use, of one run."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._made: dict[str, Any] = {}
        self._of_store: dict[tuple[str, str], float] = {}

    def count(self, name: str, amount: float, **tags: str) -> None:
        """Add to a counter; adding nothing does nothing."""
        if amount > 0:
            self._metric(BY_NAME[name], Counter).inc(amount, tags={"run": self._run, **tags})

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        self.show(BY_NAME[name], value, **tags)

    def show(self, metric: Metric, value: float, **tags: str) -> None:
        """Set a gauge that need not be in the catalogue."""
        self._metric(metric, Gauge).set(value, tags={"run": self._run, **tags})

    def store(self, usage: Usage) -> None:
        """Count what this process asked of the store since the last call."""
        sums = usage.sums()
        for (name, operation), value in sums.items():
            tags = {"operation": operation} if operation else {}
            self.count(f"next_ray_store_{name}", value - self._of_store.get((name, operation), 0.0), **tags)
        self._of_store = sums

    def _metric(self, metric: Metric, kind: Any) -> Any:
        if metric.name not in self._made:
            self._made[metric.name] = kind(metric.name, metric.description, tag_keys=("run", *metric.tags))
        return self._made[metric.name]


@cache
def exported() -> Exported:
    """The metrics of an actor's process; its run is known from Ray's namespace."""
    return Exported(ray.get_runtime_context().namespace.removeprefix(NAMESPACE))


def count_seconds(name: str, seconds: float) -> None:
    """Add to a counter of an actor's work; outside of Ray (in a test of the plain class) nothing is counted."""
    if ray.is_initialized():
        exported().count(name, seconds)


def show_trajectory(triplets: CheckpointTriplets) -> None:
    """Export where the trajectory stands after a checkpoint, means over modules."""
    if ray.is_initialized() and triplets.modules:
        exported().set("next_ray_trajectory_checkpoints", float(triplets.index))
        exported().set("next_ray_rank1_energy", fmean(m.energy for m in triplets.modules.values()))
        exported().set("next_ray_local_sigma", fmean(m.local.sigma for m in triplets.modules.values()))


def count_checkpoint(kind: str) -> None:
    """Count a checkpoint that was written."""
    if ray.is_initialized():
        exported().count("next_ray_checkpoints", 1.0, kind=kind)


def count_store(usage: Usage) -> None:
    """Export what an actor asked of the store."""
    if ray.is_initialized():
        exported().store(usage)


class MetricsReporter:
    """A `Reporter` that feeds `ray.util.metrics`; sums are counters, so that rates are exact.

    `usage` is what the driver's own process asked of the store.
    """

    def __init__(self, run: str, planned_steps: int, usage: Usage) -> None:
        self._out, self._planned, self._usage = Exported(run), float(planned_steps), usage

    def phase(self, name: str) -> None:
        """A sign of life; the seconds of phases are counted when their step ends."""
        self._out.set("next_ray_last_phase_timestamp_seconds", time.time())
        self._out.set("next_ray_planned_steps", self._planned)

    def step(self, record: StepRecord) -> None:
        """Export reward, learner metrics, tokens and phase seconds."""
        out = self._out
        out.count("next_ray_steps", 1.0)
        out.count("next_ray_tokens", float(record.num_tokens))
        out.count("next_ray_updates", record.metrics.get("optimizer_steps", 0.0))
        out.count("next_ray_nonfinite_updates", record.metrics.get("skipped_nonfinite", 0.0))
        out.set("next_ray_reward_mean", record.reward_mean)
        out.set("next_ray_step", float(record.step))
        for name, value in record.metrics.items():
            if name.startswith("verdict_"):
                out.count("next_ray_verdicts", value, verdict=name.removeprefix("verdict_"))
            elif name not in NOT_EXPORTED:
                out.show(other(name), float(value))
        for phase, seconds in record.times.items():
            out.count("next_ray_phase_seconds", seconds, phase=phase)
        out.store(self._usage)

    def evaluation(self, step: int, result: EvaluationResult) -> None:
        """Export held-out accuracy."""
        model = "current" if result.label.startswith("step ") else result.label.split(" (")[0]
        self._out.set("next_ray_accuracy", result.avg_at_k.mean, model=model)
        self._out.set("next_ray_pass_at_k", result.pass_at_k.mean, model=model)

    def jump(self, record: JumpRecord) -> None:
        """Count the attempt, and show what the gate and the back test said."""
        out, decision = self._out, record.decision
        out.count("next_ray_jumps", 1.0, outcome="accepted" if decision.accepted else "refused")
        for phase, seconds in record.times.items():
            out.count("next_ray_jump_seconds", seconds, phase=phase)
        for method in record.abstained:
            out.count("next_ray_abstentions", 1.0, method=method)
        if decision.baseline_accuracy is not None:
            out.set("next_ray_gate_baseline_accuracy", decision.baseline_accuracy)
        for row in decision.rows:
            out.set("next_ray_candidate_difference", row.difference, candidate=row.name)
            out.set("next_ray_candidate_p_value", row.p_value, candidate=row.name)
        if record.backtest:
            last = record.backtest[-1]
            for method, error in (("next", last.next_), ("persistence", last.persistence), ("linear", last.linear)):
                out.set("next_ray_backtest_error", error, method=method)

    def rollback(self, record: RollbackRecord) -> None:
        """Count the jump that was taken back."""
        self._out.count("next_ray_jumps", 1.0, outcome="taken back")

    def alarm(self, step: int, alarm: Alarm) -> None:
        """Count the alarm."""
        self._out.count("next_ray_alarms_given", 1.0, alarm=alarm.name)

    def fault(self, fault: Fault) -> None:
        """Count it, and the seconds that a recovery took."""
        self._out.count("next_ray_faults", 1.0, what=fault.what, event=str(fault.event))
        self._out.count("next_ray_recovery_seconds", fault.seconds or 0.0, what=fault.what)

    def take_rows(self) -> list[dict[str, Any]]:
        """Metrics keep no rows."""
        return []
