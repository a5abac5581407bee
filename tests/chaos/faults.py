"""What can be done to a run from outside, each fault by its name; none of them is announced to it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress

import psutil

from tests.processes import family
from tests.store.proxy import CUT, DROP, LOSE, UNAVAILABLE, FaultyProxy

ACTORS = {
    "engine": "EngineActor",
    "learner": "LearnerActor",
    "verifier": "VerifierActor",
    "delta worker": "DeltaActor",
    "predictor": "PredictorActor",
    "archive": "ArchiveActor",
}
"""Actors by what they are called here, and the name in their process's title."""
STORE = {"store unavailable": UNAVAILABLE, "store connection dropped": DROP, "store answer lost": LOSE, "store answer cut": CUT}
DRIVER = {"driver killed": signal.SIGKILL, "driver terminated": signal.SIGTERM, "driver interrupted": signal.SIGINT}
JUDGE = "verifier process"
HANGS = {"engine hangs": "engine", "learner hangs": "learner", "verifier hangs": "verifier"}
"""Actors whose process is suspended: it is up to the run's watchdog to find them."""


class NothingThereError(Exception):
    """The fault has no victim at the moment."""


def kinds(has_proxy: bool) -> list[str]:
    """All faults; those of the store need a proxy before it."""
    return [*ACTORS, JUDGE, *HANGS, *DRIVER, *(STORE if has_proxy else ())]


def inject(kind: str, driver: int, proxy: FaultyProxy | None, draw: random.Random) -> str:
    """Do it now; returns what was hit. Raises `NothingThereError` when there is nothing to hit."""
    if kind in STORE:
        assert proxy is not None
        count = draw.randint(1, 3)
        proxy.plan.extend([STORE[kind]] * count)
        return f"the next {count} requests to the store"
    if kind in DRIVER:
        os.kill(driver, DRIVER[kind])
        return f"process {driver}"
    found = judges(driver) if kind == JUDGE else actors(driver, ACTORS[HANGS.get(kind, kind)])
    victims = sorted(found, key=lambda process: process.pid)
    if not victims:
        raise NothingThereError(kind)
    victim = draw.choice(victims)
    with suppress(psutil.NoSuchProcess):
        victim.send_signal(signal.SIGSTOP if kind in HANGS else signal.SIGKILL)
    return f"process {victim.pid}"


def actors(driver: int, name: str) -> Iterator[psutil.Process]:
    """The processes of a driver's Ray actors of a class."""
    with suppress(psutil.NoSuchProcess):
        for process in family(driver):
            with suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith(f"ray::{name}"):
                    yield process


def judges(driver: int) -> Iterator[psutil.Process]:
    """The processes in which verifiers run."""
    for actor in actors(driver, ACTORS["verifier"]):
        with suppress(psutil.Error):
            yield from family(actor.pid)
