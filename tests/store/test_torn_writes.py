"""A process may die before or after any write: readers see what was committed, the next attempt succeeds, the sweep cleans up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from next_ray.store import CheckpointStore, Lease, Storage
from next_ray.types import CheckpointKind
from tests.store.samples import Crash, CrashingStorage, CrashPlan, assert_same_state, commit, make_state

ROOT = Path(__file__).parents[2]


def crash_points(storage: Storage, prepare: Callable[[CheckpointStore], object], act: Callable[[CheckpointStore], object]) -> int:
    """How many changing operations `act` makes, found on a run of its own."""
    prepare(CheckpointStore(storage, "rehearsal"))
    plan = CrashPlan()
    with CheckpointStore(CrashingStorage(storage, plan), "rehearsal") as store:
        act(store)
    assert plan.seen > 0
    return plan.seen


def crash_everywhere(
    storage: Storage,
    prepare: Callable[[CheckpointStore], object],
    act: Callable[[CheckpointStore], object],
    examine: Callable[[CheckpointStore, CrashPlan], None],
) -> None:
    """Let `act` die at each of its operations, before and after it takes effect, and examine what another process sees."""
    for at in range(crash_points(storage, prepare, act)):
        for after in (False, True):
            run = f"run-{at}-{'after' if after else 'before'}"
            reader = CheckpointStore(storage, run)
            prepare(reader)
            plan = CrashPlan(at, after)
            with CheckpointStore(CrashingStorage(storage, plan), run) as dying, pytest.raises(Crash):
                act(dying)
            examine(reader, plan)


def readable(store: CheckpointStore) -> list[str]:
    """Ids of all visible checkpoints, each one verified."""
    manifests = store.manifests()
    for manifest in manifests:
        store.verify(manifest)
    return [manifest.id for manifest in manifests]


def test_a_torn_commit_is_invisible_repeatable_and_swept(storage: Storage) -> None:
    def examine(store: CheckpointStore, plan: CrashPlan) -> None:
        committed = plan.after and plan.at == 3
        expected = ["00000001-trained", *(["00000002-trained"] if committed else [])]
        assert readable(store) == expected
        latest = store.latest()
        assert latest is not None and latest.id == expected[-1]
        before = latest
        swept = store.sweep(0)
        assert swept == (0 if committed else plan.at + plan.after), "one object for each put that took effect"
        assert readable(store) == expected and store.latest() == before
        again = commit(store, 2)
        assert_same_state(store.load_state(again), make_state(2))

    crash_everywhere(storage, lambda store: commit(store, 1), lambda store: commit(store, 2), examine)
    assert crash_points(storage, lambda store: None, lambda store: commit(store, 3)) == 4, "three objects, then the manifest"


def test_a_torn_commit_can_be_repeated_without_a_sweep(storage: Storage) -> None:
    def examine(store: CheckpointStore, plan: CrashPlan) -> None:
        assert_same_state(store.load_state(commit(store, 2)), make_state(2))
        assert store.sweep(0) == 0, "nothing was written twice under another name"

    crash_everywhere(storage, lambda store: commit(store, 1), lambda store: commit(store, 2), examine)


def test_the_sweep_spares_the_young(storage: Storage) -> None:
    plan = CrashPlan(at=3)
    with CheckpointStore(CrashingStorage(storage, plan), "run-1") as dying, pytest.raises(Crash):
        commit(dying, 1)
    store = CheckpointStore(storage, "run-1")
    assert store.sweep(min_age_s=3600) == 0
    assert store.sweep(min_age_s=0) == 3
    assert store.storage.list("run-1/objects") == []


def test_a_torn_retention_leaves_only_whole_checkpoints(storage: Storage) -> None:
    def prepare(store: CheckpointStore) -> None:
        for step in (1, 2, 3):
            commit(store, step)

    def examine(store: CheckpointStore, plan: CrashPlan) -> None:
        ids = readable(store)
        assert ids[-1] == "00000003-trained" and set(ids) <= {"00000001-trained", "00000002-trained", "00000003-trained"}
        store.retain(1)
        store.sweep(0)
        assert readable(store) == ["00000003-trained"]
        assert len(store.storage.list(f"{store.run}/objects")) == 3

    crash_everywhere(storage, prepare, lambda store: store.retain(1), examine)


def test_a_torn_sweep_leaves_checkpoints_alone(storage: Storage) -> None:
    def prepare(store: CheckpointStore) -> None:
        commit(store, 1)
        plan = CrashPlan(at=3)
        with CheckpointStore(CrashingStorage(storage, plan), store.run) as dying, pytest.raises(Crash):
            commit(dying, 2)

    def examine(store: CheckpointStore, plan: CrashPlan) -> None:
        assert readable(store) == ["00000001-trained"]
        store.sweep(0)
        assert len(store.storage.list(f"{store.run}/objects")) == 3

    crash_everywhere(storage, prepare, lambda store: store.sweep(0), examine)


def test_torn_table_writes_never_change_committed_rows(storage: Storage) -> None:
    def prepare(store: CheckpointStore) -> None:
        store.write_table("metrics", 1, 4, [{"step": step, "try": 1} for step in range(1, 5)])
        commit(store, 2)

    def act(store: CheckpointStore) -> None:
        store.write_table("metrics", 3, 4, [{"step": step, "try": 2} for step in (3, 4)])

    def examine(store: CheckpointStore, plan: CrashPlan) -> None:
        committed = [{"step": 1, "try": 1}, {"step": 2, "try": 1}]
        assert store.read_table("metrics") == committed
        act(store)
        commit(store, 4)
        assert store.read_table("metrics") == [*committed, {"step": 3, "try": 2}, {"step": 4, "try": 2}]

    crash_everywhere(storage, prepare, act, examine)


def test_a_torn_acquisition_does_not_lock_the_run_for_ever(storage: Storage) -> None:
    for after in (False, True):
        run = f"run-{after}"
        dying = Lease(CrashingStorage(storage, CrashPlan(0, after)), run, 2)
        with pytest.raises(Crash):
            dying.acquire()
        with_patience = Lease(storage, run, 30)
        with_patience.acquire(wait_s=20)
        with_patience.release()


def test_half_written_files_are_never_seen_and_are_swept(file_storage: Storage) -> None:
    store = CheckpointStore(file_storage, "run-1")
    manifest = commit(store, 1)
    for folder in ("manifests", "objects"):
        (Path(file_storage.root) / "run-1" / folder / ".tmp-1-abc-00000002-trained.json").write_bytes(b'{"half')
    assert store.manifests() == [manifest] and len(file_storage.list("run-1")) == 4
    assert store.sweep(3600) == 0
    assert store.sweep(0) == 2
    assert not list(Path(file_storage.root).rglob(".tmp-*"))


@pytest.mark.s3
def test_abandoned_multipart_uploads_are_swept(s3_storage: Storage) -> None:
    import botocore.session

    client = botocore.session.Session().create_client("s3", endpoint_url=s3_storage.endpoint_url)
    bucket, _, prefix = s3_storage.root.partition("/")
    upload = client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/run-1/objects/x")
    client.upload_part(Bucket=bucket, Key=f"{prefix}/run-1/objects/x", UploadId=upload["UploadId"], PartNumber=1, Body=b"1" * 2**20)
    other = client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/run-10/objects/x")
    store = CheckpointStore(s3_storage, "run-1")
    assert store.sweep(3600) == 0
    assert store.sweep(0) == 1
    left = [found["UploadId"] for found in client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])]
    assert left == [other["UploadId"]]


@pytest.mark.parametrize("kill_after", [1, 2, 3])
def test_a_killed_writer_leaves_only_whole_checkpoints(storage: Storage, kill_after: int) -> None:
    command = [sys.executable, "-m", "tests.store.racer", "commit_forever", storage.url, storage.endpoint_url or "", "run-1", "1", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None and process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        for _ in range(kill_after):
            acknowledged = int(process.stdout.readline())
        time.sleep(0.003 * kill_after)
        process.kill()
    store = CheckpointStore(storage, "run-1")
    steps = [manifest.step for manifest in store.manifests()]
    assert steps == list(range(1, len(steps) + 1)) and acknowledged <= len(steps) <= acknowledged + 50
    readable(store)
    store.sweep(0)
    assert [int(name[:8]) for name in readable(store)] == steps
    assert_same_state(store.load_state(store.commit(len(steps) + 1, CheckpointKind.TRAINED, make_state(77), [], "x", {})), make_state(77))
