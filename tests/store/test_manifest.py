from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from next_ray.errors import CorruptCheckpointError, StoreError
from next_ray.store.manifest import checkpoint_id, decode, encode, id_of, manifest_path, order
from next_ray.types import CheckpointKind, Manifest, ObjectEntry

ADAPTER = "0f" * 32
SCALARS = "a1" * 32

MANIFEST = Manifest(
    id="00000012-jumped",
    run="tiny",
    step=12,
    kind=CheckpointKind.JUMPED,
    parents=("00000012-trained",),
    base_fingerprint="sha256:77",
    rank=16,
    scale=0.5,
    objects={
        "scalars": ObjectEntry(f"objects/{SCALARS}.json", 25, SCALARS),
        "adapter": ObjectEntry(f"objects/{ADAPTER}.safetensors", 416, ADAPTER),
    },
    metadata={"step": 12, "name": "é", "jumps": [{"alpha": 1.5}]},
    created_at="2026-01-02T03:04:05Z",
)

# The bytes on disk are a promise to every later version: a change of this text is a change of the format's number.
GOLDEN = b"""{
  "base_fingerprint": "sha256:77",
  "created_at": "2026-01-02T03:04:05Z",
  "format": "next-ray-checkpoint/1",
  "id": "00000012-jumped",
  "kind": "jumped",
  "metadata": {
    "jumps": [
      {
        "alpha": 1.5
      }
    ],
    "name": "\\u00e9",
    "step": 12
  },
  "objects": {
    "adapter": {
      "path": "objects/0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f.safetensors",
      "sha256": "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f",
      "size_bytes": 416
    },
    "scalars": {
      "path": "objects/a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1.json",
      "sha256": "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1",
      "size_bytes": 25
    }
  },
  "parents": [
    "00000012-trained"
  ],
  "rank": 16,
  "run": "tiny",
  "scale": 0.5,
  "step": 12
}
"""


def test_golden_bytes() -> None:
    assert encode(MANIFEST) == GOLDEN
    assert decode(GOLDEN, "00000012-jumped", "tiny", "here") == MANIFEST


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(GOLDEN), **changes}).encode()


def with_object(**changes: Any) -> bytes:
    return changed(objects={"adapter": {**json.loads(GOLDEN)["objects"]["adapter"], **changes}})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[" * 1_000_000,
        b'{"format":' * 100_000,
        GOLDEN[:-30],
        GOLDEN.replace(b"}\n", b"", 1),
        changed(surprise=1),
        changed(step="12"),
        changed(step=13),
        changed(step=-1),
        changed(step=1e300),
        changed(kind="trained"),
        changed(kind="other"),
        changed(id="../../etc"),
        changed(run="other"),
        changed(run="../x"),
        changed(rank=0),
        changed(scale="0.5"),
        changed(parents=["../x"]),
        changed(parents=["00000001-trained"] * 2000),
        changed(base_fingerprint=""),
        changed(created_at="yesterday"),
        changed(objects=[]),
        changed(objects={"../x": json.loads(GOLDEN)["objects"]["adapter"]}),
        GOLDEN.replace(b'"scale": 0.5', b'"scale": NaN'),
        GOLDEN.replace(b'"scale": 0.5', b'"scale": 1e999'),
        with_object(path=f"../../other-run/objects/{ADAPTER}.safetensors"),
        with_object(path="/etc/passwd"),
        with_object(path=f"objects/../{ADAPTER}.safetensors"),
        with_object(path=f"objects/{ADAPTER}.pkl"),
        with_object(path=f"objects/{SCALARS}.safetensors"),
        with_object(path=f"s3://bucket/objects/{ADAPTER}.safetensors"),
        with_object(sha256="0F" * 32),
        with_object(sha256=ADAPTER + "\n"),
        with_object(size_bytes=-1),
        with_object(size_bytes=2**60),
        with_object(size_bytes=1.5),
        with_object(size_bytes=True),
        with_object(extra=1),
    ],
)
def test_what_is_no_manifest_of_this_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"^here .*delete here to go on") as caught:
        decode(data, "00000012-jumped", "tiny", "here")
    assert len(str(caught.value)) < 600


def test_other_formats_are_told_from_damage() -> None:
    with pytest.raises(StoreError, match="another version of next_ray") as caught:
        decode(changed(format="next-ray-checkpoint/2"), "00000012-jumped", "tiny", "here")
    assert not isinstance(caught.value, CorruptCheckpointError)


@given(st.binary(max_size=300))
def test_random_bytes_never_pass_nor_crash(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError):
        decode(data, "00000012-jumped", "tiny", "here")


@given(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_a_store_error_or_a_valid_manifest(position: int, byte: int) -> None:
    damaged = GOLDEN[:position] + bytes([byte]) + GOLDEN[position + 1 :]
    try:
        manifest = decode(damaged, "00000012-jumped", "tiny", "here")
    except StoreError:
        return
    assert manifest.id == "00000012-jumped"
    for entry in manifest.objects.values():
        assert entry.path.startswith(f"objects/{entry.sha256}.") and ".." not in entry.path


@given(st.integers(0, 99_999_999), st.sampled_from(CheckpointKind))
def test_ids_and_paths_name_each_other(step: int, kind: CheckpointKind) -> None:
    checkpoint = checkpoint_id(step, kind)
    assert id_of(f"run/{manifest_path(checkpoint)}") == checkpoint
    assert order(checkpoint)[0] == step


@pytest.mark.parametrize("path", ["x", "manifests/1-trained.json", "manifests/00000001-other.json", "manifests/00000001-trained.json.bak"])
def test_other_files_among_the_manifests_are_left_alone(path: str) -> None:
    assert id_of(path) is None


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        encode(replace(MANIFEST, metadata={"x": object()}))
    with pytest.raises(ValueError, match="base_fingerprint"):
        encode(replace(MANIFEST, base_fingerprint=""))
