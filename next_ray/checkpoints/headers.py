"""Safetensors files, read tensor by tensor: the header is parsed and checked once, no file stays open in between.

The format: eight bytes of header length, a JSON header of name to dtype, shape and data offsets, then the data without holes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from next_ray.errors import CheckpointFormatError

MAX_HEADER_BYTES = 32 * 2**20
"""Room for a quarter of a million tensors."""

MAX_NAME = 500
MAX_DIMENSIONS = 8

ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

READABLE = {"F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
"""Dtypes that weights may have, and what their bytes are read as."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: dtype as safetensors names it, shape, first and last byte (exclusive) from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A file and its checked table of contents; `stamp` (size in bytes, time of change in ns) tells whether it is still that file."""

    path: Path
    entries: Mapping[str, TensorEntry]
    stamp: tuple[int, int]

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32; raises `CheckpointFormatError` for another kind of number, a cut file, NaN or infinity."""
        entry = self.entries[name]
        if entry.dtype not in READABLE:
            raise CheckpointFormatError(
                f"{self.path}: tensor {name!r} is stored as {entry.dtype}; weights are read from {', '.join(sorted(READABLE))}."
            )
        dtype = READABLE[entry.dtype]
        count = (entry.end - entry.begin) // dtype.itemsize
        try:
            with self.path.open("rb", buffering=0) as handle:
                same = stamp_of(handle) == self.stamp
                raw = np.fromfile(handle, dtype=dtype, count=count, offset=entry.begin)
        except OSError as error:
            raise CheckpointFormatError(f"{self.path} cannot be read: {error.strerror or error}.") from None
        if not same or len(raw) != count:
            raise CheckpointFormatError(f"{self.path} changed while it was in use. Read checkpoints that no trainer writes to any more.")
        return checked(as_float32(raw, entry.dtype).reshape(entry.shape), name, self.path)


def as_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers read as `READABLE[dtype]` as float32; exact for all but F64."""
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32, copy=False)


def checked(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """The array, unless it holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise CheckpointFormatError(
            f"{path}: tensor {name!r} holds NaN or infinity. The training run diverged or the file is damaged; leave this checkpoint out."
        )
    return array


def open_safetensors(path: Path) -> SafetensorsFile:
    """Parse and check a file's header; raises `CheckpointFormatError` naming the file for anything out of order."""
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(0)
            prefix = handle.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointFormatError(
                    f"{path} is not a complete safetensors file: {size} bytes, of which the header claims {length}. Copy it again."
                )
            header = handle.read(length)
            stamp = stamp_of(handle)
    except OSError as error:
        raise CheckpointFormatError(f"{path} cannot be read: {error.strerror or error}.") from None
    table = _parse(header, path)
    table.pop("__metadata__", None)
    entries = {name: _entry(name, fields, 8 + length, path) for name, fields in table.items()}
    _covers(entries, 8 + length, size, path)
    return SafetensorsFile(path, entries, stamp)


def stamp_of(handle: IO[bytes]) -> tuple[int, int]:
    """An open file's size in bytes and time of change in ns."""
    status = os.fstat(handle.fileno())
    return status.st_size, status.st_mtime_ns


def _parse(header: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a name occurs twice")
        return table

    try:
        table = json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{path}: the safetensors header is not valid JSON ({_short(error)}). Copy it again.") from None
    if not isinstance(table, dict):
        raise CheckpointFormatError(f"{path}: the safetensors header is not a JSON object. Copy it again.")
    return table


def _entry(name: str, fields: Any, start: int, path: Path) -> TensorEntry:
    shown = repr(name[:100])
    if len(name) > MAX_NAME or not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointFormatError(f"{path}: the header's entry {shown} is malformed; the file was damaged or tampered with.")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise CheckpointFormatError(f"{path}: tensor {shown} has the unknown dtype {str(dtype)[:40]!r}.")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS or not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointFormatError(f"{path}: tensor {shown} has a malformed shape or offsets; the file was damaged or tampered with.")
    begin, end = offsets
    if end < begin or math.prod(shape) * ITEM_BITS[dtype] != 8 * (end - begin):
        raise CheckpointFormatError(f"{path}: tensor {shown} claims shape {shape} of {dtype} in {end - begin} bytes, which does not fit.")
    return TensorEntry(dtype, tuple(shape), start + begin, start + end)


def _covers(entries: Mapping[str, TensorEntry], start: int, size: int, path: Path) -> None:
    """The data lies back to back and fills the file: no overlap, nothing outside, nothing hidden."""
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise CheckpointFormatError(f"{path}: tensor {name[:100]!r} overlaps another or leaves a hole; the file was tampered with.")
        position = entry.end
    if position != size:
        raise CheckpointFormatError(f"{path} should have {position} bytes by its header and has {size}: truncated or tampered with.")


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62 for n in value)


def _short(error: BaseException) -> str:
    return str(error)[:100] or type(error).__name__
