from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from next_ray.errors import StoreError
from next_ray.store import Storage
from next_ray.store.faults import ConflictError, MissingObjectError, TooLargeError


def test_what_was_put_is_read_back_listed_and_deleted(storage: Storage) -> None:
    storage.put("run/a/one", b"1")
    storage.put("run/a/two", b"22")
    storage.put("run/b", b"")
    assert storage.get("run/a/two") == b"22"
    assert storage.get("run/b") == b""
    assert storage.list("run") == ["run/a/one", "run/a/two", "run/b"]
    assert storage.list("run/a") == ["run/a/one", "run/a/two"]
    assert [entry.size_bytes for entry in storage.entries("run")] == [1, 2, 0]
    storage.delete("run/a/one")
    storage.delete("run/a/one")
    assert storage.list("run/a") == ["run/a/two"]
    assert not storage.exists("run/a/one") and storage.exists("run/a/two")


def test_prefixes_are_folders_not_string_prefixes(storage: Storage) -> None:
    storage.put("run-1/x", b"1")
    storage.put("run-10/x", b"1")
    assert storage.list("run-1") == ["run-1/x"]
    assert not storage.exists("run-1")


def test_an_emptied_folder_lists_nothing_and_is_no_object(storage: Storage) -> None:
    storage.put("run/a/one", b"1")
    storage.delete("run/a/one")
    assert storage.list("run/a") == [] and storage.list("never") == []
    assert not storage.exists("run/a")


def test_put_replaces(storage: Storage) -> None:
    storage.put("x", b"old")
    storage.put("x", b"new")
    assert storage.get("x") == b"new"


def test_missing_objects_are_named(storage: Storage) -> None:
    with pytest.raises(MissingObjectError, match="run/nothing"):
        storage.get("run/nothing")


def test_exclusive_creation_has_one_winner_and_is_repeatable_with_the_same_bytes(storage: Storage) -> None:
    etag = storage.create_exclusive("x", b"mine")
    assert storage.create_exclusive("x", b"mine") == etag
    with pytest.raises(ConflictError):
        storage.create_exclusive("x", b"theirs")
    assert storage.get("x") == b"mine"


def test_put_new_never_changes_an_object(storage: Storage) -> None:
    storage.put_new("x", b"first")
    storage.put_new("x", b"first")
    with pytest.raises(ConflictError):
        storage.put_new("x", b"second")
    assert storage.get("x") == b"first"


def test_replacement_needs_the_present_version(storage: Storage) -> None:
    first = storage.create_exclusive("x", b"1")
    second = storage.replace_if("x", b"2", first)
    assert second != first
    with pytest.raises(ConflictError):
        storage.replace_if("x", b"3", first)
    assert storage.read_versioned("x").etag == second
    assert storage.replace_if("x", b"2", first) == second, "a repetition whose first answer was lost has succeeded"
    storage.delete("x")
    with pytest.raises(ConflictError):
        storage.replace_if("x", b"3", second)
    assert not storage.exists("x")


def test_threads_racing_for_one_object_have_one_winner(storage: Storage) -> None:
    contenders, rounds = 6, 100 if storage.scheme == "file" else 3
    barrier = threading.Barrier(contenders)

    def race(contender: int) -> list[bool]:
        won = []
        for name in range(rounds):
            barrier.wait()
            try:
                storage.create_exclusive(f"races/{name}", f"driver {contender}".encode())
                won.append(True)
            except ConflictError:
                won.append(False)
        return won

    with ThreadPoolExecutor(contenders) as pool:
        results = list(pool.map(race, range(contenders)))
    for name, won in enumerate(zip(*results, strict=True)):
        assert sum(won) == 1
        assert storage.get(f"races/{name}") == f"driver {won.index(True)}".encode()


def test_age_is_measured_by_the_storage(storage: Storage) -> None:
    storage.put("run/x", b"1")
    assert storage.read_versioned("run/x").age_s < 2
    time.sleep(3)
    assert 2 <= storage.read_versioned("run/x").age_s < 30
    assert 2 <= storage.entries("run")[0].age_s < 30


def test_oversized_objects_are_refused_unread(storage: Storage) -> None:
    storage.put("x", b"0" * 1000)
    with pytest.raises(TooLargeError, match="1000 bytes"):
        storage.get("x", max_bytes=999)
    assert len(storage.get("x", max_bytes=1000)) == 1000


def test_large_objects_travel_in_parts(storage: Storage) -> None:
    data = os.urandom(2**20) * 65
    storage.put("large", data)
    assert storage.get("large") == data
    storage.put_new("large", data)
    with pytest.raises(ConflictError):
        storage.put_new("large", data[:-1] + b"x")


def test_conditional_writes_are_for_small_objects(storage: Storage) -> None:
    with pytest.raises(ValueError, match="too many"):
        storage.create_exclusive("x", bytes(16 * 2**20 + 1))


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/.", ".hidden", "a\\b", "a\nb", "a" * 501, "s3://b/x", "~"]
)
def test_paths_cannot_leave_the_store(file_storage: Storage, path: str) -> None:
    for operation in (file_storage.get, file_storage.delete, file_storage.list, file_storage.exists, lambda p: file_storage.put(p, b"")):
        with pytest.raises(StoreError, match="no path inside the store"):
            operation(path)


def test_another_instance_sees_changes_at_once(storage: Storage) -> None:
    other = storage.with_budget(10)
    assert other.list("run") == []
    storage.put("run/x", b"1")
    assert other.list("run") == ["run/x"]
    storage.delete("run/x")
    assert other.list("run") == [] and not other.exists("run/x")
    other.close()


def test_it_is_pickled_without_connections(storage: Storage) -> None:
    storage.put("x", b"1")
    copied = pickle.loads(pickle.dumps(storage))
    assert copied.get("x") == b"1"
    copied.close()
    assert len(pickle.dumps(storage)) < 1000


def test_it_reopens_after_close(storage: Storage) -> None:
    storage.put("x", b"1")
    storage.close()
    storage.close()
    assert storage.get("x") == b"1"


def test_it_works_where_an_asyncio_loop_runs(storage: Storage) -> None:
    async def driver() -> list[bytes]:
        storage.put("in-loop", b"1")
        ticks = 0

        async def heartbeat() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        beating = asyncio.create_task(heartbeat())
        names = [f"t{i}" for i in range(4)]
        await asyncio.gather(*(asyncio.to_thread(storage.put, name, name.encode()) for name in names))
        read = await asyncio.gather(*(asyncio.to_thread(storage.get, name) for name in names))
        beating.cancel()
        assert ticks > 1, "the loop went on while threads talked to the store"
        return [storage.get("in-loop"), *read]

    assert asyncio.run(driver()) == [b"1", b"t0", b"t1", b"t2", b"t3"]
    assert asyncio.run(driver())[0] == b"1", "a second loop in the same process"


def test_readers_of_a_file_see_the_old_bytes_or_the_new(file_storage: Storage) -> None:
    contents = [bytes([i]) * 300_000 for i in range(2)]
    file_storage.put("x", contents[0])
    stop = threading.Event()
    torn: list[int] = []

    def read() -> None:
        while not stop.is_set():
            if file_storage.get("x") not in contents:
                torn.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        file_storage.put("x", contents[i % 2])
    stop.set()
    reader.join()
    assert not torn


def test_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    storage = Storage("file://~/deep/store")
    storage.put("x", b"1")
    assert (tmp_path / "deep/store/x").read_bytes() == b"1"
    assert storage.url == f"file://{tmp_path}/deep/store"


@pytest.mark.parametrize(
    "url, endpoint, message",
    [
        ("/plain/folder", None, "not understood"),
        ("file://", None, "not understood"),
        ("gs://bucket/x", None, "not understood"),
        ("s3://", None, "3 to 63"),
        ("s3://ab/x", None, "3 to 63"),
        ("s3://Bucket/x", None, "3 to 63"),
        ("s3://bucket/../x", None, "3 to 63"),
        ("s3://bucket/x", "127.0.0.1:8333", "http://host:port"),
        ("s3://key:hunter2@bucket/x", None, "carries credentials"),
        ("s3://bucket/x", "http://key:hunter2@host", "carries credentials"),
        ("s3://bucket/x?secret=hunter2", None, "carries credentials"),
    ],
)
def test_bad_urls_are_refused_without_repeating_secrets(url: str, endpoint: str | None, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        Storage(url, endpoint)
    assert "hunter2" not in str(caught.value)
