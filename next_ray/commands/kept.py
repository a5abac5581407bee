"""An evaluation's output folder: its settings, and every finished block of prompts, so that a rerun goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from next_ray.data.parquet import parquet_bytes
from next_ray.errors import ConfigError

SETTINGS_FILE = "settings.json"
PARTS = "parts"
COLUMNS = {
    **dict.fromkeys(("model", "set", "prompt_id"), "string"),
    "sample": "int32",
    **dict.fromkeys(("answer", "completion", "vote"), "string"),
    "correct": "float64",
    **dict.fromkeys(("verdict", "finish"), "string"),
    "tokens": "int32",
}
"""Of the samples as a table, with Arrow's names of their types."""


class KeptResults:
    """Blocks of samples of (model, set, block), each a file that appears whole.

    Raises:
        ConfigError: the folder belongs to an evaluation with other settings, or cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / SETTINGS_FILE
        try:
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
            if path.exists():
                _same(folder, json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(settings)))
            else:
                self.write(SETTINGS_FILE, json.dumps(settings, indent=1))
        except OSError as error:
            raise ConfigError(f"--output {folder} cannot be used: {error.strerror or error}. Choose another folder.") from None
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON ({error}). Choose another folder, or remove this one.") from None

    def read(self, identity: str, name: str, block: int) -> list[dict[str, Any]] | None:
        """The samples of a finished block, one row a sample; None when it is still to be done."""
        path = self._part(identity, name, block)
        if not path.exists():
            return None
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def keep(self, identity: str, name: str, block: int, rows: list[dict[str, Any]]) -> None:
        """Keep a finished block."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.write(str(self._part(identity, name, block).relative_to(self.folder)), text)

    def write_samples(self, rows: Iterable[Mapping[str, Any]], as_parquet: bool) -> Path:
        """Write all samples, `samples.jsonl` or `samples.parquet`; returns where."""
        if as_parquet:
            return self.write("samples.parquet", parquet_bytes(rows, COLUMNS))
        return self.write("samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the folder, whole or not at all."""
        path = self.folder / name
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            os.replace(draft, path)
        except OSError as error:
            raise ConfigError(f"{path} could not be written: {error.strerror or error}. The same command goes on once it can be.") from None
        finally:
            draft.unlink(missing_ok=True)
        return path

    def _part(self, identity: str, name: str, block: int) -> Path:
        model = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return self.folder / PARTS / f"{model}-{name}-{block:05d}.jsonl"


def _same(folder: Path, before: Any, now: Any) -> None:
    if before == now:
        return
    known = before if isinstance(before, dict) else {}
    changed = [name for name in now if known.get(name) != now[name]] or ["settings"]
    details = "; ".join(f"{name} was {str(known.get(name))[:200]}, now {str(now.get(name))[:200]}" for name in changed)
    raise ConfigError(f"--output {folder} holds an evaluation with other settings ({details}). Choose another folder.")
