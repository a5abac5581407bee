"""How actors are started: in a place or reserving nothing, with their environment, and until they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from next_ray.actors.cluster import Device, actor_environment, result
from next_ray.actors.deltas import DeltaRemote, DenseDeltaRemote
from next_ray.actors.observed import NAME_VARIABLE
from next_ray.actors.seats import kill
from next_ray.actors.shipping import ModelPlace
from next_ray.config import Config
from next_ray.delta.sharding import dense_cost, module_cost, shard_modules
from next_ray.errors import PlacementError
from next_ray.estimate import delta_bundle
from next_ray.models.resolve import PreparedModel


async def stands(actor: Any, what: str, ready: Any = None) -> Any:
    """The actor, once it is built (Ray's own `__ray_ready__`), or once its method `ready` returns; one that is not is ended."""
    try:
        await result((ready or actor.__ray_ready__).remote(), what)
    except BaseException:
        kill(actor)
        raise
    return actor


def check_deltas_device(config: Config, device: Device) -> None:
    """Raise `PlacementError`, before anything is waited for, when delta workers want GPUs and the run found none."""
    if device == "cpu" and delta_bundle(config):
        raise PlacementError(
            f"No place for the delta workers: extrapolation.gpus_per_delta_worker={config.extrapolation.gpus_per_delta_worker:g} asks for "
            "GPUs, and the cluster has none. Set it to 0, or add nodes with GPUs."
        )


def delta_shards(config: Config, model: PreparedModel) -> list[list[str]]:
    """The modules of each delta worker, balanced by cost; none when the run does not extrapolate."""
    if not config.extrapolation.enabled:
        return []
    learner = config.learner
    costs = {
        name: module_cost(out, inner, learner.lora.rank) if learner.mode == "lora" else dense_cost(out, inner, 1)
        for name, (out, inner) in model.linear_shapes.items()
    }
    return [shard for shard in shard_modules(costs, config.extrapolation.delta_workers) if shard]


@dataclass(frozen=True)
class Whole:
    """What delta workers need of a model that is trained whole: (O, I) of its modules, and where its base weights are."""

    shapes: Mapping[str, tuple[int, int]]
    place: ModelPlace
    files: Any

    def part(self, shard: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The shapes of a shard's modules, in the model's order, in which they are read."""
        mine = set(shard)
        return {name: shape for name, shape in self.shapes.items() if name in mine}


def delta_worker(
    config: Config, shard: Sequence[str], index: int, group: PlacementGroup | None, device: Device, whole: Whole | None = None
) -> Any:
    """The delta worker of a shard: in the group's place and computing on its GPU, or without a group on the CPU, reserving nothing."""
    horizon, share = config.extrapolation.horizon, delta_bundle(config)
    kind = DeltaRemote if whole is None else DenseDeltaRemote
    what = f"delta worker {index}"
    remote = (
        light(kind, device, what, config.cluster.learner_labels) if group is None else placed(kind, group, index, share, device, 1, what)
    )
    where = None if group is None else "cuda"
    if whole is None:
        return remote.remote(horizon, shard, where)
    return remote.remote(horizon, whole.part(shard), where, whole.place, whole.files)


def placed(remote: Any, group: PlacementGroup, index: int, bundle: dict[str, float], device: str, threads: int, what: str) -> Any:
    """An actor in a bundle of a placement group, with as many threads."""
    return remote.options(
        num_cpus=bundle.get("CPU", 0),
        num_gpus=bundle.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        runtime_env=actor_environment(device, threads, {NAME_VARIABLE: what}),
    )


def light(remote: Any, device: str, what: str, labels: Mapping[str, str]) -> Any:
    """An actor that reserves nothing: its work is small or yields to the others.

    It goes where learners may be: on an engine's node it would die with a spot instance, and keep an idle one from being removed.
    """
    environment = actor_environment(device, 1, {NAME_VARIABLE: what})
    return remote.options(num_cpus=0, label_selector=dict(labels) or None, runtime_env=environment)
