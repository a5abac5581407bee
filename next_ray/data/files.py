"""Rows of JSONL, JSON, parquet and CSV files, wherever they are, as prompts."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from next_ray.config import FileSource
from next_ray.data.formats import TOP_FIELDS, TRAIN, FormatError, Setting, read_row
from next_ray.data.places import extension_of, find_files, readable
from next_ray.data.prompts import make_prompt
from next_ray.errors import DataError
from next_ray.types import Prompt

ROWS_AT_ONCE = 1024
"""Rows of a parquet file that are Python objects at the same time."""


@dataclass(frozen=True)
class Row:
    """A row and where it stands, for messages."""

    place: str
    value: Any


@dataclass(frozen=True)
class Part:
    """A file of a source.

    Args:
        name: in its file system.
        inside: what stands before the place of a row: nothing, or the file's own name where the source has several.
        num_bytes: its size.
    """

    name: str
    inside: str
    num_bytes: int


def load_file(
    source: FileSource, verifier: str, seed: int, storage_options: Mapping[str, Any], setting: Setting = TRAIN
) -> Iterator[Prompt]:
    """Prompts of a file, folder or pattern in its order, duplicates included; raises `DataError` naming file and line (or row)."""
    rows = read_rows(source.path, storage_options, columns_of(source), setting)
    return prompts_of(rows, source, verifier, seed, setting)


def columns_of(source: FileSource) -> set[str]:
    """The columns of a table that `prompts_of` can need."""
    named = [name for field in (source.prompt_field, source.answer_field) if field for name in (field, field.partition(".")[0])]
    return {*TOP_FIELDS, *named}


def prompts_of(rows: Iterable[Row], source: FileSource, verifier: str, seed: int, setting: Setting = TRAIN) -> Iterator[Prompt]:
    """Rows understood; raises `DataError` naming the row."""
    for row in rows:
        try:
            problem = read_row(row.value, source.prompt_field, source.answer_field, seed, setting)
        except FormatError as error:
            raise DataError(f"{source.path}, {row.place}: {error}") from error
        yield make_prompt(problem.messages, problem.answer, verifier, problem.metadata)


def read_rows(
    path: str, storage_options: Mapping[str, Any], columns: Collection[str] | None = None, setting: Setting = TRAIN
) -> Iterator[Row]:
    """The rows of a file, or of all files of a folder or pattern, as they are; one batch of them is held at a time.

    Args:
        path: what to read; see `places.find_files`.
        storage_options: passed to fsspec on S3.
        columns: the only ones to read of parquet files, whose other columns are then not even fetched; None: all. All are read
            as well where the file has fewer than two of them, so that a complaint can name what is there.
        setting: what the user calls the path.

    Raises:
        DataError: names the file, and the line where there is one.
    """
    with readable(path, setting.path):
        files, parts = find_parts(path, storage_options)
        for part in parts:
            yield from rows_of_part(path, files, part, columns)


def find_parts(path: str, storage_options: Mapping[str, Any]) -> tuple[Any, list[Part]]:
    """The file system of a path and its files; see `places.find_files`. Call it within `places.readable`."""
    files, names = find_files(path, storage_options)
    alone = len(names) == 1 and path.endswith(names[0].rpartition("/")[2])
    return files, [Part(name, "" if alone else f"{name.rpartition('/')[2]}, ", int(files.size(name) or 0)) for name in names]


def rows_of_part(
    path: str, files: Any, part: Part, columns: Collection[str] | None, groups: tuple[int, int] | None = None
) -> Iterator[Row]:
    """The rows of one file of a source, or of a parquet file's row groups `groups[0]` to `groups[1] - 1`; within `places.readable`."""
    place = f"{path}, {part.inside.removesuffix(', ')}" if part.inside else path
    with files.open(part.name, "rb") as file, _whole(place, part, file):
        for row in _rows_of(place, str(extension_of(part.name)), file, columns, groups):
            yield Row(part.inside + row.place, row.value)


@contextmanager
def _whole(place: str, part: Part, file: IO[bytes]) -> Iterator[None]:
    """A transfer that ended early is no shorter file: the rows so far may all be sound. A parquet file has its own end mark."""
    failure = None
    try:
        yield
    except DataError as error:
        failure = error
    if not part.name.lower().endswith(".parquet") and not file.read(1) and file.tell() < part.num_bytes:
        raise DataError(
            f"{place}: only {file.tell()} of {part.num_bytes} bytes came, and then the file ended. Run the command again; if that does not "
            "help, fetch the file and give the local path."
        ) from failure
    if failure is not None:
        raise failure


def _rows_of(path: str, extension: str, file: IO[bytes], columns: Collection[str] | None, groups: tuple[int, int] | None) -> Iterator[Row]:
    if extension == ".parquet":
        return _parquet(path, file, columns, groups)
    return {".jsonl": _jsonl, ".json": _json, ".csv": _csv}[extension](path, file)


def _jsonl(path: str, file: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            place = f"line {number}"
            yield Row(place, _parse(path, place, line))


def _json(path: str, file: IO[bytes]) -> Iterator[Row]:
    """One array of objects, an object with the array under `data`, or JSON lines despite the extension."""
    content = file.read().removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        return
    try:
        document = json.loads(content)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error}). An array of objects is expected.") from error
        for number, line in enumerate(content.splitlines(), start=1):
            if line.strip():
                place = f"line {number}"
                yield Row(place, _parse(path, place, line))
        return
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    entries = document if isinstance(document, list) else [document]
    for number, entry in enumerate(entries, start=1):
        yield Row(f"entry {number}", entry)


def _parse(path: str, place: str, line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, {place}: not UTF-8 text ({error.reason} at byte {error.start}). Save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, {place}: not valid JSON ({error}). One JSON object per line is expected.") from error


def _csv(path: str, file: IO[bytes]) -> Iterator[Row]:
    """Rows under the names of the first one; cells may hold line breaks in quotes."""
    lines = (line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line for number, line in enumerate(file))
    reader = csv.reader((line.decode("utf-8") for line in lines), strict=True)
    try:
        names = next(reader, None)
        cells = (row for row in reader if row)
        for number, row in enumerate(cells, start=1):
            if len(row) != len(names or ()):
                raise DataError(f"{path}, row {number}: {len(row)} cells under {len(names or ())} names. Check quotes and commas.")
            yield Row(f"row {number}", dict(zip(names or (), row, strict=True)))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save the file as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}). Check the quotes.") from error


def _parquet(path: str, file: IO[bytes], columns: Collection[str] | None, groups: tuple[int, int] | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        start, end = groups or (0, table.num_row_groups)
        number = sum(table.metadata.row_group(group).num_rows for group in range(start))
        wanted = [name for name in table.schema_arrow.names if columns is None or name in columns]
        # One row group at a time: asked for all of them, the reader fetches the whole file before the first row.
        for group in range(start, end):
            for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=wanted if len(wanted) > 1 else None):
                for entry in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", entry)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable parquet file ({error}). Write it again, or convert it to JSONL.") from error
