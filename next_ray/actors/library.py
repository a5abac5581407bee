"""The triplets of a stored trajectory, sharded over Ray workers that open the checkpoints themselves: only results travel."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from next_ray.actors.cluster import actor_environment
from next_ray.checkpoints.adapters import StoredFactors
from next_ray.checkpoints.imported import Imported
from next_ray.checkpoints.open import open_trajectory
from next_ray.delta.dense import DenseHistory
from next_ray.delta.history import FactorHistory, ModuleHistory
from next_ray.delta.sharding import dense_cost, shard_modules, trajectory_cost
from next_ray.delta.trajectory_triplets import trajectory_triplets
from next_ray.errors import NextRayError, PlacementError
from next_ray.types import ModuleTriplets


@dataclass(frozen=True)
class Location:
    """Where a trajectory is: the arguments of `open_trajectory`. Every worker's machine must see the same paths."""

    paths: tuple[str, ...]
    base: str | None = None
    keep_saved: bool = True
    segment: int | None = None
    endpoint_url: str | None = None

    def open(self) -> Imported:
        """Read the headers."""
        return open_trajectory(self.paths, self.base, self.keep_saved, self.segment, self.endpoint_url)


@dataclass(frozen=True)
class Shard:
    """What one worker made: triplets of its modules, and the seconds that took."""

    triplets: Mapping[str, list[ModuleTriplets]]
    seconds: float


class TripletActor:
    """Computes the triplets of the modules it is asked for, straight from the checkpoint files."""

    def __init__(self, location: Location, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self._threads = threads
        self._modules = {name: on_device(module, device) for name, module in location.open().trajectory.modules.items()}

    def ready(self) -> int:
        """The process id, once the trajectory is open."""
        return os.getpid()

    def compute(self, names: Sequence[str], horizon: int) -> Shard:
        """Triplets of these modules."""
        started = time.perf_counter()
        found = trajectory_triplets(self._modules, horizon, names, self._threads)
        return Shard(found, time.perf_counter() - started)


def on_device(module: ModuleHistory, device: str) -> ModuleHistory:
    """The same history, computing there."""
    return replace(module, device=device) if isinstance(module, FactorHistory | DenseHistory) else module


def module_costs(modules: Mapping[str, ModuleHistory]) -> dict[str, float]:
    """Relative cost of each module's triplets; headers are read where they tell the sizes."""
    return {name: _cost(module) for name, module in modules.items()}


def _cost(module: ModuleHistory) -> float:
    if not isinstance(module, FactorHistory):
        return dense_cost(*module.shape, module.num_checkpoints)
    if isinstance(module.factors, StoredFactors):
        return trajectory_cost(*module.factors.shape, max(module.factors.ranks), module.num_checkpoints)
    return trajectory_cost(*module.shape, module.factors[0].rank, module.num_checkpoints)


class TripletWorkers:
    """Live workers over one trajectory; a context manager. Ray must be running.

    Args:
        location: the trajectory.
        workers: how many; those that would get no module are not started.
        threads: CPU threads of each, reserved.
        gpus_per_worker: share of a GPU each reserves, for example 0.25; 0: CPU.

    Raises:
        CheckpointFormatError: the trajectory cannot be read.
        PlacementError: the cluster is smaller than what the workers reserve.
    """

    def __init__(self, location: Location, workers: int, threads: int = 1, gpus_per_worker: float = 0.0) -> None:
        costs = module_costs(location.open().trajectory.modules)
        self._order = list(costs)
        self.shards = [shard for shard in shard_modules(costs, workers) if shard]
        _check_room(len(self.shards), threads, gpus_per_worker)
        device = "cuda" if gpus_per_worker > 0 else "cpu"
        remote = TripletRemote.options(
            num_cpus=threads, num_gpus=gpus_per_worker, runtime_env=actor_environment("gpu" if device == "cuda" else "cpu", threads)
        )
        self._actors = [remote.remote(location, threads, device) for _ in self.shards]
        _results([actor.ready.remote() for actor in self._actors])

    def compute(self, horizon: int) -> list[Shard]:
        """All workers' shards."""
        return _results([actor.compute.remote(shard, horizon) for actor, shard in zip(self._actors, self.shards, strict=True)])

    def triplets(self, horizon: int) -> dict[str, list[ModuleTriplets]]:
        """Module name to triplets, in the trajectory's order: what `WeightTrajectory.computed` holds for this horizon."""
        merged = {name: found for shard in self.compute(horizon) for name, found in shard.triplets.items()}
        return {name: merged[name] for name in self._order}

    def close(self) -> None:
        """End the workers."""
        actors, self._actors = self._actors, []
        for actor in actors:
            ray.kill(actor)  # pyright: ignore[reportArgumentType]

    def __enter__(self) -> TripletWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sharded_triplets(
    location: Location, horizon: int, workers: int, threads: int = 1, gpus_per_worker: float = 0.0
) -> dict[str, list[ModuleTriplets]]:
    """`trajectory_triplets` of a stored trajectory over `workers` Ray actors; arguments and errors as of `TripletWorkers`."""
    with TripletWorkers(location, workers, threads, gpus_per_worker) as pool:
        return pool.triplets(horizon)


def _check_room(workers: int, threads: int, gpus_per_worker: float) -> None:
    there = ray.cluster_resources()
    for name, wanted in (("CPU", float(workers * threads)), ("GPU", workers * gpus_per_worker)):
        if wanted > there.get(name, 0.0):
            raise PlacementError(
                f"{workers} triplet workers reserve {wanted:g} {name}, and the cluster has {there.get(name, 0.0):g}. "
                "Ask for fewer workers or a smaller share, or add nodes."
            )


def _results(refs: list[Any]) -> list[Any]:
    """Wait for all; a user error inside a worker comes out as itself."""
    try:
        return ray.get(refs)
    except RayTaskError as error:
        if isinstance(error.cause, NextRayError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise NextRayError(
            f"A triplet worker died: {str(error).strip().splitlines()[0]} Run the same command again, with fewer workers a machine "
            "if it was out of memory."
        ) from error


TripletRemote = ray.remote(TripletActor)
