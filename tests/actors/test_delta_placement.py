"""Delta workers that reserve a share of a GPU, on a real Ray whose two GPUs are numbers only: reserved, refused, given back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
import ray
from ray.util.placement_group import remove_placement_group

from next_ray.actors.cluster import place
from next_ray.actors.starting import check_deltas_device, delta_worker
from next_ray.config import Config
from next_ray.errors import PlacementError
from next_ray.estimate import delta_bundle
from next_ray.settings import load_config

pytestmark = pytest.mark.ray
SHARDS = [["a"], ["b"], ["c"]]


def config(share: float) -> Config:
    return load_config(None, [f"extrapolation.gpus_per_delta_worker={share}", "extrapolation.delta_workers=3"])


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        if "RAY_AUTH_MODE" not in os.environ:  # else Ray may have read it already: it does so when it is imported
            patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_without_a_share_they_reserve_nothing(two_gpus: None) -> None:
    workers = [delta_worker(config(0), shard, i, None, "gpu") for i, shard in enumerate(SHARDS)]
    ray.get([worker.restart.remote() for worker in workers])
    free = ray.available_resources()
    assert (free["GPU"], free["CPU"]) == (2, 1)
    for worker in workers:
        ray.kill(worker)


def test_each_worker_reserves_its_share_and_no_cpu(two_gpus: None) -> None:
    shared = config(0.5)
    group = asyncio.run(place([delta_bundle(shared)] * 3, {}, "the delta workers", 20, print))
    workers = [delta_worker(shared, shard, i, group, "gpu") for i, shard in enumerate(SHARDS)]
    ray.get([worker.restart.remote() for worker in workers])
    free = ray.available_resources()
    assert (free["GPU"], free["CPU"]) == (0.5, 1)
    for worker in workers:
        ray.kill(worker)
    remove_placement_group(group)


def test_more_than_the_cluster_has_is_refused(two_gpus: None) -> None:
    whole = config(1)
    with pytest.raises(PlacementError, match=r"No place for the delta workers: asked for 3 x \(1 GPU\); the cluster has 1 CPU, 2 GPU"):
        asyncio.run(place([delta_bundle(whole)] * 3, {}, "the delta workers", 0.1, print))


def test_gpus_in_a_cluster_without_are_refused_at_once() -> None:
    with pytest.raises(PlacementError, match=r"gpus_per_delta_worker=0\.25 asks for GPUs, and the cluster has none"):
        check_deltas_device(config(0.25), "cpu")
    check_deltas_device(config(0.25), "gpu")
    check_deltas_device(config(0), "cpu")
    check_deltas_device(load_config(None, ["extrapolation={gpus_per_delta_worker: 0.25, enabled: false}"]), "cpu")
