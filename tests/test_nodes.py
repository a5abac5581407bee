"""Nodes that come, vanish and are drained under a real run: several Ray nodes on this machine, one driver, real engines and learners."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.whole_jobs import TIME_LIMIT_S, command, environment, manifests, wait_for_step

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.deepspeed,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # Ray leaves a socket open when it probes ports
    pytest.mark.timeout(1800),
]
STORE_BYTES = 200 * 2**20


@pytest.fixture
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        if "RAY_AUTH_MODE" not in os.environ:  # else Ray may have read it already: it does so when it is imported
            patch.setenv("RAY_AUTH_MODE", "disabled")
        found = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 200 * 2**20}
        )
        try:
            yield found
        finally:
            if ray.is_initialized():
                ray.shutdown()
            found.shutdown()


def add(cluster: Any, role: str) -> Any:
    return cluster.add_node(num_cpus=1, labels={"role": role}, object_store_memory=STORE_BYTES)


def wait_for(log: Path, words: str, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIME_LIMIT_S
    while words not in log.read_text():
        assert driver.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, f"{words!r} is not in the log: {log.read_text()[-4000:]}"
        time.sleep(0.2)


def wait_for_steps(store: Path, more: int, driver: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until so many further steps are committed."""
    first = max((m["step"] for m in manifests(store, "nodes")), default=0)
    wait_for_step(store, "nodes", first + more, driver, log)


def drain(cluster: Any, node: Any) -> None:
    """What a cloud does before it takes a spot node back."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # pyright: ignore[reportAttributeAccessIssue]

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 120) * 1000)
    accepted = GcsClient(address=cluster.address).drain_node(node.node_id, reason, "taken back", deadline_ms)
    assert accepted[0] if isinstance(accepted, tuple) else accepted


def test_engines_join_and_vanish_learners_move_and_the_driver_ends_in_time(cluster: Any, tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "log.txt"
    first = add(cluster, "learner")
    lonely = add(cluster, "engine")
    env = environment(tmp_path, RAY_ADDRESS=cluster.address)
    settings = [f"store.url=file://{store}", f"run.output_dir={tmp_path / 'out'}", "run.name=nodes", "run.steps=100000"]
    settings += ["rollout.engines=2", "rollout.min_engines=1", "cluster.learner_labels={role: learner}", "recovery.drain_poll_s=0.5"]
    settings += ["cluster.engine_labels={role: engine}", "extrapolation.enabled=false", "store.keep_checkpoints=3", "run.seed=1"]
    with log.open("w") as out:
        driver = subprocess.Popen(command(*settings), env=env, stdout=out, stderr=out)
    try:
        wait_for(log, "step 2/", driver)  # with one engine of two
        assert "rollout engine 1 joins" not in log.read_text()
        add(cluster, "engine")
        wait_for(log, "rollout engine 1 joins", driver)
        cluster.remove_node(lonely, allow_graceful=False)
        wait_for(log, "rollout engine 0 lost", driver)
        wait_for_steps(store, 2, driver, log)

        add(cluster, "learner")
        drain(cluster, first)
        wait_for(log, "the learners back after", driver)
        cluster.remove_node(first, allow_graceful=False)
        wait_for_steps(store, 2, driver, log)
        assert log.read_text().count("the learners lost") == 1, "a drained node is left before it goes"

        drain(cluster, cluster.head_node)  # on which the driver is
        assert driver.wait(120) == 75, log.read_text()[-4000:]
        assert "this node is being drained; everything is committed" in log.read_text()
        steps = [line.split()[1].partition("/")[0] for line in log.read_text().splitlines() if line.startswith("step ")]
        assert manifests(store, "nodes")[-1]["step"] == int(steps[-1])
    finally:
        driver.kill()
        driver.wait()
