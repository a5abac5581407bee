"""Deletion never takes what a manifest names, whatever other processes commit meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from next_ray.store import CheckpointStore, Storage, deleting, processes
from next_ray.types import Manifest
from tests.store.samples import assert_same_state, commit, make_state
from tests.store.test_torn_writes import readable

ROOT = Path(__file__).parents[2]


class Interrupted(Storage):
    """The storage of `like` that calls `meanwhile` once, before the first operation that `when` accepts."""

    def __init__(self, like: Storage, when: Callable[[str, str], bool], meanwhile: Callable[[], object]) -> None:
        super().__init__(like.url, like.endpoint_url)
        self._when, self._meanwhile = when, meanwhile

    def _interrupt(self, operation: str, path: str) -> None:
        if self._when(operation, path):
            self._when = lambda *_: False
            self._meanwhile()

    def put(self, path: str, data: bytes) -> str:
        self._interrupt("put", path)
        return super().put(path, data)

    def create_exclusive(self, path: str, data: bytes) -> str:
        self._interrupt("create", path)
        return super().create_exclusive(path, data)

    def delete(self, path: str) -> None:
        self._interrupt("delete", path)
        super().delete(path)

    def entries(self, prefix: str) -> list[Any]:
        self._interrupt("entries", prefix)
        return super().entries(prefix)


def before_manifest(operation: str, path: str) -> bool:
    return operation == "create" and "/manifests/" in path


@pytest.mark.parametrize("collect", ["retain", "sweep"])
def test_objects_taken_between_their_write_and_the_manifests_are_put_back(storage: Storage, collect: str) -> None:
    """Step 4 has the very bytes of step 1, which is deleted while step 4 is committed."""
    other = CheckpointStore(storage, "run-1")
    for step in (1, 2, 3):
        commit(other, step)

    def meanwhile() -> None:
        assert other.retain(1) == ["00000001-trained", "00000002-trained"]
        other.sweep(0)

    store = CheckpointStore(Interrupted(storage, before_manifest, meanwhile), "run-1")
    manifest = commit(store, 4, seed=1)
    assert readable(other) == ["00000003-trained", "00000004-trained"]
    assert_same_state(other.load_state(manifest), make_state(1))


def test_a_commit_waits_for_a_deletion_in_another_process_and_puts_back_what_it_took(storage: Storage) -> None:
    """The other process has read the manifests before ours is written, and deletes afterwards."""
    store = CheckpointStore(storage, "run-1")
    manifest = commit(store, 1)
    claim = {"token": "x", "machine": "another", "pid": 1, "process": "1"}
    storage.put("run-1/deleting.json", json.dumps(claim).encode())
    committed: list[Manifest] = []
    thread = threading.Thread(target=lambda: committed.append(commit(store, 2, seed=1)))
    thread.start()
    while not storage.exists("run-1/manifests/00000002-trained.json"):
        time.sleep(0.01)
    time.sleep(0.5)
    assert thread.is_alive()
    for entry in manifest.objects.values():
        storage.delete(f"run-1/{entry.path}")
    storage.delete("run-1/deleting.json")
    thread.join(20)
    assert_same_state(store.load_state(committed[0]), make_state(1))


def test_one_process_deletes_at_a_time_and_a_dead_ones_claim_is_nobodys(storage: Storage) -> None:
    store = CheckpointStore(storage, "run-1")
    for step in (1, 2):
        commit(store, step)
    claim = {"token": "x", "machine": "another", "pid": 1, "process": "1"}
    storage.put("run-1/deleting.json", json.dumps(claim).encode())
    assert store.retain(1) == [] and store.sweep(0) == 0
    assert readable(store) == ["00000001-trained", "00000002-trained"]
    storage.put("run-1/deleting.json", json.dumps({**claim, "machine": processes.machine(), "pid": 2**22 + 1}).encode())
    assert store.retain(1) == ["00000001-trained"]
    assert not storage.exists("run-1/deleting.json")


def test_a_claim_that_was_not_renewed_runs_out(file_storage: Storage) -> None:
    store = CheckpointStore(file_storage, "run-1")
    for step in (1, 2):
        commit(store, step)
    for content in (b"{}", b"[", json.dumps({"machine": "another", "pid": 1, "process": "1"}).encode()):
        file_storage.put("run-1/deleting.json", content)
        assert store.retain(1) == []
        os.utime(Path(file_storage.root) / "run-1/deleting.json", (1, 1))
        commit(store, 3)
        assert store.retain(2) == ["00000001-trained"] if store.manifests()[0].step == 1 else True


def test_a_suspended_deletion_stops_when_its_claim_was_taken_over(file_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deleting, "RENEW_S", 0.0)
    store = CheckpointStore(file_storage, "run-1")
    for step in (1, 2, 3):
        commit(store, step)

    def taken_over(operation: str, path: str) -> bool:
        return operation == "delete" and "/objects/" in path

    others = json.dumps({"token": "y", "machine": "another", "pid": 1, "process": "1"}).encode()
    suspended = CheckpointStore(Interrupted(file_storage, taken_over, lambda: file_storage.put("run-1/deleting.json", others)), "run-1")
    suspended.retain(1)
    assert len(file_storage.list("run-1/objects")) == 8, "one of nine was deleted before it noticed"
    assert file_storage.get("run-1/deleting.json") == others


def test_a_process_that_collects_all_the_time_takes_nothing_from_one_that_commits(storage: Storage) -> None:
    """Each step has a state that occurred before, so that all but the first commits share objects with what is being deleted."""
    command = [sys.executable, "-m", "tests.store.racer", "collect_forever", storage.url, storage.endpoint_url or "", "run-1", "0", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None and process.stdout is not None and process.stdout.readline() == "ready\n"
            process.stdin.write("go\n")
            process.stdin.flush()
            store = CheckpointStore(storage, "run-1")
            deadline = time.monotonic() + 8
            step = 0
            while time.monotonic() < deadline:
                step += 1
                manifest = commit(store, step, seed=step % 3)
                assert_same_state(store.load_state(manifest), make_state(step % 3))
        finally:
            process.kill()
    kept = readable(store)
    assert step > 5 and kept[-1] == f"{step:08d}-trained"
