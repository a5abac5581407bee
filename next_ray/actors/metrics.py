"""The run's numbers as Ray metrics, so that the Ray dashboard and Prometheus show them."""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Counter, Gauge

from next_ray.types import EvaluationResult, Fault, JumpRecord, StepRecord

TAGS = ("run",)


class MetricsReporter:
    """A `Reporter` that feeds `ray.util.metrics`; sums are counters, so that rates are exact."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}
        self._steps = self._counter("next_ray_steps", "RL steps done")
        self._tokens = self._counter("next_ray_tokens", "Tokens of prompts and completions processed")
        self._verdicts = Counter("next_ray_verdicts", "Verifier calls by outcome", tag_keys=(*TAGS, "verdict"))
        self._seconds = Counter("next_ray_phase_seconds", "Seconds on the critical path by phase", tag_keys=(*TAGS, "phase"))
        self._jumps = Counter("next_ray_jumps", "Attempts to jump by outcome", tag_keys=(*TAGS, "outcome"))
        self._faults = Counter("next_ray_faults", "Faults and recoveries by actor", tag_keys=(*TAGS, "what", "event"))
        self._recovery = Counter("next_ray_recovery_seconds", "Seconds until what was lost was back", tag_keys=(*TAGS, "what"))
        self._accuracy = Gauge("next_ray_accuracy", "Held-out avg@k", tag_keys=(*TAGS, "model"))

    def phase(self, name: str) -> None:
        """Nothing to export: phases are counted when their step ends."""

    def step(self, record: StepRecord) -> None:
        """Export reward, learner metrics, tokens and phase seconds."""
        self._steps.inc(1.0)
        self._tokens.inc(float(record.num_tokens))
        self._set("next_ray_reward_mean", "Mean reward of the step", record.reward_mean)
        self._set("next_ray_step", "Last RL step", float(record.step))
        for name, value in record.metrics.items():
            if name.startswith("verdict_"):
                if value > 0:
                    self._verdicts.inc(value, tags={**self._tags, "verdict": name.removeprefix("verdict_")})
            else:
                self._set(f"next_ray_{name}", f"Learner or rollout metric {name}", float(value))
        for phase, seconds in record.times.items():
            if seconds > 0:
                self._seconds.inc(seconds, tags={**self._tags, "phase": phase})

    def evaluation(self, step: int, result: EvaluationResult) -> None:
        """Export held-out accuracy."""
        self._accuracy.set(result.avg_at_k.mean, tags={**self._tags, "model": result.label.split(" ")[0]})

    def jump(self, record: JumpRecord) -> None:
        """Count the attempt."""
        self._jumps.inc(1.0, tags={**self._tags, "outcome": "accepted" if record.decision.accepted else "refused"})

    def fault(self, fault: Fault) -> None:
        """Count it, and the seconds that a recovery took."""
        self._faults.inc(1.0, tags={**self._tags, "what": fault.what, "event": str(fault.event)})
        if fault.seconds:
            self._recovery.inc(fault.seconds, tags={**self._tags, "what": fault.what})

    def take_rows(self) -> list[dict[str, Any]]:
        """Metrics keep no rows."""
        return []

    def _counter(self, name: str, description: str) -> Counter:
        counter = Counter(name, description, tag_keys=TAGS)
        counter.set_default_tags(self._tags)
        return counter

    def _set(self, name: str, description: str, value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description, tag_keys=TAGS)
            self._gauges[name].set_default_tags(self._tags)
        self._gauges[name].set(value)
