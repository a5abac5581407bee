"""The store inside Ray actors: pickled there, and called where Ray's own asyncio loop runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from next_ray.store import CheckpointStore, Storage
from next_ray.types import CheckpointKind, LearnerState
from tests.s3_server import S3Server
from tests.store.samples import FINGERPRINT, assert_same_state, make_state


class Archivist:
    """An async actor that blocks its loop with store calls, and uses threads as well."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    async def commit(self, step: int, state: LearnerState) -> str:
        import asyncio

        manifest = self.store.commit(step, CheckpointKind.TRAINED, state, [], FINGERPRINT, {})
        return (await asyncio.to_thread(self.store.manifest, manifest.id)).id

    async def load(self, checkpoint: str) -> LearnerState:
        return self.store.load_state(self.store.manifest(checkpoint))


@pytest.fixture
def ray_cluster(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if "RAY_AUTH_MODE" not in os.environ:  # else Ray may have read it already: it does so when it is imported
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    environment = {**s3.credentials, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    yield ray
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.s3
def test_async_actors_commit_and_load(ray_cluster: Any, s3_storage: Storage) -> None:
    ray = ray_cluster
    state = make_state(3)
    actor = ray.remote(Archivist).options(num_cpus=0).remote(CheckpointStore(s3_storage, "run-1"))
    ids = ray.get([actor.commit.remote(step, state) for step in (1, 2, 2)])
    assert ids == ["00000001-trained", "00000002-trained", "00000002-trained"]
    reader = ray.remote(Archivist).options(num_cpus=0).remote(CheckpointStore(s3_storage, "run-1"))
    loaded = ray.get(reader.load.remote(ids[1]))
    assert_same_state(loaded, state)
    assert all(isinstance(moment, np.ndarray) for moment in loaded.moments.values())
