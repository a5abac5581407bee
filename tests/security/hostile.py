"""Hostile content that people have thought of, by kind. Each entry must be refused with a paragraph, or be harmless and valid."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import Any

CONFIGS: tuple[bytes, ...] = (
    b"",
    b"\0",
    b"\xff\xfe\x00",
    b"- 1",
    b"run: " + b"[" * 5000,
    b"run: " + b"[" * 2000 + b"]" * 2000,
    b"run: " + b"{a: " * 2000,
    b"".join(b" " * depth + b"a:\n" for depth in range(600)),
    b"run: !!python/object/apply:os.system ['touch pwned']",
    b"run: !!python/object/new:subprocess.Popen [[touch, pwned]]",
    b"run: !!python/name:os.system ''",
    b"run: !!python/module:antigravity ''",
    b"run: {name: !!binary aGVsbG8=}",
    b"run: !!set {a, b}",
    b"run: !!omap [a: 1]",
    b"run: !!pairs [a: 1]",
    b"run: {name: !!timestamp 2026-01-01}",
    b"run: {steps: !!timestamp x}",
    b"run: {steps: !!int 0x}",
    b"run: {steps: !!int abc}",
    b"run: {steps: !!float x}",
    b"run: {deterministic: !!bool perhaps}",
    b"run: {steps: " + b"9" * 5000 + b"}",
    b"run: {steps: 1e999}",
    b"run: {steps: -.inf}",
    b"run: {name: ../../etc}",
    b"run: {name: /etc/passwd}",
    b"run: {name: .hidden}",
    b"run: {name: 'a b'}",
    b'run: {name: "\\0"}',
    b'run: {name: "\\ud800"}',
    b"run: {name: " + b"a" * 500_000 + b"}",
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
    b"&a run: *a",
    b"run:\n  <<: {name: x}",
    b"? [a, b]\n: c",
    b"? {a: b}\n: c",
    b"1: 2",
    b"'': {}",
    b"run: {}\n---\nrun: {}",
    b"%YAML 9.9\n---\nrun: {}",
    b"run: !foo bar",
    b"\n".join(b"k%d: 1" % number for number in range(3000)),
    b"x" * (2**20 + 1),
    b'extends: "\\0"',
    b"extends: ~nobody-of-this-name/x.yaml",
    b"extends: job.yaml",
    b"extends: .",
    b"extends: /dev/null",
    b"extends: " + b"a" * 5000,
    b"extends: [a]",
    b"extends: https://example.org/job.yaml",
    b"model: {name: '\\0', trust_remote_code: 'yes'}",
    b"model: {trust_remote_code: 1}",
    b"store: {url: 's3://user:secret@bucket/x'}",
    b"store: {url: file:///, endpoint_url: 7}",
    b'reward: {verifier: \'__import__("os").system("touch pwned")\'}',
)

OVERRIDES: tuple[str, ...] = (
    "",
    "=",
    "run",
    "run=5",
    "run.name=",
    "run.name=\0",
    "run.name=../../x",
    "run.name=!!python/object/apply:os.system ['touch pwned']",
    "run.name=" + "[" * 5000,
    ".".join("a" * 3000) + "=1",
    "run.steps=" + "9" * 5000,
    "run.name=\udcff",
    "run.\udcff=1",
    "__class__.__init__=1",
    "run.__class__=1",
    "run.model_config={extra: allow}",
    "run.steps=!!binary aGk=",
    "run={steps: !!set {a}}",
    "store.url=file:",
)

INDICES: tuple[bytes, ...] = (
    b"",
    b"[]",
    b"null",
    b'{"weight_map": null}',
    b'{"weight_map": []}',
    b'{"weight_map": {}}',
    b'{"weight_map": {"a": 1}}',
    b'{"weight_map": {"a": []}}',
    b'{"weight_map": {"a": "../secret.safetensors"}}',
    b'{"weight_map": {"a": "/etc/passwd"}}',
    b'{"weight_map": {"a": "\\u0000"}}',
    b'{"weight_map": {"a": "pytorch_model.bin"}}',
    b"[" * 100_000,
)

MODEL_CONFIGS: tuple[dict[str, Any], ...] = (
    {"model_type": []},
    {"model_type": "../../x"},
    {"model_type": None},
    {"architectures": 7},
    {"architectures": [1, 2]},
    {"architectures": ["os.system"]},
    {"auto_map": {"AutoConfig": "evil.Evil"}},
    {"auto_map": {"AutoConfig": "someone/repository--evil.Evil", "AutoModelForCausalLM": "someone/repository--evil.Evil"}},
    {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
    {"attn_implementation": "someone/kernel"},
    {"_attn_implementation": "someone/kernel@main:attention"},
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 10**30},
    {"num_hidden_layers": -1},
    {"num_hidden_layers": "many"},
    {"hidden_size": 0},
    {"hidden_size": -8},
    {"hidden_size": 2**62},
    {"hidden_size": None},
    {"hidden_size": 1e300},
    {"num_attention_heads": 0},
    {"num_key_value_heads": 0},
    {"vocab_size": -1},
    {"head_dim": "x"},
    {"dtype": "os.system"},
    {"dtype": 7},
    {"rope_parameters": {"rope_type": []}},
    {"quantization_config": {"quant_method": "nothing"}},
    {"quantization_config": [1]},
    {"id2label": {"x": []}, "num_labels": 10**12},
    {"layer_types": ["x"] * 3},
    {"hidden_act": "__import__('os')"},
    {"text_config": {"text_config": {"num_hidden_layers": 10**12}}},
)

MODEL_DOCUMENTS: tuple[bytes, ...] = (b"", b"null", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"a":' * 50_000, b"{}")


class Bomb:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch pwned",)


def pickled() -> bytes:
    """A pickle of the old kind."""
    return pickle.dumps({"base_model.model.x.lora_A.weight": Bomb()})


def torch_archive(content: bytes, compressed: bool = False) -> bytes:
    """What `torch.save` writes, around any pickle."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", content), ("byteorder", b"little"), ("version", b"3\n"), ("data/0", bytes(64))):
            archive.writestr(f"archive/{name}", data)
    return memory.getvalue()


def pickles() -> tuple[bytes, ...]:
    """Files with weights of torch's kind that must not be believed."""
    calls = b"cos\nsystem\n(S'touch pwned'\ntR."
    getattr_ = b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR."
    numpy_ = b"cnumpy.core.multiarray\nscalar\n."
    return (
        pickled(),
        calls,
        torch_archive(calls),
        torch_archive(getattr_),
        torch_archive(numpy_),
        torch_archive(pickle.dumps(Bomb())),
        torch_archive(pickle.dumps({"x": [1]})),
        torch_archive(pickle.dumps({"a": 1}), compressed=True),
        torch_archive(b"(" * 100_000),
        torch_archive(b""),
        b"PK\x03\x04",
        b"",
        b"\x80\x04.",
    )


def header_bombs() -> tuple[bytes, ...]:
    """Safetensors files whose headers claim what is not there."""

    def file(header: Any, length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return (len(text) if length is None else length).to_bytes(8, "little") + text

    def tensor(**fields: Any) -> dict[str, Any]:
        return {"x.lora_A.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **fields}}

    return (
        b"",
        file(b"{}", 2**63),
        file(b"{}", 2**40),
        file(b"{}", 100_000_000),
        file(b"[" * 200_000),
        file(b'{"a":' * 100_000),
        file([]),
        file(tensor(shape=[2**31, 2**31], data_offsets=[0, 2**64])),
        file(tensor(shape=[2**62, 4])),
        file(tensor(shape=[-1, -4])),
        file(tensor(dtype="F64")),
        file(tensor(data_offsets=[16, 0])),
        file(tensor(data_offsets=[0, 10**30])),
        file({f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(20_000)}),
        file({"__metadata__": {"x": "y" * 1_000_000}}),
        file({"../../x": {"dtype": "F32", "shape": [0, 0], "data_offsets": [0, 0]}}),
        pickled(),
    )
