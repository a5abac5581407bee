"""Each contract test runs on a folder and on a real S3 server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from next_ray.store import CheckpointStore, Storage
from tests.s3_server import S3Server, s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A SeaweedFS server, its credentials in this process's environment."""
    with s3_server() as server:
        before = {name: os.environ.get(name) for name in server.credentials}
        os.environ.update(server.credentials)
        yield server
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture
def file_storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/store")


@pytest.fixture
def s3_storage(s3: S3Server) -> Iterator[Storage]:
    with Storage(f"{s3.url}/{uuid.uuid4().hex}", endpoint_url=s3.endpoint_url) as storage:
        yield storage


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest) -> Storage:
    return request.getfixturevalue(f"{request.param}_storage")


@pytest.fixture
def store(storage: Storage) -> CheckpointStore:
    return CheckpointStore(storage, "run-1")
