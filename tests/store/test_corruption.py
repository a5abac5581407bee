"""Whatever happened to the bytes, reading names the object and says what to do; nothing of it is executed or believed."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from next_ray.errors import CorruptCheckpointError, StoreError
from next_ray.store import CheckpointStore, Storage
from next_ray.store.tensors import MAX_HEADER_BYTES
from next_ray.types import Manifest
from tests.store.samples import MODULES, assert_same_state, commit, make_state


def damage(store: CheckpointStore, manifest: Manifest, name: str, change: Callable[[bytes], bytes]) -> str:
    """Change an object behind the store's back; returns its path."""
    path = f"{store.run}/{manifest.objects[name].path}"
    store.storage.put(path, change(store.storage.get(path)))
    return path


@pytest.mark.parametrize("name", ["adapter", "moments", "scalars"])
@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "does not match its sha256"),
        (lambda data: data[: len(data) // 2], "has .* bytes instead of"),
        (lambda data: b"", "has 0 bytes instead of"),
        (lambda data: data + b"x", "has more than the .* bytes"),
    ],
)
def test_a_damaged_object_is_named_with_a_remedy(storage: Storage, name: str, change: Callable[[bytes], bytes], complaint: str) -> None:
    store = CheckpointStore(storage, "run-1")
    manifest = commit(store, 1)
    path = damage(store, manifest, name, change)
    with pytest.raises(CorruptCheckpointError, match=complaint) as caught:
        store.load_state(manifest)
    message = str(caught.value)
    assert f"{storage.url}/{path} ({name} of checkpoint 00000001-trained)" in message
    assert re.search(r"Restore it from a copy, or delete .*/run-1/manifests/00000001-trained\.json to go on", message)
    with pytest.raises(CorruptCheckpointError):
        store.verify(manifest)
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_a_missing_object_is_named(store: CheckpointStore) -> None:
    manifest = commit(store, 1)
    store.storage.delete(f"run-1/{manifest.objects['moments'].path}")
    assert store.load_adapter(manifest)
    with pytest.raises(CorruptCheckpointError, match=r"\(moments of checkpoint 00000001-trained\) is missing"):
        store.load_state(manifest)


def test_the_newest_checkpoint_is_not_passed_over_silently(file_storage: Storage) -> None:
    store = CheckpointStore(file_storage, "run-1")
    commit(store, 1)
    newest = commit(store, 2)
    damage(store, newest, "adapter", lambda data: b"")
    latest = store.latest()
    assert latest == newest
    with pytest.raises(CorruptCheckpointError):
        store.load_state(newest)
    older = store.latest(skip={newest.id})
    assert older is not None
    assert_same_state(store.load_state(older), make_state(1))


def test_the_remedy_works(file_storage: Storage) -> None:
    store = CheckpointStore(file_storage, "run-1")
    commit(store, 1)
    damage(store, commit(store, 2), "adapter", lambda data: b"")
    (Path(file_storage.root) / "run-1/manifests/00000002-trained.json").unlink()
    latest = store.latest()
    assert latest is not None
    assert_same_state(store.load_state(latest), make_state(1))
    assert_same_state(store.load_state(commit(store, 2)), make_state(2))  # the same content again heals the object


def test_a_damaged_manifest_stops_readers_and_deletions(store: CheckpointStore) -> None:
    commit(store, 1)
    commit(store, 2)
    store.storage.put("run-1/manifests/00000001-trained.json", b'{"half": ')
    for act in (store.manifests, lambda: store.retain(1), lambda: store.sweep(0), lambda: store.manifest("00000001-trained")):
        with pytest.raises(CorruptCheckpointError, match=r"manifests/00000001-trained\.json is not a valid manifest"):
            act()
    assert len(store.storage.list("run-1/objects")) == 6
    latest = store.latest()
    assert latest is not None and latest.step == 2


def test_an_oversized_manifest_is_refused_unread(file_storage: Storage) -> None:
    file_storage.put("run-1/manifests/00000001-trained.json", b" " * (4 * 2**20 + 1))
    with pytest.raises(CorruptCheckpointError, match="at most 4194304 are read"):
        CheckpointStore(file_storage, "run-1").manifests()


def test_a_manifest_of_another_run_or_step_is_refused(file_storage: Storage) -> None:
    manifest = commit(CheckpointStore(file_storage, "run-1"), 1)
    data = file_storage.get(f"run-1/manifests/{manifest.id}.json")
    file_storage.put("run-2/manifests/00000001-trained.json", data)
    file_storage.put("run-1/manifests/00000007-trained.json", data)
    for run in ("run-1", "run-2"):
        with pytest.raises(CorruptCheckpointError, match="says it is checkpoint 00000001-trained of run run-1"):
            CheckpointStore(file_storage, run).latest()


def test_files_of_others_in_the_store_are_ignored(file_storage: Storage) -> None:
    store = CheckpointStore(file_storage, "run-1")
    manifest = commit(store, 1)
    for path in ("run-1/manifests/README", "run-1/manifests/00000002-trained.json.part", "run-1/notes.txt", "stray"):
        file_storage.put(path, b"x")
    assert store.manifests() == [manifest]
    store.sweep(0)
    assert file_storage.exists("run-1/notes.txt") and file_storage.exists("run-1/manifests/README")


def forge(store: CheckpointStore, name: str, data: bytes, extension: str = "safetensors") -> Manifest:
    """A manifest whose `name` is `data`, with a size and hash that are right: what an attacker would write."""
    manifest = commit(store, 1)
    digest = hashlib.sha256(data).hexdigest()
    path = f"run-1/manifests/{manifest.id}.json"
    document = json.loads(store.storage.get(path))
    document["objects"][name] = {"path": f"objects/{digest}.{extension}", "sha256": digest, "size_bytes": len(data)}
    store.storage.put(f"run-1/objects/{digest}.{extension}", data)
    store.storage.put(path, json.dumps(document).encode())
    return store.manifest(manifest.id)


def header(content: object, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was executed",))


HUGE = {"x.lora_A.weight": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64]}}
FACTORS = {f"{MODULES[0]}.lora_A.weight": np.ones((2, 3), np.float32), f"{MODULES[0]}.lora_B.weight": np.ones((4, 2), np.float32)}


@pytest.mark.parametrize(
    "data, complaint",
    [
        (b"", "too few"),
        (header(b"{}", length=2**63), "claims a safetensors header of 9223372036854775808 bytes"),
        (header(b"{}", length=3), "claims a safetensors header"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(MAX_HEADER_BYTES + 1), "claims a safetensors header"),
        (header(b"[" * 500_000), "cannot be read"),
        (header(b"[]"), "not an object"),
        (header(HUGE), "not a readable safetensors"),
        (header({}), "no LoRA factors"),
        (pickle.dumps(Bomb()), "claims a safetensors header"),
        (save({"x.lora_A.weight": np.ones((2, 2))}), "not a float32 matrix"),
        (save({"x.lora_A.weight": np.ones(2, np.float32)}), "not a float32 matrix"),
        (save({"x.weight": np.ones((2, 2), np.float32)}), "not a LoRA factor"),
        (save({"x.lora_A.weight": np.ones((2, 2), np.float32)}), "no matching"),
        (save({**FACTORS, f"{MODULES[0]}.lora_A.weight": np.full((2, 3), np.inf, np.float32)}), "NaN or infinity"),
    ],
)
def test_forged_adapters_are_refused(file_storage: Storage, data: bytes, complaint: str) -> None:
    store = CheckpointStore(file_storage, "run-1")
    with pytest.raises(CorruptCheckpointError, match=complaint) as caught:
        store.load_state(forge(store, "adapter", data))
    assert "adapter of checkpoint 00000001-trained" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "data, complaint",
    [
        (header(b"[" * 500_000), "cannot be read"),
        (header(HUGE), "not a readable safetensors"),
        (save({"nobody.lora_A.exp_avg": np.ones((2, 2), np.float32)}), "belongs to no factor"),
        (save({f"{MODULES[0]}.lora_A.weight": np.ones((4, 8), np.float32)}), "belongs to no factor"),
        (save({f"{MODULES[0]}.lora_A.exp_avg": np.ones((3, 8), np.float32)}), "shape"),
        (save({f"{MODULES[0]}.lora_A.exp_avg": np.full((4, 8), np.nan, np.float32)}), "NaN or infinity"),
    ],
)
def test_forged_moments_are_refused(file_storage: Storage, data: bytes, complaint: str) -> None:
    store = CheckpointStore(file_storage, "run-1")
    with pytest.raises(CorruptCheckpointError, match=complaint):
        store.load_state(forge(store, "moments", data))


NO_SCALARS = [b"[]", b"{", b'{"x": "1"}', b'{"x": true}', b'{"x": NaN}', b'{"x": 1e999}', b"[" * 200_000, b" " * (2**20 + 1)]


@pytest.mark.parametrize("data", NO_SCALARS)
def test_forged_scalars_are_refused(file_storage: Storage, data: bytes) -> None:
    store = CheckpointStore(file_storage, "run-1")
    with pytest.raises(CorruptCheckpointError, match="scalars of checkpoint"):
        store.load_state(forge(store, "scalars", data, "json"))


def test_links_out_of_the_store_are_not_followed_by_a_manifest(file_storage: Storage, tmp_path: Path) -> None:
    """An object path in a manifest is bound to its sha256, so a manifest cannot name another file of this machine."""
    store = CheckpointStore(file_storage, "run-1")
    manifest = commit(store, 1)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path = f"run-1/manifests/{manifest.id}.json"
    for target in (str(secret), "../../../secret", "objects/../../../secret"):
        document = json.loads(file_storage.get(path))
        document["objects"]["scalars"] = {"path": target, "sha256": hashlib.sha256(b"secret").hexdigest(), "size_bytes": 6}
        file_storage.put(path, json.dumps(document).encode())
        with pytest.raises(StoreError, match="objects/<its sha256>"):
            store.latest()
