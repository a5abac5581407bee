"""The claim of a process that deletes objects of a run, so that a commit in another process finds its own again.

Whoever deletes says so first and reads the manifests afterwards. Whoever commits writes its manifest first and looks for such a claim
afterwards. So either the manifest is seen and what it names is spared, or the claim is seen, and the commit waits for its end and puts
back what is missing.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from next_ray.store import processes
from next_ray.store.backend import Versioned
from next_ray.store.faults import ConflictError, MissingObjectError
from next_ray.store.layout import DELETING
from next_ray.store.storage import Storage

TERM_S = 60.0
"""A claim that was not renewed for so long is of a process that died; one that was suspended finds it gone and stops."""
RENEW_S = 10.0
POLL_S = 0.1


class Overtaken(Exception):
    """The claim is another's by now."""


@contextmanager
def deleting(storage: Storage, run: str) -> Iterator[Callable[[str], None] | None]:
    """Claim the deletions of a run for the block; yields what deletes a path, or None when another process is at it.

    The block ends quietly where another process has taken the claim over.
    """
    path = f"{run}/{DELETING}"
    etag = _claim(storage, path)
    if etag is None:
        yield None
        return
    renewed = time.monotonic()

    def delete(target: str) -> None:
        nonlocal etag, renewed
        if time.monotonic() - renewed > RENEW_S:
            try:
                etag = storage.replace_if(path, _content(), str(etag))
            except ConflictError:
                raise Overtaken from None
            renewed = time.monotonic()
        storage.delete(target)

    with suppress(Overtaken):
        yield delete
        storage.delete(path)


def wait_for_deletions(storage: Storage, run: str) -> None:
    """Wait while another process deletes objects of the run, for as long as its claim lasts."""
    path = f"{run}/{DELETING}"
    while True:
        try:
            found = storage.read_versioned(path)
        except MissingObjectError:
            return
        if _is_free(found):
            return
        time.sleep(POLL_S)


def _claim(storage: Storage, path: str) -> str | None:
    """Take the claim; its version, or None when it is another's."""
    try:
        return storage.create_exclusive(path, _content())
    except ConflictError:
        pass
    try:
        found = storage.read_versioned(path)
        return storage.replace_if(path, _content(), found.etag) if _is_free(found) else None
    except (ConflictError, MissingObjectError):
        return None


def _content() -> bytes:
    pid = os.getpid()
    claim = {"token": uuid.uuid4().hex, "machine": processes.machine(), "pid": pid, "process": processes.started(pid)}
    return (json.dumps(claim, sort_keys=True) + "\n").encode()


def _is_free(found: Versioned) -> bool:
    """Whether a claim's time is over, or its process is dead, or this one: a process deletes one thing after the other."""
    if found.age_s > TERM_S:
        return True
    try:
        claim: Any = json.loads(found.data)
        where, pid, start = str(claim["machine"]), int(claim["pid"]), str(claim["process"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # of another version, or damaged: its time will be over
    is_ours = bool(where) and (where, pid, start) == (processes.machine(), os.getpid(), processes.started(os.getpid()))
    return is_ours or processes.is_dead(where, pid, start)
