"""Each alert rule on made-up series, judged by Prometheus's own tool: it fires when it should and is silent otherwise."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from next_ray.dashboard import alerts
from next_ray.dashboard.alerts import ALERTS
from tests.prometheus_server import missing_programs

PREFIX = "ray_next_ray_"
FIRST_EVENTS = {f'{PREFIX}faults_total{{run="r", what="engine {i}", event="lost"}}': "_x30 1x60" for i in range(4)}
GROWING: dict[str, dict[str, str]] = {
    "NextRayRunStalled": {
        f'{PREFIX}last_phase_timestamp_seconds{{run="r"}}': "0x5 _x60",
        f'{PREFIX}step{{run="r"}}': "3x5 _x60",
        f'{PREFIX}planned_steps{{run="r"}}': "10x5 _x60",
    },
    "NextRayActorsLostOften": FIRST_EVENTS,
    "NextRayNonFiniteUpdates": {f'{PREFIX}nonfinite_updates_total{{run="r"}}': "_x30 2x60"},
    "NextRayRewardCollapsed": {f'{PREFIX}alarms_given_total{{run="r", alarm="reward"}}': "_x30 1x60"},
    "NextRayTrainingWarning": {f'{PREFIX}alarms_given_total{{run="r", alarm="entropy"}}': "_x30 1x60"},
    "NextRayStaleCompletions": {f'{PREFIX}staleness{{run="r"}}': "6x60"},
    "NextRayStoreRetries": {f'{PREFIX}store_retries_total{{run="r"}}': "0+2x60"},
    "NextRayStoreFailed": {f'{PREFIX}store_failures_total{{run="r"}}': "_x30 1x60"},
    "NextRayJumpTakenBack": {f'{PREFIX}jumps_total{{run="r", outcome="taken back"}}': "_x30 1x60"},
}
"""Series of one sample a minute (`VALUE+STEPxTIMES`, `_` is no sample) that make each alert fire at minute 40."""
CALM: dict[str, dict[str, str]] = {
    "NextRayRunStalled": {
        f'{PREFIX}last_phase_timestamp_seconds{{run="r"}}': "0x5 _x60",
        f'{PREFIX}step{{run="r"}}': "10x5 _x60",
        f'{PREFIX}planned_steps{{run="r"}}': "10x5 _x60",
    },
    "NextRayActorsLostOften": {f'{PREFIX}faults_total{{run="r", what="engine 0", event="lost"}}': "5x60"},
    "NextRayNonFiniteUpdates": {f'{PREFIX}nonfinite_updates_total{{run="r"}}': "2x60"},
    "NextRayRewardCollapsed": {f'{PREFIX}alarms_given_total{{run="r", alarm="entropy"}}': "_x30 1x60"},
    "NextRayTrainingWarning": {f'{PREFIX}alarms_given_total{{run="r", alarm="reward"}}': "_x30 1x60"},
    "NextRayStaleCompletions": {f'{PREFIX}staleness{{run="r"}}': "2x60"},
    "NextRayStoreRetries": {f'{PREFIX}store_retries_total{{run="r"}}': "0x20 3x60"},
    "NextRayStoreFailed": {f'{PREFIX}store_failures_total{{run="r"}}': "1x60"},
    "NextRayJumpTakenBack": {f'{PREFIX}jumps_total{{run="r", outcome="accepted"}}': "_x30 1x60"},
}


def case(name: str, series: dict[str, str], fires: bool) -> dict[str, Any]:
    """A test of `promtool test rules` that asks whether the alert's expression holds, once for all its labels."""
    (alert,) = [one for one in ALERTS if one.name == name]
    count = [{"labels": "{}", "value": 1}] if fires else []
    return {
        "name": f"{name} {'fires' if fires else 'is silent'}",
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "promql_expr_test": [{"expr": f"count({alert.expr})", "eval_time": "40m", "exp_samples": count}],
    }


@pytest.mark.skipif(missing_programs() is not None, reason=missing_programs() or "")
def test_every_alert_fires_when_it_should_and_is_silent_otherwise(tmp_path: Path) -> None:
    assert set(GROWING) == set(CALM) == {alert.name for alert in ALERTS}
    cases = [case(name, series, fires) for table, fires in ((GROWING, True), (CALM, False)) for name, series in table.items()]
    stalled: dict[str, Any] = {"eval_time": "45m", "alertname": "NextRayRunStalled"}
    summary = "Run r has begun no phase for 45m 0s and has steps left."
    action = next(alert.action for alert in ALERTS if alert.name == "NextRayRunStalled")
    stalled["exp_alerts"] = [
        {"exp_labels": {"severity": "critical", "run": "r"}, "exp_annotations": {"summary": summary, "description": action}}
    ]
    cases[0]["alert_rule_test"] = [stalled]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(alerts.document()))
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": cases}))
    checked = subprocess.run(["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
