"""One S3 server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3_server import S3Server, s3_server


@pytest.fixture(scope="package")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running
