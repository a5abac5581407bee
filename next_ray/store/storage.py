"""One interface to a folder or a bucket: whole objects, atomic writes, conditional writes, retries within a budget.

A `Storage` holds configuration only, so it can be pickled into actors; connections open at first use, once per process.
"""

from __future__ import annotations

import copy
import os
import re
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from next_ray.errors import StoreError
from next_ray.store.backend import Backend, StoredObject, Versioned
from next_ray.store.faults import ConflictError, MissingObjectError, TooLargeError, TransientStoreError
from next_ray.store.rereading import reread
from next_ray.store.usage import Operation, Usage

T = TypeVar("T")

MAX_OBJECT_BYTES = 256 * 2**30
MAX_RECORD_BYTES = 16 * 2**20
ACCESS_CHECK_S = 5.0
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+@-]*(/[A-Za-z0-9_][A-Za-z0-9._=+@-]*)*")


class Storage:
    """Objects below `url`: `file:///folder`, `file://~/folder` or `s3://bucket/prefix`.

    Args:
        url: root of all paths given to the methods.
        endpoint_url: S3 server other than AWS.
        budget_s: an operation that meets busy servers or lost connections is repeated for so long, seconds.
        quick: short timeouts, for the check at the start.

    Raises:
        StoreError: for a URL that is none of these, or that carries credentials.
    """

    def __init__(self, url: str, endpoint_url: str | None = None, budget_s: float = 60.0, quick: bool = False) -> None:
        self.scheme, self.root = _parse(url, endpoint_url)
        self.endpoint_url = endpoint_url
        self.budget_s = budget_s
        self.quick = quick
        self.usage = Usage()
        self._connect_lock = threading.Lock()
        self._backend: Backend | None = None
        self._pid = 0

    @property
    def url(self) -> str:
        """The root as a URL, `~` expanded."""
        return f"{self.scheme}://{self.root}"

    def put(self, path: str, data: bytes) -> str:
        """Write or replace an object; readers see the old bytes or the new ones. Returns its version."""
        key = self._key(path)
        return self._attempt("write", lambda: self._connected().put(key, data), len(data))

    def put_new(self, path: str, data: bytes) -> None:
        """Write an immutable object; one with the same bytes may exist already, one with others is a `ConflictError`."""
        key = self._key(path)
        try:
            self._attempt("write", lambda: self._connected().create(key, data), len(data))
        except ConflictError:
            if self.get(path) != data:
                raise

    def create_exclusive(self, path: str, data: bytes) -> str:
        """Write an object that must not exist and return its version.

        An object that holds these very bytes counts as ours: the answer to an earlier attempt may have been lost. Callers
        that race put something of their own into `data`.
        """
        key = self._key(path)
        return self._own_bytes_or_conflict(
            path, data, lambda: self._attempt("write", lambda: self._connected().create(key, data), len(data))
        )

    def replace_if(self, path: str, data: bytes, etag: str) -> str:
        """Replace an object that still is version `etag`; returns the new version or raises `ConflictError`."""
        key = self._key(path)
        return self._own_bytes_or_conflict(
            path, data, lambda: self._attempt("write", lambda: self._connected().replace(key, data, etag), len(data))
        )

    def get(self, path: str, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """An object's bytes; raises `MissingObjectError`, or `TooLargeError` before anything is read."""
        key = self._key(path)
        data = reread(lambda: self._attempt("read", lambda: self._connected().get(key, max_bytes)))
        self.usage.moved("read", len(data))
        return data

    def read_versioned(self, path: str, max_bytes: int = MAX_RECORD_BYTES) -> Versioned:
        """A small object with the version that `replace_if` needs and its age by the storage's clock."""
        key = self._key(path)
        found = reread(lambda: self._attempt("read", lambda: self._connected().read(key, max_bytes)))
        self.usage.moved("read", len(found.data))
        return found

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        key = self._key(path)
        return self._attempt("list", lambda: self._connected().exists(key))

    def entries(self, prefix: str) -> list[StoredObject]:
        """All objects below the folder `prefix`, by path, fresh from the storage; none when there is no such folder."""
        key = self._key(prefix)
        found = self._attempt("list", lambda: self._connected().entries(key))
        relative = [StoredObject(entry.key.removeprefix(f"{self.root}/"), entry.size_bytes, entry.age_s) for entry in found]
        return sorted(relative, key=lambda entry: entry.key)

    def list(self, prefix: str) -> list[str]:
        """Paths of all objects below the folder `prefix`, sorted."""
        return [entry.key for entry in self.entries(prefix)]

    def runs(self) -> list[str]:
        """Names of the folders directly below the root that can be runs, sorted; an emptied one may be among them."""
        return sorted(name for name in self._attempt("list", lambda: self._connected().folders(self.root)) if _PATH.fullmatch(name))

    def delete(self, path: str) -> None:
        """Remove an object; a missing one is no error."""
        key = self._key(path)
        self._attempt("delete", lambda: self._connected().delete(key))

    def sweep_torn(self, prefix: str, min_age_s: float) -> int:
        """Remove what interrupted writes below `prefix` left behind for at least `min_age_s`; returns how many."""
        key = self._key(prefix)
        return self._attempt("delete", lambda: self._connected().sweep_torn(key, min_age_s))

    def with_budget(self, budget_s: float, quick: bool = False) -> Storage:
        """The same storage with another retry budget and connections of its own; `usage` counts both."""
        other = copy.copy(self)
        other.budget_s, other.quick, other.usage = budget_s, quick, self.usage
        return other

    def check_access(self) -> None:
        """Try everything a run needs with one small object, in about ten seconds at most.

        Raises:
            StoreError: unreachable server, rejected credentials, missing bucket, read-only folder, or a server that ignores conditions.
        """
        with self.with_budget(ACCESS_CHECK_S, quick=True) as probe:
            _probe(probe, f"access-check-{uuid.uuid4().hex}")

    def close(self) -> None:
        """Close connections; the next operation opens new ones."""
        with self._connect_lock:
            backend, self._backend = self._backend, None
            if backend is not None and self._pid == os.getpid():
                backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("usage", "_connect_lock", "_backend", "_pid")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, usage=Usage(), _connect_lock=threading.Lock(), _backend=None, _pid=0)

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def _key(self, path: str) -> str:
        if len(path) > 500 or not _PATH.fullmatch(path):
            raise StoreError(f"{path[:100]!r} is no path inside the store: names of letters, digits and ._=+@- joined by slashes.")
        return f"{self.root}/{path}"

    def _connected(self) -> Backend:
        with self._connect_lock:
            if self._backend is None or self._pid != os.getpid():
                self._backend, self._pid = self._connect(), os.getpid()
            return self._backend

    def _connect(self) -> Backend:
        if self.scheme == "file":
            from next_ray.store.local import LocalBackend

            return LocalBackend()
        from next_ray.store.s3 import S3Backend, S3Options

        if self.quick:
            return S3Backend(S3Options(self.endpoint_url, self.budget_s, connect_timeout_s=3.0, read_timeout_s=5.0, attempts=1))
        return S3Backend(S3Options(self.endpoint_url, self.budget_s))

    def _attempt(self, kind: Operation, operation: Callable[[], T], num_bytes: int = 0) -> T:
        """Run, repeating transient failures with growing random pauses until the budget is used up; `num_bytes` are written."""
        retrying = Retrying(
            retry=retry_if_exception_type(TransientStoreError),
            stop=stop_after_delay(self.budget_s),
            wait=wait_random_exponential(multiplier=0.2, max=5.0),
            before_sleep=lambda _: self.usage.retried(),
            reraise=True,
        )
        try:
            with self.usage.counted(kind, _is_fault):
                found = retrying(operation)
            if num_bytes:
                self.usage.moved(kind, num_bytes)
            return found
        except TransientStoreError as error:
            raise StoreError(f"{error} Gave up after {self.budget_s:.0f} s; check the network, store.url and store.endpoint_url.") from None

    def _own_bytes_or_conflict(self, path: str, data: bytes, write: Callable[[], str]) -> str:
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError(f"{path}: {len(data)} bytes are too many for a conditional write; at most {MAX_RECORD_BYTES}")
        try:
            return write()
        except ConflictError:
            try:
                current = self.read_versioned(path)
            except (MissingObjectError, TooLargeError):
                current = None
            if current is None or current.data != data:
                raise
            return current.etag


def _is_fault(error: BaseException) -> bool:
    """Whether an operation failed, in contrast to an answer that callers expect."""
    return isinstance(error, StoreError) and not isinstance(error, ConflictError | MissingObjectError | TooLargeError)


def _probe(storage: Storage, path: str) -> None:
    """List, create, lose two conditional writes, read, delete."""
    storage.list(path)
    etag = storage.create_exclusive(path, b"1")
    try:
        for attempt in (lambda: storage.create_exclusive(path, b"2"), lambda: storage.replace_if(path, b"3", "0" * 32)):
            try:
                attempt()
            except ConflictError:
                continue
            raise StoreError(
                f"{storage.url} ignores conditional writes (If-None-Match, If-Match), so two drivers could write one run. "
                "Use an S3 server that enforces them, or a file:// store."
            )
        storage.replace_if(path, b"4", etag)
        if storage.get(path) != b"4":
            raise StoreError(f"{storage.url} does not return what was written last; a consistent store is needed.")
    finally:
        storage.delete(path)


def _parse(url: str, endpoint_url: str | None) -> tuple[str, str]:
    """Scheme and root of a store URL."""
    for value, name in ((url, "store.url"), (endpoint_url or "", "store.endpoint_url")):
        if "@" in urlsplit(value).netloc or "?" in value:
            raise StoreError(
                f"{name} carries credentials or a query; leave them out. Credentials come from AWS_ACCESS_KEY_ID and the like."
            )
    if endpoint_url is not None and not re.match(r"https?://[^/]", endpoint_url):
        raise StoreError(f"store.endpoint_url {endpoint_url!r} is not a URL such as http://host:port.")
    scheme, found, rest = url.partition("://")
    if scheme == "file" and found and rest.strip("/"):
        return "file", str(Path(rest).expanduser().absolute())
    if scheme == "s3" and found:
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if _BUCKET.fullmatch(bucket) and (not prefix or _PATH.fullmatch(prefix)):
            return "s3", f"{bucket}/{prefix}".rstrip("/")
        raise StoreError(f"store.url {url!r} is not s3://bucket/prefix: a bucket has 3 to 63 lower-case letters, digits, dots or hyphens.")
    raise StoreError(f"store.url {url!r} is not understood; use file:///folder, file://~/folder or s3://bucket/prefix.")
