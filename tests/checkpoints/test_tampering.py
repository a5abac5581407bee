"""Damaged and hostile files: every one is refused by an error that names it, and nothing else ever escapes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from next_ray.checkpoints.headers import open_safetensors
from next_ray.checkpoints.open import open_trajectory
from next_ray.errors import CheckpointFormatError, NextRayError

STEM = "base_model.model.model.layers.0.mlp.up_proj.lora_"
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 2, "lora_alpha": 4, "rank_pattern": {}, "alpha_pattern": {}}
TENSORS = {f"{STEM}A.weight": np.ones((2, 3), np.float32), f"{STEM}B.weight": np.ones((4, 2), np.float32)}
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoint-1"
    folder.mkdir(parents=True)
    save_file(TENSORS, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    return folder


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tampered(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        header, body = split(data)
        return join(change(header) or header, body)

    return apply


A, B = f"{STEM}A.weight", f"{STEM}B.weight"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:4],
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: struct.pack("<Q", 2**63) + data[8:],
        lambda data: struct.pack("<Q", 2**40) + data[8:],
        lambda data: join(b"[" * 100_000, b""),
        lambda data: join(b"[]", b""),
        lambda data: join(b"\xff\xfe", b""),
        lambda data: join(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"
        ),
        tampered(lambda h: h[A].update(data_offsets=[0, 2**50])),
        tampered(lambda h: h[A].update(data_offsets=[-24, 0])),
        tampered(lambda h: h[A].update(data_offsets=h[B]["data_offsets"])),
        tampered(lambda h: h[A].update(data_offsets=[0])),
        tampered(lambda h: h[A].update(data_offsets=["0", "24"])),
        tampered(lambda h: h[A].update(shape=[2**40, 2**40])),
        tampered(lambda h: h[A].update(shape=[2, -3])),
        tampered(lambda h: h[A].update(shape=[1] * 1000)),
        tampered(lambda h: h[A].update(shape=[True, 6])),
        tampered(lambda h: h[A].update(shape={"0": 2})),
        tampered(lambda h: h[A].update(dtype="F16")),
        tampered(lambda h: h[A].update(dtype="EVIL")),
        tampered(lambda h: h[A].update(dtype=["F32"])),
        tampered(lambda h: h[A].update(more=1)),
        tampered(lambda h: h.update({A: 7})),
        tampered(lambda h: {A: h[A]}),
        tampered(lambda h: {**h, "hole": {"dtype": "F32", "shape": [1], "data_offsets": [10**6, 10**6 + 4]}}),
    ],
)
def test_damaged_safetensors_are_refused_by_name(damage: Callable[[bytes], bytes], folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointFormatError) as caught:
        open_trajectory([str(folder)])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_what_the_library_reads_is_read_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"t{n}": rng.standard_normal(shape).astype(dtype)
        for n, (shape, dtype) in enumerate([((3, 4), "f4"), ((), "f8"), ((0, 2), "f2"), ((5,), "f2")])
    }
    save_file(tensors, tmp_path / "file.safetensors", metadata={"format": "np"})
    file = open_safetensors(tmp_path / "file.safetensors")
    assert set(file.entries) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(name), tensor.astype(np.float32))


def opens_or_refuses(folder: Path, **more: Any) -> None:
    """Read everything; only a NextRayError may come out."""
    try:
        imported = open_trajectory([str(folder)], **more)
        for module in imported.trajectory.modules.values():
            module.gram()
        for name in imported.saved.names:
            imported.saved.load(1, name)
    except NextRayError as error:
        assert str(error)


@FUZZ
@given(st.data())
def test_any_bytes_changed_anywhere(folder: Path, data: st.DataObject) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(TENSORS, path)
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    opens_or_refuses(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["F32", "BF16", "LORA", A, 10**30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(st.sampled_from([A, B, "__metadata__", "new"]), st.sampled_from([None, "dtype", "shape", "data_offsets"]), JSON)
def test_any_value_in_a_header(folder: Path, name: str, field: str | None, value: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(TENSORS, path)
    header, body = split(path.read_bytes())
    if field is None or name not in header:
        header[name] = value
    else:
        header[name][field] = value
    path.write_bytes(join(header, body))
    opens_or_refuses(folder)


FIELDS = (*CONFIG, "bias", "use_rslora", "use_dora", "init_lora_weights", "modules_to_save", "fan_in_fan_out", "target_parameters")


@FUZZ
@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.dictionaries(st.text(max_size=12), st.integers(-2, 9), max_size=3), max_size=4))
def test_any_value_in_a_configuration(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    opens_or_refuses(folder)


@FUZZ
@given(
    st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["adapter_config.json", "trainer_state.json"]),
)
def test_any_bytes_as_a_document(folder: Path, content: bytes, name: str) -> None:
    before = (folder / name).read_bytes() if (folder / name).exists() else None
    (folder / name).write_bytes(content)
    opens_or_refuses(folder)
    (folder / name).write_bytes(before) if before is not None else (folder / name).unlink()


@FUZZ
@given(st.text(max_size=40))
def test_any_tensor_name(folder: Path, name: str) -> None:
    save_file({**TENSORS, name: np.zeros((2, 2), np.float32)}, folder / "adapter_model.safetensors")
    opens_or_refuses(folder)
