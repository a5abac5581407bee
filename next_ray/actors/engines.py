"""Rollout engines: one vLLM engine an actor, each in a placement group of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import ray

from next_ray.actors import parts
from next_ray.actors.cluster import result
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.rollout.engine import EngineSpec, VllmEngine
from next_ray.types import Adapter, FinishReason, Group, GroupSize, Ref, RolloutRequest, Sampling, Shard


class EngineActor:
    """Holds one `VllmEngine`."""

    def __init__(self, spec: EngineSpec, place: ModelPlace, files: dict[str, bytes] | None) -> None:
        self._engine = VllmEngine(replace(spec, model_path=localize(place, files)))

    def ready(self) -> None:
        """Return once the engine stands."""

    def load(self, versions: Sequence[int], *adapters: Adapter) -> None:
        """Serve these versions and no others."""
        self._engine.load(dict(zip(versions, adapters, strict=True)))

    def reload(self, version: int, policy: Any) -> None:
        """Serve other full weights: references to them, a learner state, or None for the base."""
        self._engine.reload(version, None if policy is None else parts.weights(parts.refs_of(policy)))

    def generate(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> tuple[list[Group], list[GroupSize]]:
        """Sample; the groups stay in the object store, the sizes go to the driver."""
        groups = self._engine.generate(requests, sampling)
        return groups, [_size(group) for group in groups]

    def close(self) -> None:
        """Shut vLLM down and remove the adapters it read."""
        self._engine.close()


def _size(group: Group) -> GroupSize:
    return GroupSize(
        prompt_tokens=len(group.prompt_token_ids),
        completion_tokens=tuple(len(c.token_ids) for c in group.completions),
        versions=tuple(c.version for c in group.completions),
        truncated=tuple(c.finish_reason is FinishReason.LENGTH for c in group.completions),
    )


@dataclass
class RayRollout:
    """The `Rollout` port over engine actors."""

    engines: Sequence[Any]

    async def ready(self) -> None:
        """Wait until every engine stands."""
        await asyncio.gather(*(result(e.ready.remote(), "a rollout engine") for e in self.engines))

    async def generate(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[Shard]:
        """Split the requests evenly over the engines, in order."""
        num = len(self.engines)
        bounds = [round(i * len(requests) / num) for i in range(num + 1)]
        parts = [list(requests[a:b]) for a, b in pairwise(bounds)]
        calls = [e.generate.options(num_returns=2).remote(part, sampling) for e, part in zip(self.engines, parts, strict=True) if part]
        sizes = await asyncio.gather(*(result(size_ref, "a rollout engine") for _, size_ref in calls))
        return [Shard(groups=Ref(groups_ref), sizes=tuple(size)) for (groups_ref, _), size in zip(calls, sizes, strict=True)]

    async def load(self, adapters: Mapping[int, Ref[Adapter]]) -> None:
        """Hand the same references to every engine."""
        versions = list(adapters)
        calls = [e.load.remote(versions, *(adapters[v].value for v in versions)) for e in self.engines]
        await asyncio.gather(*(result(call, "a rollout engine") for call in calls))

    async def reload(self, version: int, weights: Ref[Any] | None) -> None:
        """Hand the same references to every engine."""
        calls = [e.reload.remote(version, weights.value if weights else None) for e in self.engines]
        await asyncio.gather(*(result(call, "a rollout engine") for call in calls))

    async def close(self) -> None:
        """Let every engine clean up behind itself."""
        await asyncio.gather(*(e.close.remote() for e in self.engines), return_exceptions=True)


EngineRemote = ray.remote(EngineActor)
