"""Objects as files: atomic, durable writes, and conditional ones that hold between processes.

A write goes to a hidden temporary file beside its target, is flushed to disk, and then takes the target's name in one
system call, so that a reader sees all of it or nothing. Conditional writes hold an exclusive `flock` on a hidden file of
the folder. Names that begin with a dot are never objects.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from next_ray.errors import StoreError
from next_ray.store.backend import StoredObject, Versioned
from next_ray.store.faults import ConflictError, MissingObjectError, TooLargeError, TransientStoreError

TEMPORARY_PREFIX = ".tmp-"
LOCK_FILE = ".lock"
LOCK_WAIT_S = 10.0
_PASSING = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT)
"""What network file systems answer for a while when their server restarts."""


class LocalBackend:
    """Keys are absolute paths."""

    def __init__(self) -> None:
        self._files: Any = fsspec.filesystem("file", skip_instance_cache=True)

    def get(self, key: str, max_bytes: int) -> bytes:
        """The file's bytes."""
        with _explained(key, "read"):
            size = os.stat(key).st_size
            if size > max_bytes:
                raise TooLargeError(f"{key} has {size} bytes; at most {max_bytes} are read.")
            return self._files.cat_file(key)

    def read(self, key: str, max_bytes: int) -> Versioned:
        """The file's bytes with their version (a hash of the content) and age."""
        data = self.get(key, max_bytes)
        with _explained(key, "read"):
            age_s = max(0.0, time.time() - os.stat(key).st_mtime)
        return Versioned(data, _version(data), age_s)

    def exists(self, key: str) -> bool:
        """Whether the file is there."""
        with _explained(key, "read"):
            return self._files.isfile(key)

    def put(self, key: str, data: bytes) -> str:
        """Write or replace the file in one step."""
        with _explained(key, "write"), _temporary(key, data) as temporary:
            os.replace(temporary, key)
            _flush_folder(key)
        return _version(data)

    def create(self, key: str, data: bytes) -> str:
        """Write a file that must not exist yet."""
        with _explained(key, "write"), _locked(key), _temporary(key, data) as temporary:
            if os.path.lexists(key):
                raise ConflictError(f"{key} exists already.")
            os.replace(temporary, key)
            _flush_folder(key)
        return _version(data)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Replace the file if its version still is `etag`."""
        with _explained(key, "write"), _locked(key):
            try:
                current = _version(Path(key).read_bytes())
            except FileNotFoundError:
                current = None
            if current != etag:
                raise ConflictError(f"{key} is no longer the version that was read.")
            with _temporary(key, data) as temporary:
                os.replace(temporary, key)
                _flush_folder(key)
        return _version(data)

    def entries(self, folder: str) -> list[StoredObject]:
        """All files below `folder`, hidden ones left out."""
        return [entry for entry in self._all(folder) if not os.path.basename(entry.key).startswith(".")]

    def folders(self, folder: str) -> list[str]:
        """Folders directly in `folder`, hidden ones left out."""
        try:
            with _explained(folder, "list"):
                return [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        except MissingObjectError:
            return []

    def delete(self, key: str) -> None:
        """Remove the file if it is there."""
        with _explained(key, "delete"), suppress(FileNotFoundError):
            self._files.rm_file(key)

    def sweep_torn(self, folder: str, min_age_s: float) -> int:
        """Remove temporary files that a crash left behind; returns how many."""
        torn = [entry for entry in self._all(folder) if os.path.basename(entry.key).startswith(TEMPORARY_PREFIX)]
        old = [entry for entry in torn if entry.age_s >= min_age_s]
        for entry in old:
            self.delete(entry.key)
        return len(old)

    def close(self) -> None:
        """Nothing is held open."""

    def _all(self, folder: str) -> list[StoredObject]:
        now = time.time()
        with _explained(folder, "list"):
            found = self._files.find(folder, detail=True)
        return [StoredObject(name, int(info["size"]), max(0.0, now - info["mtime"])) for name, info in found.items() if name != folder]


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _temporary(key: str, data: bytes) -> Iterator[str]:
    """A flushed file beside `key` that holds `data`; gone afterwards unless it was renamed."""
    folder, name = os.path.split(key)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex}-{name}"[:250])
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


@contextmanager
def _locked(key: str) -> Iterator[None]:
    """Hold the lock of the folder of `key`; the kernel frees it when its holder dies. The file stays: removing it would race."""
    folder = os.path.dirname(key)
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(os.path.join(folder, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TransientStoreError(f"another process has held the lock of {key} for {LOCK_WAIT_S:.0f} s.") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _flush_folder(key: str) -> None:
    """Make a rename durable."""
    descriptor = os.open(os.path.dirname(key), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(key: str, verb: str) -> Iterator[None]:
    """Turn operating system errors into store errors that name the file and the way out."""
    try:
        yield
    except FileNotFoundError:
        raise MissingObjectError(f"{key} does not exist.") from None
    except OSError as error:
        remedy = {
            errno.EACCES: "Give this user the right to it, or set store.url to a folder it may write.",
            errno.EPERM: "Give this user the right to it, or set store.url to a folder it may write.",
            errno.EROFS: "The file system is read-only; set store.url to a folder that can be written.",
            errno.ENOSPC: "The disk is full; free space or set store.url to another disk.",
            errno.EFBIG: "Files may not be so large here; raise the limit (ulimit -f), or set store.url to another disk.",
            errno.EDQUOT: "The disk quota is used up; free space or set store.url to another disk.",
            errno.ENOTDIR: "A part of the path is a file; set store.url to a folder.",
            errno.EISDIR: "A folder has the object's name; move it away or set store.url to another folder.",
            errno.ENOLCK: "The file system offers no locks; set store.url to a disk that does, or to S3.",
        }.get(error.errno or 0, "Check the disk under store.url.")
        kind = TransientStoreError if error.errno in _PASSING else StoreError
        raise kind(f"Cannot {verb} {key}: {error.strerror or error}. {remedy}") from None
