"""Safetensors files, written one tensor at a time: a copy with some tensors edited, or a new one.

A copy keeps the header byte for byte, so names, order, dtypes, shapes and metadata stay, and so do the bytes of every tensor that is
not edited. Format: 8 bytes header length (little endian), JSON header, data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from next_ray.checkpoints.headers import READABLE, TensorEntry, as_float32, open_safetensors
from next_ray.errors import ExtrapolationError

_BLOCK_BYTES = 1 << 22
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
"""Dtypes whose values can be edited, and their bytes."""

Edit = Callable[[bytes, TensorEntry], bytes]
"""New bytes of a tensor from its old ones, as many."""


def decode(data: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes as float32, exactly (F32, F16, BF16)."""
    return as_float32(np.frombuffer(data, READABLE[dtype]), dtype).reshape(shape)


def encode(values: np.ndarray, dtype: str) -> bytes:
    """Finite float32 values as bytes, rounded to the nearest (ties to even); what is too large becomes infinity."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        return rounded.astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def encoded_finite(values: np.ndarray, dtype: str, name: str) -> bytes:
    """`encode`, refused with an `ExtrapolationError` when a value of tensor `name` is not finite as `dtype`."""
    data = encode(values, dtype)
    if not (np.isfinite(values).all() and np.isfinite(decode(data, dtype, values.shape)).all()):
        raise ExtrapolationError(
            f"The extrapolated tensor {name!r} holds NaN or infinity as {dtype}. Lower alpha, or check the checkpoints."
        )
    return data


def copy_edited(source: Path, target: Path, edits: Mapping[str, Edit]) -> str:
    """Write `target` like `source` with the tensors of `edits` replaced (names it lacks are not its own); returns the sha256.

    One tensor is in memory at a time. Raises `ExtrapolationError` for an edit of a dtype that cannot be edited (a quantized model).
    """
    entries, digest = open_safetensors(source).entries, hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        _put(writer, digest, reader.read(min((entry.begin for entry in entries.values()), default=-1)))
        for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
            reader.seek(entry.begin)
            if name not in edits:
                for block in _blocks(reader, entry.end - entry.begin):
                    _put(writer, digest, block)
                continue
            if entry.dtype not in WIDTHS:
                raise ExtrapolationError(
                    f"{source}: tensor {name!r} is stored as {entry.dtype}; only float32, float16 and bfloat16 models can be merged."
                )
            _put(writer, digest, edits[name](reader.read(entry.end - entry.begin), entry))
    return digest.hexdigest()


def write_tensors(tensors: Mapping[str, np.ndarray], dtype: str, target: Path) -> str:
    """Write float32 tensors as `dtype`; returns the sha256. Raises `ExtrapolationError` for values that do not fit the dtype."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.size * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with target.open("xb") as writer:
        _put(writer, digest, len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            _put(writer, digest, encoded_finite(tensor, dtype, name))
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _put(writer: IO[bytes], digest: hashlib._Hash, data: bytes) -> None:
    writer.write(data)
    digest.update(data)


def _blocks(reader: IO[bytes], size: int) -> Iterable[bytes]:
    while size > 0:
        block = reader.read(min(size, _BLOCK_BYTES))
        size -= len(block)
        yield block
