from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from next_ray.checkpoints.open import open_trajectory
from next_ray.errors import CheckpointFormatError, StoreError
from next_ray.models.folder import fingerprint, weight_files
from next_ray.progress import Progress
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import CheckpointKind, LearnerState, LoraFactors
from tests.checkpoints.samples import adapted, qwen, save_base, save_steps
from tests.s3_server import s3_server

MODULE = "model.layers.0.mlp.up_proj"


def adapter(seed: int) -> dict[str, LoraFactors]:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((4, 16), dtype=np.float32), rng.standard_normal((24, 4), dtype=np.float32)
    return {MODULE: LoraFactors(a=a, b=b, scale=0.5), "model.layers.1.mlp.up_proj": LoraFactors(a=a + 1, b=b - 1, scale=0.5)}


def commit(
    store: CheckpointStore, step: int, segment: int = 0, kind: CheckpointKind = CheckpointKind.TRAINED, base: str = "f" * 64
) -> None:
    progress = Progress(step=step, segment_start=segment).to_json()
    store.commit(step, kind, LearnerState(adapter(step), {}, {"updates": 1}), (), base, progress)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(f"file://{tmp_path}", "run")


def test_a_run_is_one_trajectory(store: CheckpointStore) -> None:
    store.claim_identity({"base_fingerprint": "f" * 64, "model": "tiny", "lora_rank": 4})
    for step in (5, 10, 15):
        commit(store, step)
    imported = open_trajectory([store.url])
    assert imported.trajectory.steps == (5, 10, 15) and imported.base.name == "tiny" and imported.base.fingerprint == "f" * 64
    expected = adapter(10)[MODULE]
    factors = imported.trajectory.modules[MODULE].factors[1]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(factors.a, expected.a)
    np.testing.assert_array_equal(factors.b, expected.b)
    assert factors.scale == 0.5
    source = imported.sources[1]
    assert source.format == "store" and list(source.sha256.values()) == [store.manifest("00000010-trained").objects["adapter"].sha256]


def test_a_runs_folder_does_as_well(store: CheckpointStore) -> None:
    commit(store, 5)
    assert open_trajectory([store.url.removeprefix("file://")]).trajectory.steps == (5,)


def test_a_jump_begins_a_new_trajectory(store: CheckpointStore) -> None:
    for step in (5, 10):
        commit(store, step)
    commit(store, 10, kind=CheckpointKind.JUMPED)
    for step in (15, 20, 25):
        commit(store, step, segment=10)
    newest = open_trajectory([store.url])
    assert newest.trajectory.steps == (15, 20, 25) and any("2 checkpoints from step 0" in note for note in newest.notes)
    assert open_trajectory([store.url], segment=0).trajectory.steps == (5, 10)
    with pytest.raises(CheckpointFormatError, match="begin at 0, 10"):
        open_trajectory([store.url], segment=7)


def test_the_base_is_recognised_by_its_fingerprint(store: CheckpointStore, tmp_path: Path) -> None:
    base, other = save_base(qwen(1), tmp_path / "base"), save_base(qwen(2), tmp_path / "other")
    commit(store, 5, base=fingerprint(base, weight_files(base), tmp_path / "notes"))
    assert open_trajectory([store.url], base=str(base)).base.path == base
    with pytest.raises(CheckpointFormatError, match="has fingerprint"):
        open_trajectory([store.url], base=str(other))


def test_a_changed_object_is_refused(store: CheckpointStore) -> None:
    commit(store, 5)
    path = Path(store.storage.root) / "run" / store.manifest("00000005-trained").objects["adapter"].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(CheckpointFormatError, match="sha256"):
        open_trajectory([store.url])


@pytest.mark.s3
def test_a_run_in_a_bucket_is_copied_once_and_read_alike(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.credentials.items():
            monkeypatch.setenv(name, value)
        url = f"{server.url}/prefix"
        with CheckpointStore(url, "run", server.endpoint_url) as store:
            for step in (5, 10):
                commit(store, step)
        for _ in range(2):
            imported = open_trajectory([f"{url}/run"], endpoint_url=server.endpoint_url)
            factors = imported.trajectory.modules[MODULE].factors[1]  # type: ignore[attr-defined]
            np.testing.assert_array_equal(factors.b, adapter(10)[MODULE].b)
        assert len(list(own_cache.rglob("*.safetensors"))) == 2


def test_no_run_no_trajectory(store: CheckpointStore, tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="no trained checkpoint"):
        open_trajectory([store.url])
    with pytest.raises(StoreError):
        open_trajectory(["gopher://x/run"])
    commit(store, 5)
    (folder,) = save_steps(adapted(qwen(), "/nowhere/base"), tmp_path / "peft", [10])
    with pytest.raises(CheckpointFormatError, match="cannot be combined"):
        open_trajectory([store.url, str(folder)])
    with pytest.raises(CheckpointFormatError, match="segment"):
        open_trajectory([str(folder)], segment=0)
