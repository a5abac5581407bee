"""What is given to `ray.util.metrics` of events that a calm run lacks; tests/dashboard looks at the others through Prometheus."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from next_ray.actors import metrics
from next_ray.dashboard.catalogue import METRICS
from next_ray.report.rows import step_row
from next_ray.store.usage import Usage
from next_ray.types import Alarm, Fault, FaultEvent
from tests.report.records import jump_record, rollback_record, step_record

Books = dict[str, Any]


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    """Values by name and tags, `name{tag=value}` without the run, and the help texts by name."""
    values: Books = defaultdict(float)

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, tag_keys
            values[f"help {name}"] = description

        def _key(self, tags: dict[str, str]) -> str:
            assert set(tags) == set(self.keys) and tags["run"] == "here"
            rest = ",".join(f"{key}={value}" for key, value in tags.items() if key != "run")
            return f"{self.name}{{{rest}}}" if rest else self.name

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0, "Ray refuses others"
            values[self._key(tags)] += value

        def set(self, value: float, tags: dict[str, str]) -> None:
            values[self._key(tags)] = value

    monkeypatch.setattr(metrics, "Counter", Metric)
    monkeypatch.setattr(metrics, "Gauge", Metric)
    return values


def test_faults_warnings_and_jumps_are_counted(books: Books) -> None:
    reporter = metrics.MetricsReporter("here", 60, Usage())
    reporter.fault(Fault("rollout engine 0", FaultEvent.LOST, "killed"))
    reporter.fault(Fault("rollout engine 0", FaultEvent.BACK, "started anew", 12.5))
    reporter.alarm(3, Alarm("reward", "It fell."))
    reporter.jump(jump_record(8, None))
    reporter.jump(jump_record(16, "two-point@1.5"))
    reporter.rollback(rollback_record(20, 16))
    assert books["next_ray_faults{what=rollout engine 0,event=lost}"] == books["next_ray_faults{what=rollout engine 0,event=back}"] == 1
    assert books["next_ray_recovery_seconds{what=rollout engine 0}"] == 12.5
    assert books["next_ray_alarms_given{alarm=reward}"] == 1
    assert [books[f"next_ray_jumps{{outcome={outcome}}}"] for outcome in ("refused", "accepted", "taken back")] == [1, 1, 1]
    assert books["next_ray_abstentions{method=next}"] == 2 and books["next_ray_jump_seconds{phase=gate}"] == 6
    assert books["next_ray_backtest_error{method=persistence}"] == 0.7
    assert books["next_ray_candidate_difference{candidate=two-point@1.5}"] == 0.14


def test_a_step_is_exported_once_and_what_is_not_in_the_catalogue_under_its_own_name(books: Books) -> None:
    usage = Usage()
    reporter = metrics.MetricsReporter("here", 60, usage)
    usage.retried()
    numbers = {"verdict_correct": 30.0, "verdict_wrong": 0.0, "tokens": 7.0, "staleness": 1.0, "novelty": 2.0}
    reporter.step(step_record(1, 0.5, "46", skipped_nonfinite=2.0, optimizer_steps=1.0, **numbers))
    usage.retried()
    reporter.step(step_record(2, skipped_nonfinite=0.0, optimizer_steps=1.0))
    assert books["next_ray_steps"] == 2 and books["next_ray_tokens"] == 8000 and books["next_ray_updates"] == 2
    assert books["next_ray_nonfinite_updates"] == 2 and books["next_ray_skipped_nonfinite"] == 0
    assert books["next_ray_verdicts{verdict=correct}"] == 30 and "next_ray_verdicts{verdict=wrong}" not in books
    assert books["next_ray_staleness"] == 1 and books["next_ray_novelty"] == 2
    assert books["next_ray_store_retries"] == 2
    assert books["help next_ray_staleness"].endswith("(rollout.max_staleness) [updates]")


def test_no_number_of_a_step_has_the_name_of_another_metric() -> None:
    taken = {metric.name for metric in METRICS if not metric.of_step}
    logged = set(step_row(step_record(1, tokens=1.0))) - metrics.NOT_EXPORTED - {"step", "reward_mean"}
    assert not {f"next_ray_{name}" for name in logged} & taken


def test_outside_of_ray_the_actors_classes_export_nothing(books: Books) -> None:
    metrics.count_seconds("next_ray_delta_seconds", 1.0)
    metrics.count_store(Usage())
    metrics.count_checkpoint("trained")
    assert not books
