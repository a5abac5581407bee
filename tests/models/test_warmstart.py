import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from next_ray.errors import PlacementError, TrainingError
from next_ray.models.folder import read_files
from next_ray.models.tiny import train
from next_ray.models.tiny_spec import TinySpec

SPEC = TinySpec(steps=20, batch_size=16, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=1)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        if "RAY_AUTH_MODE" not in os.environ:  # else Ray may have read it already: it does so when it is imported
            patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.mark.usefixtures("_cluster")
def test_the_job_returns_the_very_bytes_of_training_here(tmp_path: Path) -> None:
    from next_ray.actors.warmstart import train_tiny_with_ray

    train_tiny_with_ray(SPEC, tmp_path / "there")
    train(SPEC, tmp_path / "here", lambda _: None)
    assert read_files(tmp_path / "there") == read_files(tmp_path / "here")


@pytest.mark.usefixtures("_cluster")
def test_a_failing_job_says_why(tmp_path: Path) -> None:
    from next_ray.actors.warmstart import train_tiny_with_ray

    with pytest.raises(TrainingError, match=r"warm start failed: The tiny model's hidden_size=30"):
        train_tiny_with_ray(replace(SPEC, hidden_size=30, num_heads=4), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_cluster")
def test_a_cluster_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from next_ray.actors import warmstart

    monkeypatch.setattr(warmstart, "START_ATTEMPTS", 2)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    with pytest.raises(PlacementError, match=r"asks for 16 CPU, the cluster has 2 in all"):
        warmstart.train_tiny_with_ray(SPEC, tmp_path, num_cpus=16)
