"""What a user sees when the store cannot be used, and how soon; and that passing faults are ridden out."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from next_ray.errors import StoreError
from next_ray.store import CheckpointStore, Storage
from next_ray.store.faults import ConflictError
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.store.proxy import CUT, DROP, LEAK, LOSE, UNAVAILABLE, FaultyProxy, faulty_proxy

LIMIT_S = 12.0


def refusal(storage: Storage) -> str:
    """The paragraph that `check_access` fails with, in time, picklable and without secrets."""
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        storage.check_access()
    assert time.monotonic() - started < LIMIT_S
    message = str(caught.value)
    assert "\n" not in message and SECRET_KEY not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    return message


def test_a_usable_store_passes_and_nothing_is_left(storage: Storage) -> None:
    storage.put("keep", b"1")
    storage.check_access()
    CheckpointStore(storage, "run-1").check_access()
    if storage.scheme == "file":
        assert sorted(path.name for path in Path(storage.root).iterdir()) == [".lock", "keep"]
    assert storage.get("keep") == b"1"


@pytest.mark.s3
def test_wrong_secret(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    message = refusal(Storage(s3.url, s3.endpoint_url))
    assert "credentials" in message and "AWS_SECRET_ACCESS_KEY" in message and "not-the-secret" not in message


@pytest.mark.s3
def test_unknown_access_key(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKNOBODY")
    message = refusal(Storage(s3.url, s3.endpoint_url))
    assert "credentials" in message and "AKNOBODY" not in message


@pytest.mark.s3
def test_no_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "AWS_ACCESS_KEY_ID" in refusal(Storage(s3.url, s3.endpoint_url))


@pytest.mark.s3
def test_missing_bucket_is_not_created(s3: S3Server) -> None:
    message = refusal(Storage("s3://no-such-bucket/x", s3.endpoint_url))
    assert "'no-such-bucket' does not exist" in message and "Create it" in message
    refusal(Storage("s3://no-such-bucket/x", s3.endpoint_url))


@pytest.mark.s3
def test_unreachable_endpoint(s3: S3Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        message = refusal(Storage(s3.url, f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert "store.endpoint_url" in message and "127.0.0.1" in message


@pytest.mark.s3
def test_endpoint_that_never_answers(s3: S3Server) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "Gave up" in refusal(Storage(s3.url, f"http://127.0.0.1:{silent.getsockname()[1]}"))


@pytest.mark.s3
def test_unknown_host(s3: S3Server) -> None:
    assert "nowhere.invalid" in refusal(Storage(s3.url, "http://nowhere.invalid:9000"))


def test_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "part of the path is a file" in refusal(Storage(f"file://{tmp_path}/file/store"))


def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o555)
    program = f"""
import os, sys
from next_ray.errors import StoreError
from next_ray.store import Storage
import fsspec.implementations.local, next_ray.store.local
if os.getuid() == 0:
    os.seteuid(65534)
try:
    Storage("file://{folder}").check_access()
except StoreError as error:
    print(error)
"""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert "Permission denied" in done.stdout and str(folder) in done.stdout and "set store.url" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxied(s3: S3Server, proxy: FaultyProxy, request: pytest.FixtureRequest) -> Iterator[Storage]:
    with Storage(f"{s3.url}/{request.node.name.split('[')[0]}-{os.getpid()}", proxy.endpoint_url, budget_s=30) as storage:
        yield storage


@pytest.mark.s3
@pytest.mark.parametrize("fault", [UNAVAILABLE, DROP])
def test_passing_faults_are_ridden_out(proxied: Storage, proxy: FaultyProxy, fault: str) -> None:
    proxy.schedule([fault] * 4)
    proxied.put("run/x", b"1")
    proxy.schedule([fault] * 4)
    assert proxied.get("run/x") == b"1"
    proxy.schedule([fault] * 4)
    assert proxied.list("run") == ["run/x"]
    assert not proxy.plan


@pytest.mark.s3
def test_an_answer_cut_in_half_is_read_again(proxied: Storage, proxy: FaultyProxy) -> None:
    data = os.urandom(500_000)
    proxied.put("run/x", data)
    proxy.schedule([CUT, CUT], "GET")
    assert proxied.get("run/x") == data
    assert not proxy.plan


@pytest.mark.s3
@pytest.mark.parametrize("losses", [1, 5])
def test_a_conditional_write_whose_answer_is_lost_has_won(proxied: Storage, proxy: FaultyProxy, losses: int) -> None:
    proxy.schedule([LOSE] * losses, "PUT")
    etag = proxied.create_exclusive(f"lease-{losses}", b"me, once")
    proxy.schedule([LOSE] * losses, "PUT")
    etag = proxied.replace_if(f"lease-{losses}", b"me, twice", etag)
    assert proxied.read_versioned(f"lease-{losses}").etag == etag
    assert proxied.get(f"lease-{losses}") == b"me, twice"
    with pytest.raises(ConflictError):
        proxied.create_exclusive(f"lease-{losses}", b"somebody else")


@pytest.mark.s3
def test_lasting_faults_end_after_the_budget(proxied: Storage, proxy: FaultyProxy) -> None:
    proxy.schedule([UNAVAILABLE] * 10_000)
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"ServiceUnavailable.*Gave up after 3 s"), proxied.with_budget(3) as impatient:
        impatient.put("x", b"1")
    assert 2.5 < time.monotonic() - started < 12
    assert len(proxy.seen) < 60, "retries back off"


@pytest.mark.s3
def test_refusals_are_not_repeated(proxied: Storage, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="credentials"):
        proxied.put("x", b"1")
    assert len(proxy.seen) == 1


@pytest.mark.s3
def test_credentials_that_a_server_repeats_are_not_passed_on(proxied: Storage, proxy: FaultyProxy) -> None:
    proxy.leak = f"bad request by {ACCESS_KEY} with {SECRET_KEY}\nsecond line"
    proxy.schedule([LEAK])
    with pytest.raises(StoreError, match=r"InvalidArgument: bad request by \*\*\* with \*\*\* second line"):
        proxied.put("run/x", b"1")
