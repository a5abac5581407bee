"""Servers that fail, hang, drip and garble; servers killed in the middle; credentials revoked; disks that are full.

Whatever happens: faults that pass are ridden out, others end in time with a paragraph, and what was committed stays whole.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from next_ray.errors import CorruptCheckpointError, StoreError
from next_ray.store import CheckpointStore, Lease, Storage
from next_ray.store import local as local_module
from tests.s3_server import S3Server, restartable_s3_server
from tests.store.proxy import (
    CUT,
    DENIED,
    DRIP,
    DROP,
    EXPIRED,
    GARBLE,
    GARBLE_UP,
    HANG,
    INTERNAL,
    LOSE,
    PASS,
    RESET,
    SHORTEN,
    SLOW_DOWN,
    TOO_MANY,
    FaultyProxy,
    faulty_proxy,
)
from tests.store.samples import assert_same_state, commit, make_state
from tests.store.test_torn_writes import readable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxied(s3: S3Server, s3_storage: Storage, proxy: FaultyProxy) -> Iterator[CheckpointStore]:
    """A run behind the proxy, and the same folder as `s3_storage` for looking behind it."""
    with Storage(s3_storage.url, proxy.endpoint_url, budget_s=30) as storage:
        yield CheckpointStore(storage, "run-1")


PASSING = [INTERNAL, TOO_MANY, SLOW_DOWN, DROP, RESET, LOSE, CUT]


@pytest.mark.s3
@pytest.mark.parametrize("fault", [*PASSING, GARBLE, SHORTEN])
def test_a_fault_at_every_request_of_a_checkpoint_is_ridden_out(proxied: CheckpointStore, proxy: FaultyProxy, fault: str) -> None:
    proxy.schedule([fault, PASS] * 200)
    commit(proxied, 1)
    assert len(proxy.seen) > 8, "every other request failed"
    latest = proxied.latest()
    assert latest is not None
    assert_same_state(proxied.load_state(latest), make_state(1))
    assert proxied.list_json() == []


@pytest.mark.s3
def test_uploads_that_arrive_damaged_are_sent_again(proxied: CheckpointStore, proxy: FaultyProxy) -> None:
    proxy.schedule([GARBLE_UP, PASS] * 20, "PUT")
    commit(proxied, 1)
    assert readable(proxied) == ["00000001-trained"]


@pytest.mark.s3
def test_downloads_that_arrive_damaged_are_read_again_and_lasting_damage_is_told(proxied: CheckpointStore, proxy: FaultyProxy) -> None:
    manifest = commit(proxied, 1)
    proxy.schedule([GARBLE, SHORTEN], "GET")
    assert_same_state(proxied.load_state(manifest), make_state(1))
    assert not proxy.plan
    proxy.schedule([GARBLE] * 100, "GET")
    with pytest.raises(CorruptCheckpointError, match=r"does not match its (sha256|checksum)"):
        proxied.load_state(manifest)
    assert len(proxy.plan) > 90, "a few times, not for ever"


@pytest.mark.s3
@pytest.mark.parametrize("fault", [HANG, DRIP])
def test_a_server_that_hangs_or_drips_is_given_up_in_time(proxied: CheckpointStore, proxy: FaultyProxy, fault: str) -> None:
    commit(proxied, 1)
    with proxied.storage.with_budget(3) as storage:
        store = CheckpointStore(storage, "run-1")
        proxy.schedule([fault] * 100)
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"no answer in time.*Gave up after 3 s"):
            store.manifests()
        assert time.monotonic() - started < 10
    proxy.schedule([])
    assert readable(proxied) == ["00000001-trained"]


@pytest.mark.s3
@pytest.mark.parametrize("fault", [EXPIRED, DENIED])
@pytest.mark.parametrize("good", range(0, 7, 2))
def test_credentials_revoked_in_the_middle_of_a_commit(
    proxied: CheckpointStore, proxy: FaultyProxy, s3_storage: Storage, fault: str, good: int
) -> None:
    commit(proxied, 1)
    proxy.schedule([PASS] * good + [fault] * 100)
    with pytest.raises(StoreError, match=r"rejects the credentials|access denied"):
        commit(proxied, 2)
    assert len(proxy.plan) >= 99, "it is not tried again"
    behind = CheckpointStore(s3_storage, "run-1")
    assert readable(behind) in (["00000001-trained"], ["00000001-trained", "00000002-trained"])
    proxy.schedule([])
    assert_same_state(proxied.load_state(commit(proxied, 2)), make_state(2))


@pytest.mark.s3
def test_a_lease_whose_server_hangs_is_not_waited_for_beyond_its_term(proxied: CheckpointStore, proxy: FaultyProxy) -> None:
    lease = Lease(proxied.storage, "run-1", 6)
    lease.acquire()
    proxy.schedule([HANG] * 100)
    started = time.monotonic()
    with pytest.raises(StoreError):
        lease.renew()
    assert time.monotonic() - started < 6
    proxy.schedule([])
    lease.release()


@pytest.mark.s3
def test_a_server_killed_and_started_again_while_checkpoints_are_written() -> None:
    """Every acknowledged commit is there afterwards, and the writer notices nothing but a delay."""
    with restartable_s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.credentials.items():
            patch.setenv(name, value)
        with Storage(f"{server.url}/x", server.endpoint_url, budget_s=120) as storage:
            store = CheckpointStore(storage, "run-1")
            acknowledged: list[int] = []
            problems: list[BaseException] = []

            def write() -> None:
                try:
                    for step in range(1, 13):
                        commit(store, step)
                        acknowledged.append(step)
                        time.sleep(0.1)
                except BaseException as error:
                    problems.append(error)

            writer = threading.Thread(target=write)
            writer.start()
            for _ in range(2):
                time.sleep(0.5)
                server.kill()
                time.sleep(0.3)
                server.start()
            writer.join(240)
            assert not writer.is_alive() and not problems, problems
            assert acknowledged == list(range(1, 13))
            assert readable(store) == [f"{step:08d}-trained" for step in acknowledged]


FULL_DISK = """
import subprocess, sys
from pathlib import Path
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], check=True)
from next_ray.errors import StoreError
from next_ray.store import CheckpointStore, Storage
from tests.store.samples import commit, make_state
from next_ray.types import CheckpointKind
(folder / "somebody's").write_bytes(bytes(20000))
store = CheckpointStore(Storage(f"file://{folder}"), "run-1")
step = 0
try:
    while step < 1000:
        store.commit(step + 1, CheckpointKind.TRAINED, make_state(step + 1, rank=256), [], "base", {})
        step += 1
except StoreError as error:
    print(error)
assert 1 <= step < 100, step
left = [str(path) for path in folder.rglob(".tmp-*")]
assert not left, left
assert [m.step for m in store.manifests()] == list(range(1, step + 1))
for manifest in store.manifests():
    store.verify(manifest)
(folder / "somebody's").unlink()  # as the message asks: a deletion writes down that it is under way
store.sweep(0)
store.retain(1)
store.commit(step + 1, CheckpointKind.TRAINED, make_state(step + 1, rank=256), [], "base", {})
print("room again")
"""


def test_a_full_disk_stops_the_run_with_a_word_and_nothing_is_lost(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this system mounts no file systems for users")
    command = ["unshare", "-rm", sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "The disk is full; free space or set store.url to another disk." in done.stdout, done.stderr
    assert done.stdout.endswith("room again\n"), done.stderr


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_refuses_at_any_call(file_storage: Storage, call: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one full file system does not show: quotas, errors that come with the flush."""
    store = CheckpointStore(file_storage, "run-1")
    commit(store, 1)
    for nth in range(4):
        with monkeypatch.context() as patch:
            seen: list[int] = []
            real = getattr(os, call)

            def refuse(*arguments: object, _real=real, _seen=seen, _nth=nth, **more: object) -> object:
                _seen.append(1)
                if len(_seen) > _nth:
                    raise OSError(number, os.strerror(number))
                return _real(*arguments, **more)

            patch.setattr(local_module.os, call, refuse)
            with pytest.raises(StoreError, match=os.strerror(number)):
                commit(store, 2)
        assert readable(store) in (["00000001-trained"], ["00000001-trained", "00000002-trained"])
        assert not list(Path(file_storage.root).rglob(".tmp-*"))
    assert_same_state(store.load_state(commit(store, 2)), make_state(2))


def test_a_file_server_that_restarts_is_waited_for(file_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    real, answers = os.replace, [errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY]

    def stale(source: str, target: str) -> None:
        if answers:
            number = answers.pop()
            raise OSError(number, os.strerror(number))
        real(source, target)

    monkeypatch.setattr(local_module.os, "replace", stale)
    store = CheckpointStore(file_storage, "run-1")
    commit(store, 1)
    assert not answers and readable(store) == ["00000001-trained"]
