"""Small JSON beside the checkpoints: what the run is bound to, and records such as gate decisions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from next_ray.errors import CorruptCheckpointError, StoreError
from next_ray.store.faults import ConflictError, MissingObjectError
from next_ray.store.layout import IDENTITY, RECORDS
from next_ray.store.rereading import reread
from next_ray.store.storage import MAX_RECORD_BYTES, Storage

IDENTITY_FORMAT = "next-ray-run/1"


class Records:
    """The JSON documents of one run."""

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage = storage
        self._run = run

    def put(self, path: str, content: Any) -> None:
        """Write or replace the record at `path`. Raises ValueError for what JSON cannot hold."""
        self._storage.put(self._path(path), encode_json(content))

    def get(self, path: str) -> Any:
        """The record's content; None when there is none."""
        full = self._path(path)
        try:
            return reread(lambda: decode_json(self._storage.get(full, MAX_RECORD_BYTES), f"{self._storage.url}/{full}"))
        except MissingObjectError:
            return None

    def list(self, prefix: str = "") -> list[str]:
        """Paths of the records below the folder `prefix`."""
        root = f"{self._run}/{RECORDS}/"
        return [path.removeprefix(root).removesuffix(".json") for path in self._storage.list((root + prefix).rstrip("/"))]

    def claim_identity(self, identity: Mapping[str, Any]) -> None:
        """Write `run.json`, or compare with the one that is there."""
        path = f"{self._run}/{IDENTITY}"
        data = encode_json({"format": IDENTITY_FORMAT, "identity": dict(identity)})
        try:
            self._storage.create_exclusive(path, data)
        except ConflictError:
            theirs = self.identity()
            differences = _differences(theirs, json.loads(data)["identity"])
            if differences:
                raise StoreError(
                    f"The run directory {self._storage.url}/{self._run} belongs to another model: {'; '.join(differences)}. "
                    "Choose another run.name, or go back to the configuration this run was started with."
                ) from None

    def identity(self) -> Mapping[str, Any]:
        """What `run.json` says; empty when there is none."""
        path = f"{self._run}/{IDENTITY}"
        origin = f"{self._storage.url}/{path}"
        try:
            found = reread(lambda: decode_json(self._storage.get(path, MAX_RECORD_BYTES), origin))
        except MissingObjectError:
            return {}
        identity = found.get("identity") if isinstance(found, dict) else None
        if not isinstance(identity, dict):
            raise StoreError(f"{origin} does not say what the run is. Restore it from a copy, or choose another run.name.")
        return identity

    def _path(self, path: str) -> str:
        return f"{self._run}/{RECORDS}/{path.removesuffix('.json')}.json"


def encode_json(content: Any) -> bytes:
    """Canonical JSON: keys sorted, two spaces, a final newline; at most 16 MiB."""
    data = (json.dumps(content, sort_keys=True, indent=2, allow_nan=False) + "\n").encode("ascii")
    if len(data) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {len(data)} bytes is too large; at most {MAX_RECORD_BYTES}")
    return data


def decode_json(data: bytes, origin: str) -> Any:
    """Parse JSON; raises `CorruptCheckpointError` naming `origin`."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"{origin} is not readable JSON ({type(error).__name__}). Restore it from a copy, or delete it."
        ) from None


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    differing = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    return [f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here" for key in differing]
