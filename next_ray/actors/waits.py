"""What the driver waits for at the moment: every answer of an actor, since when and to which call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray


@dataclass(eq=False)
class Wait:
    """An answer that is waited for: whose in words, the reference to it, and since when (monotonic seconds)."""

    what: str
    ref: Any
    since: float = field(default_factory=time.monotonic)

    @property
    def actor_id(self) -> str | None:
        """Of the actor that was called, in hex; a reference carries it."""
        if not isinstance(self.ref, ray.ObjectRef):
            return None
        return self.ref.task_id().actor_id().hex()

    @property
    def call_site(self) -> str:
        """Where the driver made the call, as Ray noted it; empty when it notes none."""
        return _last_place(self.ref.call_site()) if isinstance(self.ref, ray.ObjectRef) else ""


_waits: dict[int, Wait] = {}


@contextmanager
def waiting(ref: Any, what: str) -> Iterator[None]:
    """Note the wait for as long as the block lasts. One thread only: the event loop's."""
    wait = Wait(what, ref)
    _waits[id(wait)] = wait
    try:
        yield
    finally:
        del _waits[id(wait)]


def waits() -> list[Wait]:
    """All present waits, the longest first."""
    return list(_waits.values())


def overdue(limit_s: float) -> list[Wait]:
    """Those that have lasted longer."""
    now = time.monotonic()
    return [wait for wait in waits() if now - wait.since > limit_s]


def _last_place(call_site: str) -> str:
    return call_site
