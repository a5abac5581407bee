"""What a job asks of a cluster, put to Ray's own scheduler of autoscaler v2: would it bring nodes for all of it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from next_ray.config import Config
from next_ray.estimate import delta_bundle, engine_bundle, learner_bundle
from next_ray.settings import load_config

ROOT = Path(__file__).resolve().parent.parent.parent
GPU_JOBS = sorted(path for path in (ROOT / "jobs").glob("*.yaml") if load_config(str(path)).cluster.device == "gpu")
LABELS = ["cluster.learner_labels={market: on-demand}", "cluster.engine_labels={market: spot}"]

Kinds = Mapping[str, Mapping[str, Any]]
"""Node types, as in a cluster.yaml."""


def groups(config: Config) -> list[tuple[list[dict[str, float]], Mapping[str, str]]]:
    """The placement groups of a run (`actors/launch.py`): bundles, and the labels that each of them asks for."""
    cluster, share = config.cluster, delta_bundle(config)
    engines = [([engine_bundle(config, on_gpu=True)], cluster.engine_labels)] * config.rollout.engines
    gang = ([learner_bundle(on_gpu=True)] * config.learner.ranks, cluster.learner_labels)
    deltas = [([share] * config.extrapolation.delta_workers, {})] if share else []
    return [gang, *engines, *deltas]


def launched(kinds: Kinds, most: int, config: Config, scarce: Sequence[str] = ()) -> tuple[Counter[str], int]:
    """The nodes that the scheduler would bring for a run on an empty cluster, by kind, and how many of its groups have no place.

    Kinds in `scarce` were not to be had a moment ago.
    """
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.common_pb2 import LABEL_OPERATOR_IN  # pyright: ignore[reportAttributeAccessIssue]

    asked = []
    for bundles, labels in groups(config):
        selector = [[(key, LABEL_OPERATOR_IN, [value]) for key, value in labels.items()]] if labels else None
        requests = [ResourceRequestUtil.make(bundle, label_selectors=selector) for bundle in bundles]
        asked.append(GangResourceRequest(requests=requests))
    types = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=0,
            max_worker_nodes=kind["max_workers"],
            resources=dict(kind["resources"]),
            labels=dict(kind["labels"]),
            priority=kind.get("priority", 0),
        )
        for name, kind in kinds.items()
    }
    score = dict.fromkeys(scarce, 0.0)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=most,
        gang_resource_requests=asked,
        cloud_resource_availabilities=score,
        recoverable_resource_availabilities=score,
    )
    reply = ResourceDemandScheduler().schedule(request)
    nodes = Counter({launch.instance_type: launch.count for launch in reply.to_launch})
    return nodes, len(reply.infeasible_gang_resource_requests)
