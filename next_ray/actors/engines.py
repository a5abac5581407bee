"""Rollout engines: one vLLM engine an actor, each in a placement group of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from uuid import uuid4

import ray

from next_ray.actors import parts
from next_ray.actors.cluster import answer
from next_ray.actors.observed import RunActor
from next_ray.actors.resting import Resting
from next_ray.actors.seats import Seat, first_up
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.errors import ActorLostError
from next_ray.rollout.engine import EngineSpec, VllmEngine
from next_ray.rollout.worker import Answer, EngineThread
from next_ray.types import BASE_VERSION, Adapter, FinishReason, Group, GroupSize, Ref, RolloutRequest, Sampling, Shard

REMEMBERED = 256
"""Batches that were dropped before they had come, of which an engine keeps the names."""


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
        self._aborted: deque[str] = deque(maxlen=REMEMBERED)

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
            self._aborted.append(call)

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


@dataclass(frozen=True)
class _Part:
    """The requests of a batch that one engine samples, and what the engine calls them."""

    requests: list[RolloutRequest]
    seat: Seat
    engine: Any
    call: str


@dataclass
class RayRollout:
    """The `Rollout` port over engine actors. Batches and adapters reach every engine in the order in which they were asked for.

    An engine that dies is started anew; what it was asked for is asked of another one, once. An engine that comes (back) is brought
    to what the others serve before it gets anything to do. With `split_evenly` every batch waits for all engines, so that who samples
    what does not depend on faults; otherwise those that stand take it. The run ends when fewer than `num_needed` can still come.

    The engines behind the first `num_needed` are ended when they have had nothing to do for `release_idle_s` seconds (None: never), and
    asked for again with the next batch. `vacate` then gives the place back that a seat is called after.
    """

    seats: Sequence[Seat]
    num_needed: int
    split_evenly: bool = False
    release_idle_s: float | None = None
    vacate: Callable[[str], None] = lambda what: None
    _in_order: asyncio.Lock = field(default_factory=asyncio.Lock)
    _in_step: dict[Seat, Any] = field(default_factory=dict)
    _weights: tuple[int, Ref[Any] | None] = (BASE_VERSION, None)
    _adapters: Mapping[int, Ref[Adapter]] = field(default_factory=dict)
    _in_force: int = BASE_VERSION

    def __post_init__(self) -> None:
        self._resting = Resting(self.release_idle_s, self._release)

    async def ready(self) -> None:
        """Begin to start every engine and wait for as many as are needed."""
        for seat in self.seats:
            seat.open()
        await asyncio.gather(*(seat.up() for seat in self.seats[: self.num_needed]))

    @property
    def engines(self) -> list[Any]:
        """The engines that stand."""
        return [seat.actor for seat in self.seats if seat.actor is not None]

    async def generate(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[Shard]:
        """Split the requests evenly over the engines, in order. Cancelling it makes the engines drop the batch."""
        parts: list[_Part] = []
        try:
            async with self._in_order:
                parts += split(requests, await self._standing())
                await asyncio.gather(*(self._begin(part, sampling) for part in parts))
            return list(await asyncio.gather(*(self._sampled(part, sampling) for part in parts)))
        except BaseException:
            for part in parts:
                _abort(part)
            raise

    async def on_each(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[Shard]:
        """All requests on every engine that stands, one after the other, for a comparison of engines; raises when one dies over it."""
        found = []
        for seat in await self._standing():
            part = _Part(list(requests), seat, seat.actor, uuid4().hex)
            await self._begin(part, sampling)
            found.append(await self._collected(part))
        return found

    async def load(self, adapters: Mapping[int, Ref[Adapter]], in_force: int) -> None:
        """Hand the same references to every engine."""
        async with self._in_order:
            self._adapters, self._in_force = dict(adapters), in_force
            await asyncio.gather(*(self._tell(seat, seat.actor, self._load) for seat in self._current()))

    async def reload(self, version: int, weights: Ref[Any] | None) -> None:
        """Hand the same references to every engine."""
        async with self._in_order:
            self._weights, self._adapters, self._in_force = (version, weights), {}, version
            await asyncio.gather(*(self._tell(seat, seat.actor, self._reload) for seat in self._current()))

    async def close(self) -> None:
        """Let every engine clean up behind itself; none is started any more."""
        self._resting.close()
        await asyncio.gather(*(engine.close.remote() for engine in self.engines), return_exceptions=True)

    def _current(self) -> list[Seat]:
        """The engines that serve what was asked for last; the others catch up when they are needed."""
        return [seat for seat in self.seats if seat.actor is not None and self._in_step.get(seat) is seat.actor]

    async def _standing(self) -> list[Seat]:
        """The engines to give a batch to, in step with each other: all of them, or those that stand and at least one."""
        while True:
            failed = [seat.failure for seat in self.seats if seat.failure is not None]
            if failed and len(self.seats) - len(failed) < self.num_needed:
                raise failed[0]
            for seat in self.seats:
                seat.open()
            if self.split_evenly:
                await asyncio.gather(*(seat.up() for seat in self.seats))
            elif not self.engines:
                await first_up(self.seats)
            behind = [seat for seat in self.seats if seat.actor is not None and self._in_step.get(seat) is not seat.actor]
            await asyncio.gather(*(self._catch_up(seat) for seat in behind))
            current = self._current()
            if len(current) == len(self.seats) or (current and not self.split_evenly):
                return current

    async def _catch_up(self, seat: Seat) -> None:
        """Bring an engine that has just come to what the others serve."""
        engine = seat.actor
        if self._weights[1] is not None and not await self._tell(seat, engine, self._reload):
            return
        if self._adapters and not await self._tell(seat, engine, self._load):
            return
        self._in_step[seat] = engine

    async def _tell(self, seat: Seat, engine: Any, ask: Callable[[Any], Any]) -> bool:
        """Whether the engine did what it was asked; one that died over it will catch up when it is back."""
        try:
            await answer(ask(engine), seat.what)
        except ActorLostError as error:
            seat.lost(engine, str(error))
            return False
        return True

    def _load(self, engine: Any) -> Any:
        return engine.load.remote(list(self._adapters), self._in_force, *(ref.value for ref in self._adapters.values()))

    def _reload(self, engine: Any) -> Any:
        version, weights = self._weights
        return engine.reload.remote(version, weights.value if weights else None)

    async def _begin(self, part: _Part, sampling: Sampling) -> None:
        with self._resting.work(part.seat):
            await self._tell(part.seat, part.engine, lambda engine: engine.begin.remote(part.call, part.requests, sampling))

    async def _sampled(self, part: _Part, sampling: Sampling) -> Shard:
        """The part's completions, from another engine when this one dies over it; a second loss is the caller's."""
        try:
            return await self._collected(part)
        except ActorLostError:
            pass
        async with self._in_order:
            standing = await self._standing()
            seat = part.seat if self.split_evenly else min(standing, key=lambda seat: seat is part.seat)
            again = _Part([self._servable(request) for request in part.requests], seat, seat.actor, uuid4().hex)
            await self._begin(again, sampling)
        try:
            return await self._collected(again)
        except BaseException:
            _abort(again)
            raise

    async def _collected(self, part: _Part) -> Shard:
        if part.seat.actor is not part.engine:
            raise ActorLostError(f"The actor for {part.seat.what} was lost before it had begun. {part.seat.reason}")
        groups, sampled = part.engine.collect.options(num_returns=2).remote(part.call)
        try:
            with self._resting.work(part.seat):
                found: Sampled = await answer(sampled, part.seat.what)
        except ActorLostError as error:
            part.seat.lost(part.engine, str(error))
            raise
        part.seat.worked()
        return Shard(Ref(groups), tuple(found.sizes), restarts=found.restarts)

    def _release(self, seat: Seat) -> None:
        """End an engine that others can do without."""
        if seat in self.seats[self.num_needed :] and len(self.engines) > self.num_needed:
            seat.rest(f"nothing to do for {self.release_idle_s:g} s (rollout.release_idle_s)")
            self.vacate(seat.what)

    def _servable(self, request: RolloutRequest) -> RolloutRequest:
        """The request as engines can take it now: an adapter that was let go of meanwhile is replaced by the one in force."""
        known = request.version in self._adapters or request.version == self._weights[0]
        return request if known else replace(request, version=self._in_force)


def split(requests: Sequence[RolloutRequest], seats: Sequence[Seat]) -> list[_Part]:
    """Runs of requests of equal length, one for each engine; fewer where there are fewer requests."""
    call = uuid4().hex
    bounds = [round(i * len(requests) / len(seats)) for i in range(len(seats) + 1)]
    return [_Part(list(requests[a:b]), seat, seat.actor, call) for seat, (a, b) in zip(seats, pairwise(bounds), strict=True) if a < b]


def _abort(part: _Part) -> None:
    if part.seat.actor is part.engine:
        part.engine.abort.remote(part.call)


EngineRemote = ray.remote(EngineActor)
