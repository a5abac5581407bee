"""A seat keeps one actor: it starts it, starts it anew when it dies, and gives up when that happens too often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import ray

from next_ray.actors.cluster import result
from next_ray.config import RecoverySection
from next_ray.errors import ActorLostError, ObjectGoneError
from next_ray.types import Fault, FaultEvent

LONGEST_WAIT_S = 60.0

Start = Callable[[], Awaitable[Any]]
Note = Callable[[Fault], None]


def backoff_s(failures: int, first_s: float) -> float:
    """The wait before a restart, seconds: none after the first failure, then `first_s`, doubled each time up to a minute."""
    return 0.0 if failures <= 1 else min(LONGEST_WAIT_S, first_s * 2.0 ** (failures - 2))


class Seat:
    """The place of one actor of a run, called `what` in messages.

    The actor is started by `start`, which returns a handle once it can be used, and may wait for a place as long as it likes.
    Failures count in a row: `worked` says that the actor was of use, and forgives them. `reason` is why it was lost last. With
    `is_late` the others do not wait for it when the run starts.
    """

    def __init__(
        self,
        what: str,
        start: Start,
        recovery: RecoverySection,
        note: Note,
        is_late: bool = False,
        end: Callable[[Any], None] | None = None,
    ) -> None:
        self.what = what
        self._end = end or kill
        self.actor: Any = None
        self.reason = ""
        self._is_late = is_late
        self._start, self._recovery, self._note = start, recovery, note
        self._failures = 0
        self._lost_at: float | None = None
        self._coming: asyncio.Task[Any] | None = None
        self._leaving: list[Any] = []

    def open(self) -> None:
        """Begin to start the actor, if it is neither there nor on its way."""
        if self.actor is None and self._coming is None:
            self._coming = asyncio.create_task(self._bring_up(), name=f"start of {self.what}")

    async def up(self) -> Any:
        """The actor, waited for; raises why it does not come: `ActorLostError` when it was started too often, or what `start` raised."""
        while self.actor is None:
            self.open()
            coming = self._coming
            assert coming is not None
            try:
                await asyncio.shield(coming)
            finally:
                if coming.done() and not coming.cancelled() and coming.exception() is not None and self._coming is coming:
                    self._coming = None
        return self.actor

    @property
    def failure(self) -> BaseException | None:
        """Why the actor will not come, as far as that is known."""
        coming = self._coming
        return coming.exception() if coming is not None and coming.done() and not coming.cancelled() else None

    def lost(self, actor: Any, reason: str) -> None:
        """The actor died or cannot be trusted any more: it is killed and another one begins to start. Repeating it is harmless."""
        if actor is None or actor is not self.actor:
            return
        self._failures += 1
        self._end(actor)
        self._replace(reason)

    def leave(self, reason: str) -> None:
        """The actor may finish what it is doing, but another one begins to start and gets what comes next."""
        if self.actor is not None:
            self._leaving.append(self.actor)
            self._replace(reason)

    def rest(self, reason: str) -> None:
        """End the actor, whom nobody needs at present; `open` and `up` start another one."""
        if self.actor is not None:
            self._end(self.actor)
            self.actor, self.reason, self._is_late = None, reason, True
            self._note(Fault(self.what, FaultEvent.LEAVES, reason))

    def _replace(self, reason: str) -> None:
        self.actor, self.reason, self._lost_at = None, reason, time.monotonic()
        self._note(Fault(self.what, FaultEvent.LOST, reason))
        self.open()

    def worked(self) -> None:
        """The actor did what it is there for: what went wrong before does not count any more."""
        self._failures = 0

    async def close(self) -> None:
        """Start nothing any more and end the actor."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
        for actor in (*self._leaving, self.actor):
            if actor is not None:
                self._end(actor)

    async def _bring_up(self) -> Any:
        """Try until the actor is there; the failures of the attempts count with those of the actors before."""
        while True:
            if self._failures > self._recovery.actor_restarts:
                raise ActorLostError(
                    f"The actor for {self.what} failed {self._failures} times in a row (recovery.actor_restarts="
                    f"{self._recovery.actor_restarts}), at last: {self.reason} More is in infrastructure.log and in Ray's logs."
                )
            await asyncio.sleep(backoff_s(self._failures, self._recovery.backoff_s))
            try:
                actor = await self._start()
                break
            except ActorLostError as error:
                self._failures += 1
                self._lost_at, self.reason = self._lost_at or time.monotonic(), str(error)
                self._note(Fault(self.what, FaultEvent.LOST, str(error)))
        self.actor, self._coming = actor, None
        if self._lost_at is not None:
            self._note(Fault(self.what, FaultEvent.BACK, "started anew", time.monotonic() - self._lost_at))
            self._lost_at = None
        elif self._is_late:
            self._note(Fault(self.what, FaultEvent.JOINS, "the cluster has room for it now"))
        return actor


async def asked(seat: Seat, ask: Callable[[Any], Sequence[Any]]) -> tuple[Sequence[Any], Any]:
    """`answered`, by what the actor is there for: it forgives its seat's failures."""
    found = await answered(seat, ask)
    seat.worked()
    return found


async def answered(seat: Seat, ask: Callable[[Any], Sequence[Any]]) -> tuple[Sequence[Any], Any]:
    """Ask the actor of a seat; when it dies over it the next one is asked, until the seat gives up. What is asked bears repetition.

    `ask` makes the call and returns its references, the last of which is waited for; the result is all references and its value.
    """
    while True:
        actor = await seat.up()
        refs = ask(actor)
        try:
            return refs, await result(refs[-1], seat.what)
        except ObjectGoneError:
            raise
        except ActorLostError as error:
            seat.lost(actor, str(error))


async def first_up(seats: Sequence[Seat]) -> None:
    """Wait until the actor of one of the seats is there; raises when none comes."""
    tasks = [asyncio.ensure_future(seat.up()) for seat in seats]
    try:
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() is None for task in done):
                return
        raise next(error for task in tasks if (error := task.exception()) is not None)
    finally:
        for task in tasks:
            task.cancel()


def kill(actor: Any) -> None:
    """End an actor at once; one that is dead, or was never placed, is no error."""
    ray.kill(actor)
