"""Rollout engines: one vLLM engine an actor, each in a placement group of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from uuid import uuid4

import ray

from next_ray.actors import parts
from next_ray.actors.cluster import result
from next_ray.actors.observed import RunActor
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.rollout.engine import EngineSpec, VllmEngine
from next_ray.rollout.worker import Answer, EngineThread
from next_ray.types import Adapter, FinishReason, Group, GroupSize, Ref, RolloutRequest, Sampling, Shard


@dataclass(frozen=True)
class Sampled:
    """What the driver hears of a batch: its groups' sizes, and how many requests were begun anew under a newer adapter."""

    sizes: list[GroupSize]
    restarts: int


class EngineActor(RunActor):
    """Holds one engine in its thread; its methods come back while that thread samples, so adapters change without a pause."""

    def __init__(self, spec: EngineSpec, place: ModelPlace, files: dict[str, bytes] | None) -> None:
        self._engine = EngineThread(lambda: VllmEngine(replace(spec, model_path=localize(place, files))))
        self._calls: dict[str, Future[Answer]] = {}
        self._aborted: set[str] = set()

    async def ready(self) -> None:
        """Return once the engine stands."""
        await asyncio.wrap_future(self._engine.ready)

    async def load(self, versions: Sequence[int], in_force: int, *adapters: Adapter) -> None:
        """Serve these versions and no others; `in_force` is the one that requests begun anew go on with."""
        await asyncio.wrap_future(self._engine.load(dict(zip(versions, adapters, strict=True)), in_force))

    async def reload(self, version: int, policy: Any) -> None:
        """Serve other full weights (None: the base's) once nothing is in flight, or what is begins anew, as `rollout.in_flight` says.

        `policy` are references to the parts, or a learner state.
        """
        weights = None if policy is None else parts.weights(parts.refs_of(policy))
        await asyncio.wrap_future(self._engine.reload(version, weights))

    async def begin(self, call: str, requests: Sequence[RolloutRequest], sampling: Sampling) -> None:
        """Put a batch in the engine's queue; `collect` waits for it."""
        if call in self._aborted:
            self._aborted.remove(call)
        else:
            self._calls[call] = self._engine.generate(requests, sampling)

    async def collect(self, call: str) -> tuple[list[Group], Sampled]:
        """The groups, which stay in the object store, and what goes to the driver; nothing when the batch was dropped."""
        answer = asyncio.wrap_future(self._calls[call])
        await asyncio.wait([answer])
        self._calls.pop(call, None)
        if answer.cancelled():
            return [], Sampled([], 0)
        groups = answer.result().groups
        return groups, Sampled([_size(group) for group in groups], answer.result().restarts)

    async def abort(self, call: str) -> None:
        """Drop a batch that nobody waits for any more, also one whose `begin` is still on its way."""
        if (future := self._calls.pop(call, None)) is not None:
            future.cancel()
        else:
            self._aborted.add(call)

    async def close(self) -> None:
        """Shut vLLM down and remove the adapters it read; who still waits gets an error."""
        await asyncio.to_thread(self._engine.close)


def _size(group: Group) -> GroupSize:
    return GroupSize(
        prompt_tokens=len(group.prompt_token_ids),
        completion_tokens=tuple(len(c.token_ids) for c in group.completions),
        versions=tuple(c.version for c in group.completions),
        truncated=tuple(c.finish_reason is FinishReason.LENGTH for c in group.completions),
    )


@dataclass
class RayRollout:
    """The `Rollout` port over engine actors. Batches and adapters reach every engine in the order in which they were asked for."""

    engines: Sequence[Any]
    _in_order: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ready(self) -> None:
        """Wait until every engine stands."""
        await asyncio.gather(*(result(e.ready.remote(), "a rollout engine") for e in self.engines))

    async def generate(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[Shard]:
        """Split the requests evenly over the engines, in order. Cancelling it makes the engines drop the batch."""
        num = len(self.engines)
        bounds = [round(i * len(requests) / num) for i in range(num + 1)]
        parts = [(e, list(requests[a:b])) for e, (a, b) in zip(self.engines, pairwise(bounds), strict=True) if a < b]
        call = uuid4().hex
        try:
            async with self._in_order:
                await asyncio.gather(*(result(e.begin.remote(call, part, sampling), "a rollout engine") for e, part in parts))
            calls = [e.collect.options(num_returns=2).remote(call) for e, _ in parts]
            found: list[Sampled] = await asyncio.gather(*(result(sampled, "a rollout engine") for _, sampled in calls))
        except asyncio.CancelledError:
            for engine, _ in parts:
                engine.abort.remote(call)
            raise
        return [Shard(Ref(groups), tuple(one.sizes), restarts=one.restarts) for (groups, _), one in zip(calls, found, strict=True)]

    async def load(self, adapters: Mapping[int, Ref[Adapter]], in_force: int) -> None:
        """Hand the same references to every engine."""
        versions = list(adapters)
        async with self._in_order:
            calls = [e.load.remote(versions, in_force, *(adapters[v].value for v in versions)) for e in self.engines]
            await asyncio.gather(*(result(call, "a rollout engine") for call in calls))

    async def reload(self, version: int, weights: Ref[Any] | None) -> None:
        """Hand the same references to every engine."""
        async with self._in_order:
            calls = [e.reload.remote(version, weights.value if weights else None) for e in self.engines]
            await asyncio.gather(*(result(call, "a rollout engine") for call in calls))

    async def close(self) -> None:
        """Let every engine clean up behind itself."""
        await asyncio.gather(*(e.close.remote() for e in self.engines), return_exceptions=True)


EngineRemote = ray.remote(EngineActor)
