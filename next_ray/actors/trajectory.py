"""Delta workers and the predictor: everything between a committed checkpoint and the candidates of a jump."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayTaskError

from next_ray.actors.cluster import result
from next_ray.actors.predictor import Findings, Seen
from next_ray.actors.seats import Seat, answered
from next_ray.config import ExtrapolationSection
from next_ray.errors import ActorLostError, ExtrapolationError, NextRayError
from next_ray.extrapolate.proposals import WINDOWED, candidate_name
from next_ray.ports import Archive
from next_ray.types import Adapter, Candidate, Proposal, Ref

MENDS = 10
"""How often a checkpoint is shown to everybody anew since somebody died, before that is the run's failure."""


@dataclass(frozen=True)
class _Observed:
    """A checkpoint of the trajectory as it was handed over, and where it is committed."""

    seen: Seen
    checkpoint_id: str


@dataclass
class RayTrajectory:
    """The `Trajectory` port: fans checkpoints out to the delta workers and their triplets into the predictor.

    When one of them dies it is started anew, and all of them are shown the committed checkpoints again; training does not wait for
    that unless a proposal is due. Without extrapolation there are no workers and no predictor, and the loop never asks. With `beside`
    all weights are trained, and candidates are adapters that go beside the last checkpoint's.

    `_fits` holds, by checkpoint, what the workers and then the predictor were asked for: references to the seconds it takes.
    """

    workers: Sequence[Seat]
    predictor: Seat | None
    config: ExtrapolationSection
    archive: Archive
    beside: bool = False
    _adapters: dict[int, Ref[Adapter]] = field(default_factory=dict)
    _observed: dict[int, _Observed] = field(default_factory=dict)
    _fits: dict[int, tuple[Sequence[Any], Any]] = field(default_factory=dict)
    _seconds: list[tuple[str, Any]] = field(default_factory=list)
    _totals: dict[str, float] = field(default_factory=lambda: {"delta": 0.0, "fit": 0.0})
    _mending: asyncio.Lock = field(default_factory=asyncio.Lock)
    _watches: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def seats(self) -> list[Seat]:
        """The places of all actors behind this port."""
        return [*self.workers, *([] if self.predictor is None else [self.predictor])]

    async def ready(self) -> None:
        """Start every actor."""
        await asyncio.gather(*(seat.up() for seat in self.seats))

    def observe(self, index: int, step: int, policy: Ref[Any], accuracy: float | None, checkpoint_id: str) -> None:
        """Start the work on a checkpoint; nothing is waited for."""
        if index in self._observed:
            return
        self._observed[index] = _Observed(Seen(index, step, accuracy), checkpoint_id)
        if not self._mending.locked() and all(seat.actor is not None for seat in self.seats):  # else it is shown after the others
            self._digest(index, policy)
        watch = asyncio.create_task(self._watch(index))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def propose(self, index: int) -> Proposal:
        """Wait for checkpoint `index` to be digested, then make the candidates of all methods and alphas."""
        if index not in self._observed:
            raise ExtrapolationError(f"Checkpoint {index} of the trajectory was never observed; observed: {sorted(self._observed)}.")
        started = time.perf_counter()
        await self._digested(index)
        waited = time.perf_counter() - started
        names = self.config.proposals
        head, refs = await self._proposed(names)
        candidates = tuple(
            Candidate(candidate_name(method, alpha), method, alpha, Ref(ref), error)
            for (method, alpha), ref, error in zip(names, refs, head.truncation, strict=True)
            if method not in head.abstained
        )
        stats = {"digest_wait_s": waited, **head.stats}
        return Proposal(candidates, head.backtest, head.evidence, head.abstained, stats)

    async def restart(self) -> None:
        """Forget the trajectory everywhere."""
        await self.background_s()
        async with self._mending:
            self._observed, self._adapters, self._fits = {}, {}, {}
            await self._forget()

    async def background_s(self) -> Mapping[str, float]:
        """Seconds of delta work and fitting, waited for to the last; what died with an actor is not counted."""
        pending, self._seconds = self._seconds, []
        for kind, ref in pending:
            with contextlib.suppress(ActorLostError):
                self._totals[kind] += await result(ref, "the trajectory")
        return dict(self._totals)

    def close(self) -> None:
        """Mend nothing any more."""
        for watch in self._watches:
            watch.cancel()

    def _digest(self, index: int, policy: Ref[Any]) -> None:
        """Hand a checkpoint to the workers, and what they make of it to the predictor."""
        assert self.predictor is not None
        step = self._observed[index].seen.step
        parts = [seat.actor.observe.options(num_returns=2).remote(index, step, policy.value) for seat in self.workers]
        fit = self.predictor.actor.observe.remote(*(triplets for triplets, _ in parts))
        self._seconds += [("delta", seconds) for _, seconds in parts] + [("fit", fit)]
        self._fits[index] = [seconds for _, seconds in parts], fit
        if self.beside:  # the workers hold what they still need
            return
        self._adapters[index] = policy
        if all(method in WINDOWED for method, _ in self.config.proposals):
            self._adapters = {i: ref for i, ref in self._adapters.items() if i >= index - self.config.horizon}

    async def _watch(self, index: int) -> None:
        """See to it that a checkpoint is digested; what cannot be mended here is met again when a proposal is due."""
        with contextlib.suppress(NextRayError, RayTaskError):
            await self._digested(index)

    async def _digested(self, index: int) -> None:
        """Wait until the predictor knows checkpoint `index`, mending what dies meanwhile; one that was forgotten meanwhile is none."""
        for attempt in range(MENDS + 1):
            work = self._fits.get(index)
            if work is not None:
                try:
                    for seat, seconds in zip(self.workers, work[0], strict=True):
                        await result(seconds, seat.what)  # the predictor waits for them, and who hangs shall be named
                    await result(work[1], "the predictor")
                except ActorLostError:
                    if attempt == MENDS:
                        raise
                else:
                    for seat in self.seats:
                        seat.worked()
                    return
            await self._mend(index, work)
            if index not in self._observed:
                return

    async def _mend(self, index: int, work: Any) -> None:
        """Start what is dead anew and show everybody the committed checkpoints again, unless somebody has done it meanwhile."""
        async with self._mending:
            if index not in self._observed or self._fits.get(index) is not work:
                return
            while not await self._shown_again():
                pass

    async def _shown_again(self) -> bool:
        """Whether everybody was shown the committed checkpoints from the first on; not when somebody was lost meanwhile."""
        self._fits, self._adapters = {}, {}
        await self._forget()
        actors = [seat.actor for seat in self.seats]
        while missing := sorted(self._observed.keys() - self._fits.keys()):  # more may come meanwhile
            for i in missing:
                policy = await self.archive.adapter(self._observed[i].checkpoint_id)
                if None in actors or [seat.actor for seat in self.seats] != actors:
                    return False
                self._digest(i, policy)
        return True

    async def _forget(self) -> None:
        """All actors there, and none of them knows anything."""
        await asyncio.gather(*(answered(seat, lambda actor: [actor.restart.remote()]) for seat in self.seats))

    async def _proposed(self, names: Sequence[tuple[str, float]]) -> tuple[Findings, Sequence[Any]]:
        """The predictor's findings and the references of its adapters; a predictor that dies over it is asked again."""
        predictor = self.predictor
        assert predictor is not None
        last = max(self._observed)
        for attempt in range(MENDS + 1):
            actor = await predictor.up()
            seen, adapters = [self._observed[i].seen for i in self._adapters], [ref.value for ref in self._adapters.values()]
            method = actor.propose_beside if self.beside else actor.propose
            arguments = [names] if self.beside else [names, seen, *adapters]
            head, *refs = method.options(num_returns=1 + len(names)).remote(*arguments)
            try:
                return await result(head, predictor.what), refs
            except ActorLostError as error:
                if attempt == MENDS:
                    raise
                predictor.lost(actor, str(error))
            await self._mend(last, self._fits.get(last))
            await self._digested(last)
        raise AssertionError("unreachable")
