from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import pyarrow.parquet as pq
import pytest

from next_ray.errors import StoreError
from next_ray.store import CheckpointStore, Storage
from next_ray.types import CheckpointKind
from tests.store.samples import commit


def rows(first: int, last: int, attempt: int = 1) -> list[dict[str, Any]]:
    return [{"step": step, "attempt": attempt} for step in range(first, last + 1)]


def test_rows_come_back_up_to_the_committed_step(store: CheckpointStore) -> None:
    written = [
        {"step": 1, "text": "a\n\u00e9", "reward": 0.5, "tokens": [1, 2], "nested": {"x": 1}, "flag": True, "none": None},
        {"step": 2, "text": "", "reward": 1, "tokens": [], "nested": {"x": 2}, "flag": False, "none": None},
    ]
    store.write_table("samples", 1, 2, written)
    assert store.read_table("samples") == [], "no checkpoint covers them yet"
    assert store.read_table("samples", up_to_step=1) == written[:1]
    commit(store, 2, kind=CheckpointKind.PREDICTED)
    assert store.read_table("samples") == [], "a prediction is nothing a run resumes from"
    commit(store, 2)
    assert store.read_table("samples") == written
    assert store.read_table("metrics") == []


def test_segments_join_and_columns_that_come_later_are_null_before(store: CheckpointStore) -> None:
    store.write_table("metrics", 0, 0, [{"step": 0, "accuracy": 0.25}])
    store.write_table("metrics", 3, 4, [{"step": 3, "loss": 0.1, "kl": 2.0}, {"step": 4, "loss": 0.2}])
    store.write_table("metrics", 5, 5, [])
    assert store.read_table("metrics", up_to_step=9) == [
        {"step": 0, "accuracy": 0.25, "loss": None, "kl": None},
        {"step": 3, "accuracy": None, "loss": 0.1, "kl": 2.0},
        {"step": 4, "accuracy": None, "loss": 0.2, "kl": None},
    ]


def test_a_resumed_run_supersedes_what_no_checkpoint_covers(store: CheckpointStore) -> None:
    store.write_table("metrics", 1, 3, rows(1, 3))
    commit(store, 3)
    store.write_table("metrics", 4, 5, rows(4, 5))
    store.write_table("metrics", 6, 6, rows(6, 6))
    store.write_table("metrics", 4, 4, rows(4, 4, attempt=2))
    store.write_table("metrics", 5, 6, rows(5, 6, attempt=2))
    commit(store, 6)
    assert store.read_table("metrics") == rows(1, 3) + rows(4, 6, attempt=2)


def test_a_segment_across_the_resumed_step_is_cut(store: CheckpointStore) -> None:
    store.write_table("metrics", 1, 6, rows(1, 6))
    commit(store, 3)
    assert store.read_table("metrics") == rows(1, 3)
    store.write_table("metrics", 4, 5, rows(4, 5, attempt=2))
    commit(store, 5)
    assert store.read_table("metrics") == rows(1, 3) + rows(4, 5, attempt=2)
    assert [path.rpartition("/")[2][:17] for path in store.storage.list("run-1/tables/metrics")] == [
        "00000001-00000003",
        "00000004-00000005",
    ]


def test_repeating_a_segment_changes_nothing(store: CheckpointStore) -> None:
    store.write_table("metrics", 1, 2, rows(1, 2))
    store.write_table("metrics", 3, 4, rows(3, 4))
    commit(store, 4)
    store.write_table("metrics", 3, 4, rows(3, 4))
    assert store.read_table("metrics") == rows(1, 4)


def test_the_same_range_again_replaces_even_committed_rows(store: CheckpointStore) -> None:
    store.write_table("evaluations", 4, 4, rows(4, 4))
    commit(store, 4)
    store.write_table("evaluations", 4, 4, rows(4, 4, attempt=2))
    assert store.read_table("evaluations") == rows(4, 4, attempt=2)
    assert len(store.storage.list("run-1/tables/evaluations")) == 1


def test_committed_rows_are_not_superseded(file_storage: Storage) -> None:
    store = CheckpointStore(file_storage, "run-1")
    store.write_table("metrics", 1, 4, rows(1, 4))
    commit(store, 4)
    for start, end in ((1, 1), (3, 9), (4, 4), (0, 2)):
        with pytest.raises(StoreError, match="covers the committed steps 1 to 4"):
            store.write_table("metrics", start, end, [])
    assert store.read_table("metrics") == rows(1, 4)


@pytest.mark.parametrize("row", [{"step": 3}, {"step": 0}, {}, {"step": 1.5}, {"step": None}])
def test_rows_belong_to_their_segment(file_storage: Storage, row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="step from 1 to 2"):
        CheckpointStore(file_storage, "run-1").write_table("metrics", 1, 2, [row])


@pytest.mark.parametrize("start, end", [(2, 1), (-1, 1), (0, 10**8)])
def test_segments_are_ranges(file_storage: Storage, start: int, end: int) -> None:
    with pytest.raises(ValueError, match="no range"):
        CheckpointStore(file_storage, "run-1").write_table("metrics", start, end, [])


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "x" * 80])
def test_table_names_are_checked(file_storage: Storage, name: str) -> None:
    store = CheckpointStore(file_storage, "run-1")
    with pytest.raises(ValueError, match="table name"):
        store.write_table(name, 1, 1, [])
    with pytest.raises(ValueError, match="table name"):
        store.read_table(name, 1)


def test_columns_of_mixed_types_are_refused_with_the_table(file_storage: Storage) -> None:
    with pytest.raises(ValueError, match="table metrics"):
        CheckpointStore(file_storage, "run-1").write_table("metrics", 1, 1, [{"step": 1, "x": 1}, {"step": 1, "x": "a"}])


def test_the_files_are_plain_parquet(file_storage: Storage) -> None:
    store = CheckpointStore(file_storage, "run-1")
    store.write_table("metrics", 1, 2, rows(1, 2))
    (path,) = file_storage.list("run-1/tables/metrics")
    table = pq.read_table(io.BytesIO(file_storage.get(path)))
    assert table.to_pydict() == {"step": [1, 2], "attempt": [1, 1]}


@pytest.mark.parametrize("position", [0.0, 0.02, 0.5, 0.98])
def test_damaged_segments_are_named(file_storage: Storage, position: float) -> None:
    store = CheckpointStore(file_storage, "run-1")
    store.write_table("metrics", 1, 200, [{"step": i, "x": i * 0.37} for i in range(1, 201)])
    (path,) = file_storage.list("run-1/tables/metrics")
    data = bytearray(file_storage.get(path))
    data[int(position * len(data))] ^= 1
    for damaged in (bytes(data), bytes(data[:-40]), b""):
        file_storage.put(path, damaged)
        with pytest.raises(StoreError, match=r"00000001-00000200-\w+\.parquet does not match the checksum in its name"):
            store.read_table("metrics", 200)


@pytest.mark.parametrize("data", [b"", b"PAR1" * 10, pickle.dumps([{"step": 1}])])
def test_what_is_no_parquet_is_refused(file_storage: Storage, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()[:16]
    file_storage.put(f"run-1/tables/metrics/00000001-00000001-{digest}.parquet", data)
    with pytest.raises(StoreError, match="not a readable parquet file"):
        CheckpointStore(file_storage, "run-1").read_table("metrics", 200)
