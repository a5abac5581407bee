"""Ray's own autoscaler (v2) brings and removes the nodes of a real run: a fake cloud on this machine, real engines and learners."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.test_nodes import STORE_BYTES, wait_for, wait_for_steps
from tests.whole_jobs import TIME_LIMIT_S, command, environment

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.deepspeed,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # Ray leaves a socket open when it probes ports
    pytest.mark.timeout(1800),
]
STARTS = 3
"""How often the head is started: Ray gives its agents 15 s to come up, which a busy machine may not keep."""
ROLES = ("learner", "engine")
COMMANDS = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")


def cloud(address: str, head: str) -> dict[str, Any]:
    """A cloud whose nodes are processes of this machine: one kind for learners, one for engines, none at first, none when idle."""
    kinds = {
        role: {
            "resources": {"CPU": 1, "object_store_memory": STORE_BYTES},
            "labels": {"role": role},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        }
        for role in ROLES
    }
    return {
        "cluster_name": "fake",
        "max_workers": 4,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": head,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in COMMANDS},
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **kinds},
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    """A head without cores, with its autoscaler; all of its Ray's processes are gone at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        for name, value in {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1"}.items():
            patch.setenv(name, value)
        if "RAY_AUTH_MODE" not in os.environ:  # else Ray may have read it already: it does so when it is imported
            patch.setenv("RAY_AUTH_MODE", "disabled")
        found = started(tmp_path / "cloud.json", patch)
        session = found.head_node.get_session_dir_path()
        try:
            yield found
        finally:
            found.shutdown()
            for process in of_session(session):  # the fake cloud's nodes, which nobody else ends
                process.kill()


def started(config: Path, patch: pytest.MonkeyPatch) -> Any:
    from ray._private.services import get_node_ip_address
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
    from ray.cluster_utils import Cluster

    for attempt in range(1, STARTS + 1):
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        config.write_text(json.dumps(cloud(f"{get_node_ip_address()}:{port}", FAKE_HEAD_NODE_ID)))
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        try:
            with patch.context() as own:
                own.setenv("RAY_CLOUD_INSTANCE_ID", FAKE_HEAD_NODE_ID)
                own.setenv("RAY_OVERRIDE_NODE_ID_FOR_TESTING", FAKE_HEAD_NODE_ID)
                return Cluster(True, head_node_args={**head, "gcs_server_port": port, "autoscaling_config": str(config)})
        except Exception:
            if attempt == STARTS:
                raise
    raise AssertionError("unreachable")


def of_session(session: str) -> list[psutil.Process]:
    """Ray's processes of a session, whoever started them."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(session in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def nodes(cluster: Any) -> Counter[str]:
    """The autoscaler's nodes that run, by kind."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(cluster.address)
    return Counter(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes) if node.ray_node_type_name in ROLES)


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIME_LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def learner_process(session: str) -> psutil.Process:
    """The only learner rank, by what Ray calls its process, and by its raylet."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "LearnerActor" in "".join(process.info["cmdline"] or ()):
            parent = process.parent()
            if parent is not None and any(session in word for word in parent.cmdline()):
                found.append(process)
    (one,) = found
    return one


def test_nodes_come_by_label_go_when_idle_and_none_is_left(cluster: Any, tmp_path: Path) -> None:
    from ray.autoscaler.v2.sdk import get_cluster_status

    store, log = tmp_path / "store", tmp_path / "log.txt"
    env = environment(tmp_path, RAY_ADDRESS=cluster.address)
    settings = [f"store.url=file://{store}", f"run.output_dir={tmp_path / 'out'}", "run.name=nodes", "run.steps=100000", "run.seed=1"]
    settings += ["rollout.engines=2", "rollout.min_engines=1", "rollout.release_idle_s=20", "recovery.drain_poll_s=0.5"]
    settings += ["cluster.learner_labels={role: learner}", "cluster.engine_labels={role: engine}", "store.keep_checkpoints=3"]
    settings += ["extrapolation.enabled=false", "model.tiny_steps=20"]
    assert not nodes(cluster)
    with log.open("w") as out:
        driver = subprocess.Popen(command(*settings), env=env, stdout=out, stderr=out)
    try:
        wait_for(log, "rollout engine 1 joins", driver)
        wait_for_steps(store, 1, driver, log)
        assert nodes(cluster) == {"learner": 1, "engine": 2}

        learner = learner_process(cluster.head_node.get_session_dir_path())
        learner.send_signal(signal.SIGSTOP)  # a very long update
        try:
            wait_for(log, "rollout engine 1 leaves", driver)
            until(lambda: nodes(cluster) == {"learner": 1, "engine": 1}, "the idle engine's node stays")
        finally:
            learner.send_signal(signal.SIGCONT)
        until(lambda: log.read_text().count("rollout engine 1 joins") == 2, "the engine does not come back")
        wait_for_steps(store, 1, driver, log)

        driver.send_signal(signal.SIGINT)
        assert driver.wait(120) == 130, log.read_text()[-4000:]
        demands = get_cluster_status(cluster.address).resource_demands
        assert not demands.placement_group_demand and not demands.ray_task_actor_demand
        assert not any(asked.bundles_by_count for asked in demands.cluster_constraint_demand)  # `request_resources`, which stays
        until(lambda: not nodes(cluster), "nodes are left")
    finally:
        driver.kill()
        driver.wait()
