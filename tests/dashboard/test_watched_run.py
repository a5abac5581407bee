"""A real run scraped by a real Prometheus: every metric, every panel's query and every alert rule."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from next_ray.dashboard.alerts import ALERTS
from next_ray.dashboard.catalogue import METRICS
from next_ray.dashboard.panels import ROWS
from tests.processes import family
from tests.prometheus_server import Prometheus, missing_programs, prometheus
from tests.whole_jobs import TIME_LIMIT_S, command, environment

RUN = "watched"
STEPS = 8
NOT_IN_A_CALM_RUN = {
    "next_ray_abstentions",
    "next_ray_backtest_error",
    "next_ray_faults",
    "next_ray_recovery_seconds",
    "next_ray_alarms_given",
    "next_ray_nonfinite_updates",
    "next_ray_store_retries",
    "next_ray_store_failures",
    "next_ray_staleness",
    "next_ray_dropped_prompts",
    "next_ray_restarted_prompts",
    "next_ray_drawn_groups",
    "next_ray_drawn_reward_mean",
}
"""Metrics of what does not happen in this run: its panels show 0."""

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Watched:
    """A run that has ended, and the Prometheus that watched it from `start` to `end`, seconds since 1970."""

    server: Prometheus
    start: float
    end: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if reason := missing_programs():
        pytest.skip(reason)
    folder, start = tmp_path_factory.mktemp("watched"), time.time()
    places = [f"store.url=file://{folder / 'store'}", f"run.output_dir={folder / 'out'}"]
    more = [f"run.name={RUN}", f"run.steps={STEPS}", "cluster.dashboard=true", "evaluation.every_steps=2"]
    with (folder / "console.txt").open("w") as log:
        env = environment(folder, RAY_metrics_report_interval_ms="1000")
        driver = subprocess.Popen(command(*places, *more), env=env, stdout=log, stderr=log)
    try:
        session = session_of(driver, folder / "console.txt")
        with prometheus(folder / "monitoring", session) as server:
            assert driver.wait(TIME_LIMIT_S) == 0, (folder / "console.txt").read_text()
            yield Watched(server, start, time.time())
    finally:
        driver.kill()


def session_of(driver: subprocess.Popen[bytes], log: Path) -> Path:
    """The session folder of the driver's Ray, once it says there whom to scrape."""
    deadline = time.monotonic() + TIME_LIMIT_S
    while time.monotonic() < deadline:
        assert driver.poll() is None, log.read_text()
        for process in family(driver.pid):
            try:
                named = [word.partition("=")[2] for word in process.cmdline() if word.startswith("--session-dir=")]
            except psutil.NoSuchProcess:
                continue
            if named and (Path(named[0]) / "prom_metrics_service_discovery.json").exists():
                return Path(named[0])
        time.sleep(0.2)
    raise AssertionError(f"Ray does not say whom to scrape: {log.read_text()}")


def chosen(query: str) -> str:
    """A query as Grafana sends it when this run is chosen."""
    return query.replace("$run", RUN).replace("$__rate_interval", "10s")


def test_prometheus_has_every_metric_of_the_catalogue_with_its_help(watched: Watched) -> None:
    found = set(watched.server.api("label/__name__/values"))
    ours = {name for name in found if name.startswith("ray_next_ray_")}
    calm = {metric.exported: metric for metric in METRICS if metric.name not in NOT_IN_A_CALM_RUN}
    assert ours == set(calm)
    runs = watched.server.api("label/run/values")
    assert runs == [RUN]
    for name, metric in calm.items():
        told = watched.server.api("targets/metadata", metric=name.removesuffix("_total"))
        assert {one["help"] for one in told} == {metric.description}
        assert {one["type"] for one in told} == {metric.kind}


@pytest.mark.parametrize(("title", "query"), [(f"{r.title}: {p.title}", q.expr) for r in ROWS for p in r.panels for q in p.queries])
def test_a_panel_shows_something(watched: Watched, title: str, query: str) -> None:
    found = watched.server.samples(chosen(query), watched.start, watched.end)
    assert any(math.isfinite(value) for values in found.values() for value in values), f"{title}: {chosen(query)}"


def test_numbers_are_those_of_the_run(watched: Watched) -> None:
    def last(query: str) -> float:
        return max(values[-1] for values in watched.server.samples(query, watched.start, watched.end).values())

    assert last(f'ray_next_ray_step{{run="{RUN}"}}') == last(f'ray_next_ray_steps_total{{run="{RUN}"}}') == STEPS
    assert last('sum(ray_next_ray_checkpoints_total{kind="trained"})') == STEPS
    assert last("sum(ray_next_ray_jumps_total)") == 1
    assert last("ray_next_ray_trajectory_checkpoints") >= 4


def test_alerts_are_evaluated_and_none_fires_in_a_calm_run(watched: Watched) -> None:
    (group,) = watched.server.api("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == [alert.name for alert in ALERTS]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}, [rule.get("lastError") for rule in group["rules"]]
    assert watched.server.api("alerts")["alerts"] == []
    assert watched.server.samples("ALERTS", watched.start, watched.end) == {}
