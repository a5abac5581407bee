"""`cluster.yaml` against Ray's own schema and the promises in its comments; nothing is launched and no cloud is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from next_ray.settings import load_config

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parent.parent


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
    assert {name for name, node in types.items() if "InstanceMarketOptions" in node["node_config"]} == {"engine"}
    assert {name: node["labels"]["market"] for name, node in types.items()} == {
        "head": "on-demand",
        "learner": "on-demand",
        "engine": "spot",
    }
    assert all(node["min_workers"] == 0 for name, node in types.items() if name != cluster["head_node_type"])
    assert cluster["idle_timeout_minutes"] <= 15
    assert sum(node.get("max_workers", 0) for node in types.values()) <= cluster["max_workers"]


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
    start = " ".join(cluster["head_start_ray_commands"])
    assert "RAY_AUTH_MODE=token" in start and "--dashboard-host=127.0.0.1" in start


def test_the_pinned_sets_are_exact_and_name_no_index() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert not any("://" in line or line.startswith("-") for line in lines), path.name
        if path.name != "override.txt":
            assert all(line.partition(";")[0].count("==") == 1 for line in lines), path.name
