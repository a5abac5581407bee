"""What a kind of storage must offer; `local.py` and `s3.py` implement it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StoredObject:
    """One listed object: key (or path below the storage's root), size, and seconds since it was written."""

    key: str
    size_bytes: int
    age_s: float


@dataclass(frozen=True)
class Versioned:
    """An object's bytes, the version to name in a conditional replacement, and its age by the storage's own clock."""

    data: bytes
    etag: str
    age_s: float


class Backend(Protocol):
    """Operations on whole objects. Raises `MissingObjectError`, `ConflictError`, `TransientStoreError`, `TooLargeError`, `StoreError`."""

    def get(self, key: str, max_bytes: int) -> bytes:
        """All bytes of an object."""
        ...

    def read(self, key: str, max_bytes: int) -> Versioned:
        """All bytes of a small object, with version and age."""
        ...

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        ...

    def put(self, key: str, data: bytes) -> str:
        """Write or replace in one step; returns the new version where the storage tells it."""
        ...

    def create(self, key: str, data: bytes) -> str:
        """Write an object that must not exist; returns its version."""
        ...

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Replace an object that must still be version `etag`; returns the new version."""
        ...

    def entries(self, folder: str) -> list[StoredObject]:
        """Every object below a folder."""
        ...

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder that hold objects, or did."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""
        ...

    def sweep_torn(self, folder: str, min_age_s: float) -> int:
        """Remove what interrupted writes left behind; returns how many."""
        ...

    def close(self) -> None:
        """Let go of connections; may be called twice."""
        ...
