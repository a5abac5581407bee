"""Rows as the bytes of a parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def parquet_bytes(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> bytes:
    """A parquet file of `columns` (name to Arrow's name of the type), in which a row's missing value is null.

    Lone surrogates, which UTF-8 has no bytes for, become question marks. Raises `pyarrow.ArrowInvalid` for a value of another type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    clean = [{name: _encodable(row.get(name)) for name in columns} for row in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(clean, schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value
