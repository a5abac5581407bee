"""Rows of JSONL, JSON, parquet and CSV files, local or on any fsspec file system, as prompts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from next_ray.config import FileSource
from next_ray.data.formats import FormatError, read_row
from next_ray.data.prompts import make_prompt
from next_ray.errors import DataError
from next_ray.types import Prompt

EXTENSIONS = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class Row:
    """A row and where it stands, for messages."""

    place: str
    value: Any


def load_file(source: FileSource, verifier: str, seed: int, storage_options: Mapping[str, Any]) -> Iterator[Prompt]:
    """Prompts of a file in its order, duplicates included; raises `DataError` naming file and line (row in parquet)."""
    for row in read_rows(source.path, storage_options):
        try:
            problem = read_row(row.value, source.prompt_field, source.answer_field, seed)
        except FormatError as error:
            raise DataError(f"{source.path}, {row.place}: {error}") from error
        yield make_prompt(problem.messages, problem.answer, verifier, problem.metadata)


def read_rows(path: str, storage_options: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a file as they are; raises `DataError` naming the file, and the line where there is one."""
    readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".csv": _csv}
    extension = next((known for known in EXTENSIONS if path.lower().endswith(known)), None)
    if extension is None:
        raise DataError(f"{path}: the extension decides the format; {', '.join(EXTENSIONS)} are read.")
    import fsspec

    try:
        with fsspec.open(path, "rb", **storage_options) as file:
            yield from readers[extension](path, file)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Check data.train.path or data.held_out.path.") from error
    except PermissionError as error:
        raise DataError(f"{path}: access denied ({error}). Check the credentials in the environment and the file's permissions.") from error
    except (OSError, ImportError, ValueError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: cannot be read ({cause}). Check the address, the endpoint and the network.") from error
    except Exception as error:
        # botocore's errors (no credentials, endpoint unreachable) share no base class with the standard library's.
        if not type(error).__module__.startswith("botocore"):
            raise
        raise DataError(f"{path}: {error}. Check store.endpoint_url and the AWS credentials in the environment.") from error


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


def _parquet(path: str, file: IO[bytes]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches():
            for entry in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", entry)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable parquet file ({error}). Write it again, or convert it to JSONL.") from error
