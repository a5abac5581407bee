"""Tables as parquet segments: each holds the rows of a range of steps and is written once.

A resumed run repeats steps that no checkpoint had covered. What an earlier attempt wrote about them is superseded by the
first segment of the new attempt, and readers stop at a committed step, so no step is ever counted twice. A segment's name
ends in the start of its sha256, so that damage is noticed.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from next_ray.errors import CorruptCheckpointError, StoreError
from next_ray.store.layout import TABLES, check_table
from next_ray.store.rereading import reread
from next_ray.store.storage import Storage

MAX_SEGMENT_BYTES = 2**30
MAX_DECODED_BYTES = 4 * 2**30
_SEGMENT = re.compile(r"(\d{8})-(\d{8})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True)
class Segment:
    """One stored range of steps, both ends included."""

    path: str
    start: int
    end: int
    digest: str


class Tables:
    """The tables of one run."""

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage = storage
        self._root = f"{run}/{TABLES}"

    def write(self, name: str, start_step: int, end_step: int, rows: Sequence[Mapping[str, Any]], committed_step: int) -> None:
        """Write the rows of steps `start_step` to `end_step`; each row has an integer `step` in that range.

        The same range again replaces what it held. What other segments hold of the steps from `start_step` on is superseded,
        unless it is committed: that is a `StoreError`.
        """
        if not 0 <= start_step <= end_step <= 99_999_999:
            raise ValueError(f"table {name}: steps {start_step} to {end_step} are no range")
        outside = [row.get("step") for row in rows if not isinstance(row.get("step"), int) or not start_step <= row["step"] <= end_step]
        if outside:
            raise ValueError(f"table {name}: every row needs a step from {start_step} to {end_step}; got {outside[:3]}")
        data = encode_rows(name, rows)
        present = self.segments(name)
        replaced = [segment for segment in present if (segment.start, segment.end) == (start_step, end_step)]
        for segment in present:
            if segment.end >= start_step and segment not in replaced:
                self._supersede(name, segment, start_step, committed_step)
        path = self._put(name, start_step, end_step, data)
        for segment in replaced:
            if segment.path != path:
                self._storage.delete(segment.path)

    def read(self, name: str, up_to_step: int) -> list[dict[str, Any]]:
        """All rows of steps up to `up_to_step`, in order of the segments; every row has the columns of all of them."""
        rows: list[dict[str, Any]] = []
        covered = -1
        for segment in self.segments(name):
            if segment.start > up_to_step:
                break
            rows += [row for row in self._rows(segment) if covered < row["step"] <= up_to_step]
            covered = max(covered, segment.end)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        return [{column: row.get(column) for column in columns} for row in rows]

    def segments(self, name: str) -> list[Segment]:
        """What is stored of a table, by range."""
        found = []
        for path in self._storage.list(f"{self._root}/{check_table(name)}"):
            match = _SEGMENT.fullmatch(path.rpartition("/")[2])
            if match:
                found.append(Segment(path, int(match[1]), int(match[2]), match[3]))
        return sorted(found, key=lambda segment: (segment.start, segment.end))

    def _supersede(self, name: str, segment: Segment, start_step: int, committed_step: int) -> None:
        """Cut a segment of an earlier attempt back to the steps before `start_step`."""
        last = min(segment.end, committed_step)
        if last >= start_step:
            raise StoreError(
                f"{self._storage.url}/{segment.path} covers the committed steps {segment.start} to {last}; a segment from step "
                f"{start_step} would contradict it. Write each range of steps once."
            )
        if segment.start < start_step:
            kept = [row for row in self._rows(segment) if row["step"] < start_step]
            self._put(name, segment.start, start_step - 1, encode_rows(name, kept))
        self._storage.delete(segment.path)

    def _rows(self, segment: Segment) -> list[dict[str, Any]]:
        return reread(lambda: self._read_rows(segment))

    def _read_rows(self, segment: Segment) -> list[dict[str, Any]]:
        origin = f"{self._storage.url}/{segment.path}"
        data = self._storage.get(segment.path, MAX_SEGMENT_BYTES)
        if _digest(data) != segment.digest:
            raise CorruptCheckpointError(f"{origin} does not match the checksum in its name. Delete it, or restore it from a copy.")
        rows = decode_rows(data, origin)
        if any(not isinstance(row.get("step"), int) for row in rows):
            raise StoreError(f"{origin} has rows without a step. Delete it, or restore it from a copy.")
        return rows

    def _put(self, name: str, start_step: int, end_step: int, data: bytes) -> str:
        path = f"{self._root}/{check_table(name)}/{start_step:08d}-{end_step:08d}-{_digest(data)}.parquet"
        self._storage.put(path, data)
        return path


def encode_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Parquet; a column that a row lacks is null there. Raises ValueError for columns of mixed types."""
    columns = dict.fromkeys(["step", *(column for row in rows for column in row)])
    try:
        types = {"step": pa.int64()}
        table = pa.table({column: pa.array([row.get(column) for row in rows], types.get(column)) for column in columns})
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"table {name}: rows do not make columns: {error}") from error
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def decode_rows(data: bytes, origin: str) -> list[dict[str, Any]]:
    """The inverse of `encode_rows`; raises `StoreError` naming `origin` for damaged or oversized files."""
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if size > MAX_DECODED_BYTES:
            raise StoreError(f"{origin} would take {size} bytes in memory, more than {MAX_DECODED_BYTES}.")
        return file.read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        cause = str(error).partition("\n")[0]
        raise StoreError(f"{origin} is not a readable parquet file ({cause}). Delete it, or restore it from a copy.") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
