"""What the driver waits for at the moment: every answer of an actor, since when and to which call."""

from __future__ import annotations

import linecache
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

CALL = re.compile(r"\.(\w+)(?:\.options\([^()]*\))?\.remote\b")
"""A remote call in a line of source: its method."""


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
    def call(self) -> str:
        """Which method was called where in the driver, ` begin (engines.py:112)`, as Ray noted it; empty when it notes no places."""
        return called(self.ref.call_site()) if isinstance(self.ref, ray.ObjectRef) else ""


_waits: dict[int, Wait] = {}
os.environ.setdefault("RAY_record_ref_creation_sites", "1")  # Ray reads it when it is initialised, in this driver and in its actors


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


def called(call_site: str) -> str:
    """What `Wait.call` says, from Ray's note: `(actor call) | FILE:FUNCTION:LINE | FILE:FUNCTION:LINE ...`, the innermost first."""
    places = [place.strip().rsplit(":", 2) for place in call_site.split("|") if place.count(":") >= 2]
    if not places:
        return ""
    file, _, line = places[0]
    methods = set(CALL.findall(linecache.getline(file, int(line)) if line.isdecimal() else ""))
    return f"{' ' + methods.pop() if len(methods) == 1 else ''} ({Path(file).name}:{line})"
