"""Singular triplets of stored checkpoints from Ray workers, for the commands that take `--workers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from next_ray.config import ClusterSection
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.models.folder import cache_root


def with_sharded_triplets(
    trajectory: WeightTrajectory,
    horizon: int,
    workers: int,
    paths: Sequence[str],
    base: str | None = None,
    segment: int | None = None,
    endpoint_url: str | None = None,
) -> WeightTrajectory:
    """The trajectory with the triplets of `horizon` known; the workers open the paths themselves, with the same arguments.

    Uses the cluster of RAY_ADDRESS, else an embedded Ray with a core a worker. Where there are GPUs each worker takes its share of one.

    Raises:
        PlacementError: Ray does not come up, or has no room for the workers.
        CheckpointFormatError: a worker cannot read the checkpoints.
    """
    from next_ray.run import protect_embedded_ray

    protect_embedded_ray(cache_root(None))
    from next_ray.actors.cluster import open_cluster
    from next_ray.actors.library import Location, sharded_triplets

    workers = min(workers, len(trajectory.modules))
    location = Location(tuple(paths), base, segment=segment, endpoint_url=endpoint_url)
    with open_cluster(ClusterSection(dashboard=False), "next_ray-triplets", workers) as cluster:
        gpus = min(1.0, cluster.resources.get("GPU", 0.0) / workers) if cluster.device == "gpu" else 0.0
        found = sharded_triplets(location, horizon, workers, gpus_per_worker=gpus)
    return replace(trajectory, computed={**(trajectory.computed or {}), horizon: found})
