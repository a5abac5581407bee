"""`metrics.jsonl` and `samples.jsonl`: one JSON record a line, flushed as it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]


class JsonLines:
    """An append-only file of JSON records that can be rewritten as a whole; a torn last line is dropped on reading."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file: IO[str] | None = None

    def read(self) -> list[Record]:
        """All complete records; [] when there is no file."""
        if not self._path.exists():
            return []
        records: list[Record] = []
        for line in self._path.read_bytes().split(b"\n")[:-1]:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the line was torn by a kill and a later start wrote behind it
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
        return records

    def append(self, record: Record) -> None:
        """Write one record and flush it, so that whoever follows the file sees it."""
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(_line(record))
        self._file.flush()

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replace the file's content in one step."""
        self.close()
        fresh = self._path.with_suffix(".tmp")
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(_line(record) for record in records)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)

    def truncate(self, step: int) -> None:
        """Drop the records of steps after `step`."""
        self.rewrite(record for record in self.read() if record["step"] <= step)

    def close(self) -> None:
        """Close the file; appending opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
