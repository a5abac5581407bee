"""The claim of one driver on one run: a small object that is taken and renewed by conditional writes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter, ValidationError

from next_ray.errors import LeaseError, StoreError
from next_ray.store import layout, processes
from next_ray.store.backend import Versioned
from next_ray.store.faults import ConflictError, MissingObjectError
from next_ray.store.storage import Storage

FORMAT = "next-ray-lease/1"
POLL_S = 1.0
LOST_REMEDY = "This driver stops without writing; start it again when the other one has ended."


@dataclass(frozen=True)
class Holder:
    """What the lease object says. `machine` and `process` identify the process beyond reuse of its pid."""

    format: str
    token: str
    held: bool
    renewals: int
    lease_s: float
    host: str
    pid: int
    machine: str
    process: str
    since: str

    def describe(self) -> str:
        """Who it is, for messages."""
        return f"process {self.pid} on {self.host} (since {self.since})"


_HOLDER = TypeAdapter(Holder)


class Lease:
    """A driver's exclusive right to write a run, valid for `lease_s` after each renewal. The driver calls `renew` well before.

    Age is measured by the storage's clock, so clocks of machines need not agree. A holder whose process is known to be dead
    (same machine, no such process) is replaced at once, any other one after its time.
    """

    def __init__(self, storage: Storage, run: str, lease_s: float = 60.0) -> None:
        self._storage = storage.with_budget(min(storage.budget_s, lease_s / 3))
        self._run = layout.check_run(run)
        self._path = f"{run}/{layout.LEASE}"
        self._lease_s = lease_s
        self._mine: Holder | None = None
        self._etag = ""
        self._turn = threading.Lock()

    @property
    def token(self) -> str | None:
        """The fence for `CheckpointStore.commit`; None while not held."""
        return self._mine.token if self._mine else None

    def acquire(self, wait_s: float = 0.0) -> None:
        """Take the lease, waiting up to `wait_s` for another holder's time to run out.

        Raises:
            LeaseError: somebody holds it; says who, and for how long still.
        """
        deadline = time.monotonic() + wait_s
        while self._mine is None:
            try:
                self._try_acquire()
            except LeaseError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_S)

    def renew(self) -> None:
        """Prolong the lease.

        Raises:
            LeaseError: it is not held any more; the driver must stop writing.
            StoreError: the storage does not answer; the lease may still be held, so try again until `lease_s` are over.
        """
        with self._turn:
            if self._mine is None:
                raise LeaseError(f"The lease of {self._where()} is not held by this driver.")
            renewed = replace(self._mine, renewals=self._mine.renewals + 1)
            try:
                self._etag = self._storage.replace_if(self._path, _encode(renewed), self._etag)
            except ConflictError:
                self._mine = None
                raise LeaseError(f"The lease of {self._where()} was lost: {self._successor()}. {LOST_REMEDY}") from None
            self._mine = renewed

    def release(self) -> None:
        """Give the lease up, if it is still held; may be called twice, and while another thread renews."""
        with self._turn:
            mine, self._mine = self._mine, None
            if mine is None:
                return
            released = replace(mine, held=False, renewals=mine.renewals + 1)
            with suppress(ConflictError):
                self._storage.replace_if(self._path, _encode(released), self._etag)
            self._storage.close()

    def close(self) -> None:
        """Release."""
        self.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _try_acquire(self) -> None:
        wanted = self._new_holder()
        try:
            found = self._storage.read_versioned(self._path)
        except MissingObjectError:
            found = None
        try:
            if found is None:
                self._etag = self._storage.create_exclusive(self._path, _encode(wanted))
            else:
                self._refuse_living(found)
                self._etag = self._storage.replace_if(self._path, _encode(wanted), found.etag)
        except ConflictError:
            holder = read_holder(self._storage, self._run)
            who = holder.describe() if holder else "another driver"
            raise LeaseError(
                f"The run {self._where()} was taken by {who} just now. Wait for its end, or choose another run.name."
            ) from None
        self._mine = wanted

    def _refuse_living(self, found: Versioned) -> None:
        holder = _decode(found.data, self._where())
        if _is_living(holder, found.age_s):
            left_s = holder.lease_s - found.age_s
            raise LeaseError(
                f"The run {self._where()} is being written by {holder.describe()}. Stop that driver, or wait {left_s:.0f} s if it is "
                "already gone, or choose another run.name."
            )

    def _successor(self) -> str:
        holder = read_holder(self._storage, self._run)
        return f"{holder.describe()} holds it now" if holder and holder.held else "it was released or removed"

    def _new_holder(self) -> Holder:
        return Holder(
            format=FORMAT,
            token=uuid.uuid4().hex,
            held=True,
            renewals=0,
            lease_s=self._lease_s,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=processes.machine(),
            process=processes.started(os.getpid()),
            since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def _where(self) -> str:
        return f"{self._storage.url}/{self._run}"


def read_holder(storage: Storage, run: str) -> Holder | None:
    """What the lease object of a run says now, expired or not; None when there is none."""
    found = _read(storage, run)
    return found[0] if found else None


def read_writer(storage: Storage, run: str) -> Holder | None:
    """Who writes the run at the moment; None when nobody does, or its time is over, or its process is known to be dead."""
    found = _read(storage, run)
    return found[0] if found and _is_living(*found) else None


def _read(storage: Storage, run: str) -> tuple[Holder, float] | None:
    """The lease object and its age, seconds."""
    try:
        found = storage.read_versioned(f"{run}/{layout.LEASE}")
    except MissingObjectError:
        return None
    return _decode(found.data, f"{storage.url}/{run}"), found.age_s


def _is_living(holder: Holder, age_s: float) -> bool:
    return holder.held and age_s < holder.lease_s and not processes.is_dead(holder.machine, holder.pid, holder.process)


def _encode(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), sort_keys=True, indent=2) + "\n").encode("ascii")


def _decode(data: bytes, where: str) -> Holder:
    try:
        holder = _HOLDER.validate_json(data, strict=True)
    except ValidationError:
        raise StoreError(f"{where}/{layout.LEASE} is not a lease of this version. Delete it when no driver writes the run.") from None
    if holder.format != FORMAT:
        raise StoreError(f"{where}/{layout.LEASE} was written by another version of next_ray. Delete it when no driver writes the run.")
    return holder
