"""Sharded triplets: real Ray workers that open real checkpoint folders give what one process computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from next_ray.actors.cluster import open_cluster
from next_ray.actors.library import Location, TripletActor, TripletWorkers, module_costs, sharded_triplets
from next_ray.adapter import write_peft_folder
from next_ray.config import ClusterSection
from next_ray.delta.trajectory_triplets import trajectory_triplets
from next_ray.errors import CheckpointFormatError, PlacementError
from tests.delta.trajectories import wandering_adapters

pytestmark = pytest.mark.ray
SHAPES = {f"model.layers.{layer}.self_attn.{name}_proj": shape for layer in (0, 1) for name, shape in {"q": (24, 16), "k": (8, 16)}.items()}
HORIZON = 2


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = tmp_path_factory.mktemp("trajectory")
    for step, adapter in enumerate(wandering_adapters(np.random.default_rng(0), SHAPES, rank=4, count=4), start=1):
        write_peft_folder(adapter, folder / f"checkpoint-{10 * step}", "none")
    return Location((str(folder),))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with open_cluster(ClusterSection(dashboard=False), "library-test", embedded_cpus=2):
        yield


def test_an_actor_computes_the_modules_it_is_asked_for(location: Location) -> None:
    """The plain class, without Ray."""
    actor = TripletActor(location, threads=1, device="cpu")
    name = list(SHAPES)[1]
    shard = actor.compute([name], HORIZON)
    assert list(shard.triplets) == [name]
    assert shard.seconds > 0


def test_costs_follow_sizes_without_reading_tensors(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = location.open().trajectory.modules
    monkeypatch.setattr("next_ray.checkpoints.adapters.StoredAdapter.factors", None)
    costs = module_costs(modules)
    assert set(costs) == set(SHAPES)
    assert costs["model.layers.0.self_attn.q_proj"] > costs["model.layers.0.self_attn.k_proj"]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_what_one_process_gives(cluster: None, location: Location, workers: int) -> None:
    modules = location.open().trajectory.modules
    found = sharded_triplets(location, HORIZON, workers)
    expected = trajectory_triplets(modules, HORIZON, threads=1)
    assert list(found) == list(modules)
    for name, triplets in expected.items():
        for one, other in zip(found[name], triplets, strict=True):
            assert one.energy == other.energy
            for own, reference in ((one.global_, other.global_), (one.local, other.local), (one.target, other.target)):
                assert (own is None) == (reference is None)
                if own is not None and reference is not None:
                    assert own.sigma == reference.sigma
                    np.testing.assert_array_equal(own.u, reference.u)
                    np.testing.assert_array_equal(own.v, reference.v)


def test_shards_are_whole_and_workers_end(cluster: None, location: Location) -> None:
    with TripletWorkers(location, 2) as pool:
        assert sorted(name for shard in pool.shards for name in shard) == sorted(SHAPES)
        assert {name for shard in pool.compute(HORIZON) for name in shard.triplets} == set(SHAPES)
    pool.close()


def test_what_cannot_be_placed_or_read_is_a_users_error(cluster: None, location: Location, tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match="4 triplet workers reserve 400 CPU"):
        sharded_triplets(location, HORIZON, workers=50, threads=100)
    with pytest.raises(PlacementError, match="GPU"):
        sharded_triplets(location, HORIZON, workers=2, gpus_per_worker=0.5)
    with pytest.raises(CheckpointFormatError):
        sharded_triplets(Location((str(tmp_path),)), HORIZON, workers=1)


def test_an_error_in_a_worker_comes_out_as_itself(cluster: None, location: Location, tmp_path: Path) -> None:
    for step, adapter in enumerate(wandering_adapters(np.random.default_rng(0), SHAPES, rank=4, count=3), start=1):
        write_peft_folder(adapter, tmp_path / f"checkpoint-{step}", "none")
    with TripletWorkers(Location((str(tmp_path),)), 1) as pool:
        file = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-64])
        with pytest.raises(CheckpointFormatError, match=r"adapter_model\.safetensors"):
            pool.triplets(HORIZON)
