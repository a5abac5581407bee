"""What a storage counts of its own work."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from next_ray.errors import StoreError
from next_ray.store import Storage
from next_ray.store import local as local_module
from next_ray.store.faults import ConflictError, MissingObjectError


def test_operations_and_bytes_are_counted_by_kind_and_expected_answers_are_no_failures(file_storage: Storage) -> None:
    file_storage.put("a/one", b"12345")
    file_storage.create_exclusive("a/two", b"67")
    assert file_storage.get("a/one") == b"12345"
    file_storage.list("a")
    file_storage.delete("a/one")
    with pytest.raises(MissingObjectError):
        file_storage.get("a/one")
    with pytest.raises(ConflictError):
        file_storage.create_exclusive("a/two", b"other")
    sums = file_storage.usage.sums()
    assert (sums["bytes", "write"], sums["bytes", "read"]) == (7, 5 + 2)  # the loser looks whether what is there is its own
    assert [sums["operations", kind] for kind in ("write", "list", "delete")] == [3, 1, 1]
    assert sums["retries", ""] == sums["failures", ""] == 0
    assert all(seconds > 0 for (name, _), seconds in sums.items() if name == "seconds")


def test_retries_and_lasting_failures_are_counted(file_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(source: str, target: str) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(local_module.os, "replace", busy)
    with file_storage.with_budget(1.0) as impatient, pytest.raises(StoreError, match="Gave up"):
        impatient.put("a/one", b"1")
    sums = file_storage.usage.sums()  # the same books
    assert sums["retries", ""] >= 1 and sums["failures", ""] == 1
    assert ("bytes", "write") not in sums


def test_another_process_begins_to_count_anew(file_storage: Storage) -> None:
    file_storage.put("one", b"1")
    there = pickle.loads(pickle.dumps(file_storage))
    assert there.usage.sums() == {("retries", ""): 0, ("failures", ""): 0}
    assert there.get("one") == b"1"
