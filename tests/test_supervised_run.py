"""A run under supervision whose driver is killed: nothing of it is left, and it comes back by itself and ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from next_ray.rollout.scratch import PREFIX
from tests.processes import are_gone_within, family, is_removed_within, lines, open_files
from tests.whole_jobs import SMALL, TIME_LIMIT_S, environment, manifests, wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(1800)]

GONE_S = 10.0


def test_a_killed_driver_leaves_nothing_and_comes_back(tmp_path: Path) -> None:
    store, said = tmp_path / "store", tmp_path / "stderr.txt"
    words = [*SMALL, f"store.url=file://{store}", f"run.output_dir={tmp_path / 'out'}", "run.name=supervised"]
    words += ["model.tiny_steps=50", "extrapolation.enabled=false", "store.lease_s=10"]
    command = [sys.executable, "-m", "next_ray.run", "--restarts", "1", *words]
    with (tmp_path / "stdout.txt").open("w") as out, said.open("w") as err:
        supervisor = subprocess.Popen(command, env=environment(tmp_path), stdout=out, stderr=err)
    try:
        wait_for_step(store, "supervised", 1, supervisor, said)
        (driver,) = psutil.Process(supervisor.pid).children()
        started = family(driver.pid)
        names = "\n".join(lines(started))
        for part in ("raylet", "gcs_server", "next_ray.reward.worker", "ray::EngineActor", "Agent"):
            assert part in names, names
        (scratch,) = {path.parent for path in open_files(started) if path.parent.name.startswith(PREFIX)}
        driver.send_signal(signal.SIGKILL)
        are_gone_within(GONE_S, started)
        assert is_removed_within(GONE_S, scratch)
        assert supervisor.wait(TIME_LIMIT_S) == 0, said.read_text()
    finally:
        if supervisor.poll() is None:
            supervisor.kill()
            supervisor.wait()
    assert "the run was killed by SIGKILL" in said.read_text() and "restart 1 of 1" in said.read_text()
    assert "resuming from step" in (tmp_path / "stdout.txt").read_text()
    assert manifests(store, "supervised")[-1]["step"] == 6
