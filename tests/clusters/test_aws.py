"""`cluster.yaml` against Ray's own schema and scheduler, EC2's request shapes and the promises in its comments; no cloud is asked."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from next_ray.estimate import engine_memory, learner_memory
from next_ray.model_facts import facts_of
from next_ray.precision import resolve_dtypes
from next_ray.settings import load_config
from tests.clusters.demands import GPU_JOBS, LABELS, ROOT, launched

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    validate_config(prepare_config(cluster))


def test_ray_would_refuse_a_key_it_does_not_know(cluster: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="idle_minutes"):
        validate_config(prepare_config({**cluster, "idle_minutes": 3}))


def test_only_engines_are_on_spot_and_nothing_but_the_head_is_kept_running(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    engines = {name for name in types if name.startswith("engine")}
    assert {name for name, node in types.items() if "InstanceMarketOptions" in node["node_config"]} == engines
    assert len({types[name]["node_config"]["InstanceType"] for name in engines}) == len(engines) >= 3
    assert {name: node["labels"] for name, node in types.items()} == {
        name: {"market": "spot" if name in engines else "on-demand"} for name in types
    }
    assert all(node["min_workers"] == 0 for name, node in types.items() if name != cluster["head_node_type"])
    assert cluster["idle_timeout_minutes"] <= 15


def complaints(request: dict[str, Any]) -> str:
    """What botocore's own model of EC2 has against a RunInstances request; an enum's unknown value is none to it, so they are looked up."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert shape is not None
    if report := ParamValidator().validate(request, shape).generate_report():
        return report
    found: list[str] = []

    def enums(value: Any, shape: Any, where: str) -> None:
        if shape.type_name == "structure":
            for name, part in value.items():
                if name in shape.members:
                    enums(part, shape.members[name], f"{where}.{name}")
        elif shape.type_name == "list":
            for part in value:
                enums(part, shape.member, where)
        elif getattr(shape, "enum", None) and value not in shape.enum:
            found.append(f"{where}: {value} is unknown")

    enums(request, shape, "")
    return "\n".join(found)


def test_ec2_would_take_every_nodes_request(cluster: dict[str, Any]) -> None:
    for name, node in cluster["available_node_types"].items():
        assert not complaints({**node["node_config"], "MinCount": 1, "MaxCount": 1}), name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"InstanceType": "p9.huge"}, "p9.huge is unknown"),
        ({"InstanceMarketOptions": {"MarketType": "spot", "SpotOption": {}}}, "SpotOption"),
        ({"IamInstanceProfile": "next-ray-worker"}, "IamInstanceProfile"),
        ({"MetadataOptions": {"HttpTokens": "needed"}}, "needed is unknown"),
    ],
)
def test_ec2s_model_would_find_a_mistake(cluster: dict[str, Any], change: dict[str, Any], complaint: str) -> None:
    config = cluster["available_node_types"]["engine"]["node_config"]
    assert complaint in complaints({**config, **change, "MinCount": 1, "MaxCount": 1})


def test_rays_scheduler_finds_nodes_for_every_gpu_job_and_labels_decide_which(cluster: dict[str, Any]) -> None:
    kinds = {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}
    assert len(GPU_JOBS) > 30
    for path in GPU_JOBS:
        config = load_config(str(path), LABELS)
        nodes, unplaced = launched(kinds, cluster["max_workers"], config)
        gpus = {
            market: sum(n * kinds[k]["resources"]["GPU"] for k, n in nodes.items() if kinds[k]["labels"]["market"] == market)
            for market in ("on-demand", "spot")
        }
        assert not unplaced, path.name
        assert gpus["on-demand"] == config.learner.ranks, "no learner's GPU is idle"
        assert gpus["spot"] >= config.rollout.engines * config.rollout.tensor_parallel_size
    nowhere = load_config(str(GPU_JOBS[0]), [*LABELS, "cluster.engine_labels={market: nowhere}"])
    assert launched(kinds, cluster["max_workers"], nowhere)[1] == nowhere.rollout.engines


def test_a_spot_market_that_has_run_dry_is_left_for_the_next(cluster: dict[str, Any]) -> None:
    kinds = {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}
    config = load_config(str(ROOT / "jobs" / "qwen2.5-7b-next.yaml"), LABELS)
    order = ["engine", "engine-4x", "engine-8x"]
    for i, kind in enumerate(order):
        nodes, unplaced = launched(kinds, cluster["max_workers"], config, scarce=order[:i])
        assert (nodes[kind], unplaced) == (config.rollout.engines, 0)


def test_the_jobs_are_estimated_to_fit_the_gpus() -> None:
    """80 GB for learners; 48 GB for engines. A tenth is left to the driver and the allocator, as in tests/test_jobs.py."""
    for path in GPU_JOBS:
        config = resolve_dtypes(load_config(str(path)), "gpu")
        facts = facts_of(config.model)
        assert facts is not None
        assert sum(part.num_bytes for part in learner_memory(config, facts)) < 0.9 * 80e9, path.name
        assert sum(part.num_bytes for part in engine_memory(config, facts, on_gpu=True)) < 0.9 * 0.85 * 48e9, path.name


def test_the_labels_its_comment_names_are_a_valid_job(cluster: dict[str, Any]) -> None:
    comment = next(line for line in (ROOT / "cluster.yaml").read_text().splitlines() if line.startswith("# Jobs ask by label:"))
    overrides = [f"cluster.{part.strip()}" for part in comment.partition(":")[2].split("cluster.") if part.strip()]
    asked = load_config(str(ROOT / "jobs" / "qwen2.5-7b-next.yaml"), overrides).cluster
    labels = [node["labels"] for node in cluster["available_node_types"].values()]
    assert asked.learner_labels in labels and asked.engine_labels in labels
    assert asked.learner_labels != asked.engine_labels


def test_nodes_install_the_pinned_set_and_hold_no_keys(cluster: dict[str, Any]) -> None:
    assert (ROOT / cluster["file_mounts"]["/home/ubuntu/requirements"] / "gpu.txt").is_file()
    (install,) = [command for command in cluster["setup_commands"] if " -r " in command]
    assert "--no-deps" in install and "requirements/gpu.txt" in install
    text = (ROOT / "cluster.yaml").read_text()
    assert "SECRET" not in text.upper() and "AKIA" not in text
    start, worker = " ".join(cluster["head_start_ray_commands"]), " ".join(cluster["worker_start_ray_commands"])
    assert "RAY_enable_autoscaler_v2=1" in start and "RAY_AUTH_MODE=token" in worker
    grace = load_config(None).recovery.grace_s
    assert int(re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", start)[0]) > grace
    assert all((ROOT / path).exists() for path in cluster["file_mounts"].values() if not path.startswith("~"))
    assert "RAY_AUTH_MODE=token" in start and "--dashboard-host=127.0.0.1" in start


def test_the_pinned_sets_are_exact_and_name_no_index() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert not any("://" in line or line.startswith("-") for line in lines), path.name
        if path.name != "override.txt":
            assert all(line.partition(";")[0].count("==") == 1 for line in lines), path.name


class Metadata(http.server.BaseHTTPRequestHandler):
    """EC2's instance metadata, version 2, of a spot instance: three looks without a notice, then one."""

    looks = 0

    def do_PUT(self) -> None:
        self.answer(200, "the-token")

    def do_GET(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token"] == "the-token"
        Metadata.looks += 1
        has_notice = self.path == "/latest/meta-data/spot/instance-action" and Metadata.looks > 3
        self.answer(200 if has_notice else 404, json.dumps({"action": "terminate", "time": "2026-12-01T08:22:00Z"}))

    def answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_spot_notice_becomes_a_drain(tmp_path: Path) -> None:
    """The script waits for the notice and calls Ray, again when Ray does not take it at once; the words of the call are Ray's own."""
    from click.testing import CliRunner
    from ray.scripts.scripts import drain_node

    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\n[ -e {tmp_path}/once ] || {{ touch {tmp_path}/once; exit 1; }}\n')
    ray.chmod(0o755)
    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "METADATA": f"http://127.0.0.1:{server.server_port}/latest",
            "POLL_S": "0.05",
            "RAY_HEAD_IP": "10.0.0.1",
        }
        script = subprocess.run(["bash", str(ROOT / "jobs/aws/heed_spot_notice.sh")], env=env, capture_output=True, text=True, timeout=60)
        server.shutdown()
    assert script.returncode == 0, script.stderr
    assert Metadata.looks == 4 and '"action": "terminate"' in script.stdout and (tmp_path / "once").exists()
    words = (tmp_path / "asked").read_text().splitlines()
    assert words[0] == "drain-node" and "--address=10.0.0.1:6379" in words
    parsed = drain_node.make_context("drain-node", words[1:])
    assert (parsed.params["reason"], parsed.params["deadline_remaining_seconds"]) == ("DRAIN_NODE_REASON_PREEMPTION", 110)
    assert CliRunner().invoke(drain_node, ["--reason=NONE", "--reason-message=x"]).exit_code == 2
