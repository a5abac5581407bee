"""A process that makes a checkpoint as a driver does, and kills itself with SIGKILL at a given point on the way.

Points lie before each operation on the storage, and on a disk before each call of the operating system, a half-written file included:
what happens after one is what happens before the next. `rehearse` counts them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from next_ray.store import CheckpointStore, Lease, Storage
from next_ray.store import local as local_module
from next_ray.store.tables import encode_rows
from next_ray.types import CheckpointKind
from tests.store.samples import FINGERPRINT, make_state

CALLS = ("fsync", "replace", "unlink", "open", "makedirs", "stat", "close")
"""What the disk's backend asks of the operating system."""


class Points:
    """Counts the points of a way; at number `at` the process dies."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.seen = at, 0

    def pass_one(self) -> None:
        number, self.seen = self.seen, self.seen + 1
        if number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingBackend:
    """A real backend with a point before every operation."""

    def __init__(self, backend: Any, points: Points) -> None:
        self._backend, self._points = backend, points

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._backend, name)
        if name == "close":
            return operation

        def dying(*arguments: Any) -> Any:
            self._points.pass_one()
            return operation(*arguments)

        return dying


class DyingStorage(Storage):
    """A storage with a point before every operation."""

    points: Points

    def _connect(self) -> Any:
        return DyingBackend(super()._connect(), self.points)

    def with_budget(self, budget_s: float, quick: bool = False) -> Storage:
        other = super().with_budget(budget_s, quick)
        assert isinstance(other, DyingStorage)
        other.points = self.points
        return other


class DyingSystem:
    """`os` with a point before every call that the disk's backend makes."""

    def __init__(self, points: Points) -> None:
        self._points = points

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def dying(*arguments: Any, **more: Any) -> Any:
            self._points.pass_one()
            return real(*arguments, **more)

        return dying


def dying_open(points: Points) -> Callable[..., Any]:
    """`open` whose files have a point when half of what is written has reached the disk."""

    def opened(*arguments: Any, **more: Any) -> Any:
        file = open(*arguments, **more)  # noqa: SIM115
        write = file.write

        def write_in_halves(data: bytes) -> int:
            write(data[: len(data) // 2])
            file.flush()
            points.pass_one()
            return write(data[len(data) // 2 :])

        file.write = write_in_halves
        return file

    return opened


def prepare(store: CheckpointStore) -> None:
    """What is there before: two checkpoints with their rows and records."""
    for step in (1, 2):
        checkpoint(store, step, None)


def checkpoint(store: CheckpointStore, step: int, token: str | None) -> None:
    """What is written around a checkpoint, in the driver's order."""
    store.write_table("metrics", step, step, [{"step": step, "loss": 0.5}])
    store.commit(step, CheckpointKind.TRAINED, make_state(step), [], FINGERPRINT, {"step": step}, token)
    store.retain(2)
    store.put_json(f"evaluations/{step}", {"accuracy": 0.5})


def drive(storage: Storage, run: str) -> None:
    """The way: claim the run, clean up, make checkpoint 3, give the run back."""
    store = CheckpointStore(storage, run)
    store.claim_identity({"model": "tiny"})
    with Lease(storage, run, 30) as lease:
        store.sweep(3600)
        checkpoint(store, 3, lease.token)
        lease.renew()


def drive_and_end(storage: Storage, run: str, points: Points) -> None:
    """The way, and a point at its end."""
    drive(storage, run)
    points.pass_one()


def _drive(url: str, endpoint: str | None, run: str, points: Points, system_calls: bool) -> None:
    if system_calls:
        local_module.os = DyingSystem(points)  # type: ignore[assignment]
        local_module.open = dying_open(points)  # type: ignore[attr-defined]
        drive_and_end(Storage(url, endpoint), run, points)
        return
    storage = DyingStorage(url, endpoint)
    storage.points = points
    drive_and_end(storage, run, points)


def serve() -> None:
    """For each line `[url, endpoint, run, at, system calls]` a child that drives: its pid, then how it ended and the points it passed.

    The children are forked here, where everything is imported and nothing was opened yet.
    """
    import botocore.session  # noqa: F401

    import next_ray.store.s3  # noqa: F401

    encode_rows("warm_up", [{"step": 1}])  # pyarrow looks for pandas
    for line in sys.stdin:
        url, endpoint, run, at, system_calls = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                points = Points(at)
                _drive(url, endpoint, run, points, system_calls)
                os.write(writer, str(points.seen).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), int(os.read(reader, 20) or 0)]), flush=True)
        os.close(reader)


if __name__ == "__main__":
    serve()
