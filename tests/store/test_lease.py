from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from next_ray.errors import LeaseError, StoreError
from next_ray.store import CheckpointStore, Lease, Storage
from next_ray.types import CheckpointKind
from tests.store.samples import FINGERPRINT, make_state

ROOT = Path(__file__).parents[2]


@contextmanager
def racers(storage: Storage, verb: str, numbers: Sequence[tuple[float, float]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are connected and ready to go."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.store.racer", verb, storage.url, storage.endpoint_url or "", "run-1", str(first), str(second)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first, second in numbers
    ]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def race(storage: Storage, verb: str, numbers: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """Start them together and return what each says."""
    with racers(storage, verb, numbers) as started:
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in started if process.stdout]


def test_one_of_racing_processes_wins_and_the_others_learn_who(storage: Storage) -> None:
    results = race(storage, "acquire", [(60, 0)] * 3)
    assert [result["won"] for result in results].count(True) == 1
    for result in results:
        assert result["won"] or "process" in result["message"]


def test_racing_processes_lose_no_conditional_replacement(storage: Storage) -> None:
    storage.put("run-1/counter", b'{"count": 0}')
    results = race(storage, "increment", [(0, 12)] * 2)
    assert [result["added"] for result in results] == [12] * 2
    assert json.loads(storage.get("run-1/counter"))["count"] == 24


def test_racing_commits_of_one_step_agree_on_the_first(storage: Storage) -> None:
    results = race(storage, "commit", [(seed, 0) for seed in range(2)])
    seeds = {result["seed"] for result in results}
    assert len(seeds) == 1
    store = CheckpointStore(storage, "run-1")
    manifest = store.manifest("00000001-trained")
    assert manifest.metadata["seed"] in seeds
    store.verify(manifest)


def test_a_second_driver_is_told_who_holds_the_run(storage: Storage) -> None:
    with Lease(storage, "run-1", 30):
        with pytest.raises(LeaseError, match=rf"written by process {os.getpid()} on .* .since .*wait \d+ s"):
            Lease(storage, "run-1", 30).acquire()
        with Lease(storage, "run-2", 30):
            pass
    with Lease(storage, "run-1", 30):
        pass


def test_an_expired_lease_is_taken_over_and_its_holder_cannot_write(storage: Storage) -> None:
    store = CheckpointStore(storage, "run-1")
    first, second = Lease(storage, "run-1", 2), Lease(storage, "run-1", 30)
    first.acquire()
    stale = first.token
    second.acquire(wait_s=20)
    with pytest.raises(LeaseError, match=r"lost.*holds it now"):
        first.renew()
    assert first.token is None
    with pytest.raises(LeaseError, match="not held"):
        first.renew()
    with pytest.raises(LeaseError, match="lost"):
        store.commit(1, *_commit_arguments(), lease_token=stale)
    assert store.latest() is None
    assert store.commit(1, *_commit_arguments(), lease_token=second.token).step == 1
    first.release()
    with pytest.raises(LeaseError):
        Lease(storage, "run-1", 30).acquire()
    second.release()


def test_renewal_keeps_others_out_beyond_the_first_term(storage: Storage) -> None:
    with Lease(storage, "run-1", 3) as lease:
        for _ in range(4):
            time.sleep(1)
            lease.renew()
        with pytest.raises(LeaseError):
            Lease(storage, "run-1", 3).acquire()


def test_release_is_repeatable_and_fences_off_late_commits(storage: Storage) -> None:
    lease = Lease(storage, "run-1", 30)
    lease.acquire()
    token = lease.token
    lease.release()
    lease.release()
    with pytest.raises(LeaseError, match="nobody holds it"):
        CheckpointStore(storage, "run-1").commit(1, *_commit_arguments(), lease_token=token)


def test_a_release_while_another_thread_renews_is_final(file_storage: Storage) -> None:
    for _ in range(20):
        lease = Lease(file_storage, "run-1", 30)
        lease.acquire()
        go = threading.Barrier(2)

        def renew(lease: Lease = lease, go: threading.Barrier = go) -> None:
            go.wait()
            with suppress(LeaseError):
                lease.renew()

        renewal = threading.Thread(target=renew)
        renewal.start()
        go.wait()
        lease.release()
        renewal.join()
        assert json.loads(file_storage.get("run-1/lease.json"))["held"] is False


def test_a_storage_that_does_not_answer_is_no_lost_lease(file_storage: Storage) -> None:
    lease = Lease(file_storage, "run-1", 30)
    lease.acquire()
    lock = Path(file_storage.root) / "run-1/.lock"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(StoreError) as caught:
        lease.renew()
    assert not isinstance(caught.value, LeaseError) and lease.token is not None
    lock.rmdir()
    lease.renew()
    lease.release()


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(storage: Storage) -> None:
    with racers(storage, "hold", [(3600, 3600)]) as (process,):
        assert process.stdout is not None and "token" in process.stdout.readline()
        with pytest.raises(LeaseError, match=str(process.pid)):
            Lease(storage, "run-1", 30).acquire()
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Lease(storage, "run-1", 30):
            pass


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "another boot/pid:[4026531836]"},
        {"machine": ""},
    ],
)
def test_a_process_that_cannot_be_asked_counts_as_living(file_storage: Storage, change: dict[str, Any]) -> None:
    with Lease(file_storage, "run-1", 30):
        holder = json.loads(file_storage.get("run-1/lease.json"))
    file_storage.put("run-1/lease.json", json.dumps({**holder, "held": True, "pid": 2**22 + 1, **change}).encode())
    with pytest.raises(LeaseError, match="written by process 4194305"):
        Lease(file_storage, "run-1", 30).acquire()


def test_a_reused_pid_is_not_the_holder(file_storage: Storage) -> None:
    with Lease(file_storage, "run-1", 30):
        holder = json.loads(file_storage.get("run-1/lease.json"))
    file_storage.put("run-1/lease.json", json.dumps({**holder, "held": True, "process": "1"}).encode())
    with Lease(file_storage, "run-1", 30):
        pass


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"[]", lambda data: data.replace(b"next-ray-lease/1", b"next-ray-lease/2")]
)
def test_an_unreadable_lease_stops_the_driver(file_storage: Storage, damage: Callable[[bytes], bytes]) -> None:
    with Lease(file_storage, "run-1", 30):
        pass
    file_storage.put("run-1/lease.json", damage(file_storage.get("run-1/lease.json")))
    with pytest.raises(StoreError, match=r"lease\.json.*Delete it when no driver writes"):
        Lease(file_storage, "run-1", 30).acquire()


def _commit_arguments() -> tuple[Any, ...]:

    return CheckpointKind.TRAINED, make_state(1), [], FINGERPRINT, {}
