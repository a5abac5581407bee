"""Objects in S3 through s3fs: one request where one is enough, conditional puts, no cached listings.

Credentials come from the environment or the instance. s3fs runs its event loop in a thread of its own, so these blocking
calls work from any thread, one that runs an asyncio loop included.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import s3fs
from fsspec.asyn import sync

from next_ray.errors import CorruptCheckpointError, StoreError
from next_ray.store.backend import StoredObject, Versioned
from next_ray.store.faults import ConflictError, MissingObjectError, TooLargeError, TransientStoreError, scrub

T = TypeVar("T")

SINGLE_REQUEST_BYTES = 64 * 2**20
PART_BYTES = 32 * 2**20
SLOWEST_BYTES_PER_S = 2**20
"""A transfer may take its size at this rate beside the time of the operation; one that drips is given up."""
_CONFLICT_CODES = ("PreconditionFailed", "412")
_TRANSIENT_CODES = (
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    # What was sent did not arrive as it was.
    "BadDigest",
    "IncompleteBody",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict",
    "409",
    "429",
)
_BAD_CREDENTIAL_CODES = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "AuthorizationHeaderMalformed",
)


@dataclass(frozen=True)
class S3Options:
    """Where the server is and how long to wait for it; a request is sent at most `attempts` times below `Storage`'s own retries.

    An operation ends after `operation_timeout_s`, and the time that its bytes need at the slowest rate.
    """

    endpoint_url: str | None
    operation_timeout_s: float
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    attempts: int = 3


class S3Backend:
    """Keys are `bucket/key`."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._files: Any = s3fs.S3FileSystem(
            endpoint_url=options.endpoint_url,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": options.connect_timeout_s,
                "read_timeout": options.read_timeout_s,
                "retries": {"mode": "standard", "total_max_attempts": options.attempts},
            },
        )
        self._files.retries = 1

    def get(self, key: str, max_bytes: int) -> bytes:
        """The object's bytes; a large object comes in parallel ranges."""
        small = self._run(key, "read", lambda: self._fetch(key, max_bytes), min(max_bytes, SINGLE_REQUEST_BYTES))
        if small is not None:
            return small.data
        return self._run(key, "read", lambda: self._files._cat_file(key), max_bytes)

    def read(self, key: str, max_bytes: int) -> Versioned:
        """The bytes of a small object with its ETag, and its age by the server's clock."""
        if max_bytes > SINGLE_REQUEST_BYTES:
            raise ValueError(f"only objects up to {SINGLE_REQUEST_BYTES} bytes are read with their version")
        small = self._run(key, "read", lambda: self._fetch(key, max_bytes), min(max_bytes, SINGLE_REQUEST_BYTES))
        assert small is not None
        return small

    def exists(self, key: str) -> bool:
        """Whether the object exists: asked of the object itself, since an emptied prefix may still be listed."""
        try:
            self._run(key, "read", lambda: self._call("head_object", key))
        except MissingObjectError:
            return False
        return True

    def put(self, key: str, data: bytes) -> str:
        """Write or replace the object; large ones in parts, visible when all are there."""
        return self._write(key, data, {})

    def create(self, key: str, data: bytes) -> str:
        """Write the object if it does not exist (If-None-Match)."""
        return self._write(key, data, {"IfNoneMatch": "*"})

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Replace the object if its ETag still is `etag` (If-Match)."""
        try:
            return self._write(key, data, {"IfMatch": etag})
        except MissingObjectError:
            raise ConflictError(f"s3://{key} no longer exists.") from None

    def entries(self, folder: str) -> list[StoredObject]:
        """All objects below `folder`."""
        now = datetime.now(UTC)
        found = self._run(folder, "list", lambda: self._files._lsdir(folder, delimiter="", refresh=True))
        files = [info for info in found if info["type"] == "file" and not info["name"].endswith("/")]
        return [StoredObject(info["name"], int(info["size"]), max(0.0, (now - info["LastModified"]).total_seconds())) for info in files]

    def folders(self, folder: str) -> list[str]:
        """Common prefixes directly below `folder`."""
        found = self._run(folder, "list", lambda: self._files._lsdir(folder, refresh=True))
        return [info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory"]

    def delete(self, key: str) -> None:
        """Remove the object."""
        try:
            self._run(key, "delete", lambda: self._call("delete_object", key))
        except MissingObjectError:
            return

    def sweep_torn(self, folder: str, min_age_s: float) -> int:
        """Abort multipart uploads that were never completed."""
        bucket, _, prefix = folder.partition("/")
        now = datetime.now(UTC)
        listed = self._run(folder, "list", lambda: self._files._call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/"))
        torn = [
            upload
            for upload in listed.get("Uploads", [])
            if upload["Key"].startswith(f"{prefix}/") and (now - upload["Initiated"]).total_seconds() >= min_age_s
        ]
        for upload in torn:
            key, upload_id = f"{bucket}/{upload['Key']}", upload["UploadId"]
            self._run(key, "delete", partial(self._call, "abort_multipart_upload", key, UploadId=upload_id))
        return len(torn)

    def close(self) -> None:
        """Close the connections."""
        files, self._files = self._files, None
        if files is not None and files._s3 is not None:
            files.close_session(files.loop, files._s3creator)

    def _call(self, method: str, key: str, **arguments: Any) -> Awaitable[Any]:
        bucket, _, name = key.partition("/")
        return self._files._call_s3(method, Bucket=bucket, Key=name, **arguments)

    async def _fetch(self, key: str, max_bytes: int) -> Versioned | None:
        """One request; None when the object is too large for one."""
        response = await self._call("get_object", key)
        body, size = response["Body"], response["ContentLength"]
        try:
            if size > max_bytes:
                raise TooLargeError(f"s3://{key} has {size} bytes; at most {max_bytes} are read.")
            if size > SINGLE_REQUEST_BYTES:
                return None
            data = await body.read()
        finally:
            body.close()
        return Versioned(data, response["ETag"], _age_s(response))

    def _write(self, key: str, data: bytes, condition: dict[str, str]) -> str:
        if len(data) <= SINGLE_REQUEST_BYTES:
            return self._run(key, "write", lambda: self._call("put_object", key, Body=data, **condition), len(data))["ETag"]
        if "IfMatch" in condition:
            raise ValueError(f"only objects up to {SINGLE_REQUEST_BYTES} bytes are replaced conditionally")
        mode = "create" if condition else "overwrite"
        self._run(key, "write", lambda: self._files._pipe_file(key, data, chunksize=PART_BYTES, mode=mode), len(data))
        return self._run(key, "read", lambda: self._call("head_object", key))["ETag"]

    def _run(self, key: str, verb: str, start: Callable[[], Awaitable[T]], num_bytes: int = 0) -> T:
        async def operation() -> T:
            await self._files.set_session()
            return await start()

        if self._files is None:
            raise StoreError(f"Cannot {verb} s3://{key}: the storage is closed.")
        with _explained(key, verb, self._options.endpoint_url):
            timeout = self._options.operation_timeout_s + num_bytes / SLOWEST_BYTES_PER_S
            result: Any = sync(self._files.loop, operation, timeout=timeout)
        return result


def _age_s(response: Any) -> float:
    """Seconds since the last write; both times are the server's, so that clocks of other machines do not matter."""
    modified = response["LastModified"]
    date = response["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    return max(0.0, (now - modified).total_seconds())


@contextmanager
def _explained(key: str, verb: str, endpoint_url: str | None) -> Iterator[None]:
    """Turn what s3fs, botocore and aiohttp raise into store errors; nothing of the original chain is kept, as it may hold headers."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        translated = _translate(error, key, verb, endpoint_url)
        if translated is None:
            raise
        raise translated from None


def _translate(error: Exception, key: str, verb: str, endpoint_url: str | None) -> StoreError | None:
    """The store error for `error`, or None when it is a defect of the caller's."""
    from aiohttp import ClientError as AiohttpError
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
    )

    bucket = key.partition("/")[0]
    server = endpoint_url or "AWS S3"
    place = f"Cannot {verb} s3://{key} at {server}"
    client = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(client, ClientError):
        return _from_response(client, place, bucket)
    if isinstance(error, FileExistsError):
        return ConflictError(f"s3://{key} exists already.")
    if isinstance(error, FileNotFoundError):
        return MissingObjectError(f"s3://{key} does not exist.")
    if isinstance(error, FlexibleChecksumError):
        return CorruptCheckpointError(f"{place}: what arrives does not match its checksum. Restore it from a copy, if it is damaged there.")
    if isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError, AiohttpError, OSError, TimeoutError)):
        return TransientStoreError(f"{place}: {type(error).__name__}: {scrub(str(error)) or 'no answer in time'}.")
    if isinstance(error, BotoCoreError):
        remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where the instance has a role, and check AWS_PROFILE."
        return StoreError(f"{place}: {scrub(str(error))}. {remedy}")
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return StoreError(f"{place}: {scrub(str(error))}. Set store.endpoint_url to a URL such as http://host:port.")
    return None


def _from_response(error: Any, place: str, bucket: str) -> StoreError:
    """The store error for what the server answered."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _CONFLICT_CODES or status == 412:
        return ConflictError(f"{place}: the conditional write lost ({code}).")
    if code == "NoSuchBucket":
        return StoreError(f"{place}: the bucket {bucket!r} does not exist there. Create it, or correct store.url.")
    if code in ("NoSuchKey", "404", "NoSuchUpload") or status == 404:
        return MissingObjectError(f"{place}: it does not exist.")
    if code in _BAD_CREDENTIAL_CODES:
        return StoreError(
            f"{place}: the server rejects the credentials ({code}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, "
            "AWS_DEFAULT_REGION and this machine's clock."
        )
    if status in (401, 403):
        return StoreError(
            f"{place}: access denied ({code or status}). The credentials in the environment need s3:ListBucket, s3:GetObject, "
            f"s3:PutObject and s3:DeleteObject on bucket {bucket!r}."
        )
    message = scrub(str(error.response.get("Error", {}).get("Message", "")))
    if code in _TRANSIENT_CODES or status >= 500 or status in (408, 409, 429):
        return TransientStoreError(f"{place}: the server is busy or failing ({code or status}: {message}).")
    if status in (301, 307) or code in ("PermanentRedirect", "IllegalLocationConstraintException"):
        return StoreError(f"{place}: the bucket {bucket!r} is in another region. Set AWS_DEFAULT_REGION to the bucket's.")
    return StoreError(f"{place}: the server answered {code or status}: {message}.")
