"""A driver is killed by SIGKILL at every operation of a checkpoint in turn, on a disk also at every call of the operating system.

Whatever the point: what was committed is whole, the new checkpoint is there or not, the run can be claimed at once, the same work can
be done again, and the sweep leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from next_ray.store import CheckpointStore, Storage
from tests.s3_server import S3Server
from tests.store import dying
from tests.store.proxy import KILL, PASS, faulty_proxy
from tests.store.samples import assert_same_state, make_state
from tests.store.test_torn_writes import readable

ROOT = Path(__file__).parents[2]
BEFORE = ["00000001-trained", "00000002-trained"]
AFTER = ["00000002-trained", "00000003-trained"]


@pytest.fixture
def file_storage(tmp_path: Path) -> Iterator[Storage]:
    """In memory, where flushing costs nothing: a thousand writes are made here."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="next_ray-test-", dir=memory) as folder:
        yield Storage(f"file://{folder}")


@dataclass
class Children:
    """Drivers in processes of their own, one after the other."""

    server: subprocess.Popen[str]

    def start(self, storage: Storage, run: str, at: int, system_calls: bool = False) -> int:
        """Start one that dies at point `at` (-1: never); returns its pid."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps([storage.url, storage.endpoint_url, run, at, system_calls]) + "\n")
        self.server.stdin.flush()
        return int(self._line())

    def end(self) -> tuple[int, int]:
        """How it ended, as `subprocess` says it, and the points it passed."""
        code, points = json.loads(self._line())
        return code, points

    def _line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()


@pytest.fixture
def children(request: pytest.FixtureRequest) -> Iterator[Children]:
    if "s3_storage" in request.fixturenames or "[s3" in request.node.name:
        request.getfixturevalue("s3")  # whose credentials the children inherit
    command = [sys.executable, "-m", "tests.store.dying"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield Children(server)
        server.kill()


def count_points(children: Children, storage: Storage, system_calls: bool) -> int:
    dying.prepare(CheckpointStore(storage, "rehearsal"))
    children.start(storage, "rehearsal", -1, system_calls)
    code, points = children.end()
    assert code == 0
    return points


def killed(children: Children, storage: Storage, run: str, at: int, system_calls: bool) -> None:
    children.start(storage, run, at, system_calls)
    code, _ = children.end()
    assert code == -signal.SIGKILL, f"point {at}: ended with {code}"


def examine(storage: Storage, run: str) -> list[str]:
    """The invariants; returns the checkpoints that were visible right after the death."""
    store = CheckpointStore(storage, run)
    found = readable(store)
    assert found in (BEFORE, sorted({*BEFORE, *AFTER}), AFTER), found
    for checkpoint in found:
        assert_same_state(store.load_state(store.manifest(checkpoint)), make_state(int(checkpoint[:8])))
    newest = int(found[-1][:8])
    assert [row["step"] for row in store.read_table("metrics")] == list(range(1, newest + 1))
    dying.drive(storage, run)  # takes the dead driver's lease at once
    assert readable(store) == AFTER
    assert store.get_json("evaluations/3") == {"accuracy": 0.5}
    store.sweep(0)
    assert readable(store) == AFTER and len(storage.list(f"{run}/objects")) == 6
    assert not storage.exists(f"{run}/deleting.json")
    return found


@pytest.mark.slow
def test_at_every_operation(storage: Storage, children: Children) -> None:
    count = count_points(children, storage, system_calls=False)
    assert count > 25
    seen = set()
    for at in range(count):
        dying.prepare(CheckpointStore(storage, f"run-{at}"))
        killed(children, storage, f"run-{at}", at, system_calls=False)
        seen.add(tuple(examine(storage, f"run-{at}")))
    assert seen == {tuple(BEFORE), tuple(sorted({*BEFORE, *AFTER})), tuple(AFTER)}, "before, between and after are all met"


@pytest.mark.slow
def test_at_every_call_of_the_operating_system(file_storage: Storage, children: Children) -> None:
    count = count_points(children, file_storage, system_calls=True)
    assert count > 100
    for at in range(count):
        dying.prepare(CheckpointStore(file_storage, f"run-{at}"))
        killed(children, file_storage, f"run-{at}", at, system_calls=True)
        examine(file_storage, f"run-{at}")
        assert not list((Path(file_storage.root) / f"run-{at}").rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.s3
def test_in_the_middle_of_every_upload(s3: S3Server, s3_storage: Storage, children: Children) -> None:
    with faulty_proxy(s3.endpoint_url) as proxy, Storage(s3_storage.url, proxy.endpoint_url) as proxied:
        dying.prepare(CheckpointStore(s3_storage, "rehearsal"))
        children.start(proxied, "rehearsal", -1)
        assert children.end()[0] == 0
        uploads = proxy.seen.count("PUT")
        assert uploads >= 10, "identity, lease, rows, three objects, manifest, a claim to delete, record, two of the lease"
        for number in range(uploads):
            run = f"run-{number}"
            dying.prepare(CheckpointStore(s3_storage, run))
            proxy.kill = lambda: os.kill(pid, signal.SIGKILL)  # noqa: B023  (of this round)
            proxy.schedule([PASS] * number + [KILL], "PUT")
            pid = children.start(proxied, run, -1)
            code, _ = children.end()
            proxy.schedule([])
            assert code == -signal.SIGKILL
            examine(s3_storage, run)
