"""LoRA adapters as plain arrays: to and from the PEFT folder format, in memory and on disk.

Level 1: numpy and safetensors only. Names inside an `Adapter` are the base model's module names; PEFT's prefix
`base_model.model.` is added and removed here and nowhere else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from next_ray.errors import CorruptCheckpointError
from next_ray.types import Adapter, LoraFactors

PEFT_PREFIX = "base_model.model."
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def to_safetensors(adapter: Adapter) -> bytes:
    """Serialize the factors under PEFT's tensor names, float32; the scale is not inside (see `peft_config`)."""
    tensors: dict[str, np.ndarray] = {}
    for module in sorted(adapter):
        factors = adapter[module]
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(factors.a, dtype=np.float32)
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(factors.b, dtype=np.float32)
    return save(tensors)


def from_safetensors(data: bytes, scale: float, origin: str = "adapter") -> dict[str, LoraFactors]:
    """Read factors back; raises `CorruptCheckpointError` naming `origin` for anything that is not a finite LoRA pair."""
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptCheckpointError(f"{origin}: not a readable safetensors file ({error}).") from error
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        stem, found, _ = name.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        if not found or not name.endswith((".lora_A.weight", ".lora_B.weight")):
            raise CorruptCheckpointError(f"{origin}: tensor {name!r} is not a LoRA factor; only lora_A and lora_B are read.")
        if not np.isfinite(tensor).all():
            raise CorruptCheckpointError(f"{origin}: tensor {name!r} holds NaN or infinity.")
        pairs.setdefault(stem, {})["a" if name.endswith("lora_A.weight") else "b"] = np.asarray(tensor, dtype=np.float32)
    adapter: dict[str, LoraFactors] = {}
    for module, pair in sorted(pairs.items()):
        if set(pair) != {"a", "b"} or pair["a"].ndim != 2 or pair["b"].ndim != 2 or pair["a"].shape[0] != pair["b"].shape[1]:
            raise CorruptCheckpointError(f"{origin}: module {module!r} has no matching lora_A [R, I] and lora_B [O, R].")
        adapter[module] = LoraFactors(a=pair["a"], b=pair["b"], scale=scale)
    return adapter


def fold_scale(adapter: Adapter) -> dict[str, LoraFactors]:
    """The same deltas with scale 1: the scale goes into `b` (float32). Adapters of mixed scales become uniform."""
    return {name: LoraFactors(a=f.a, b=(f.b * np.float32(f.scale)).astype(np.float32), scale=1.0) for name, f in adapter.items()}


def pad_rank(adapter: Adapter, rank: int) -> dict[str, LoraFactors]:
    """The same deltas with every module at `rank`, zero rows and columns added; a larger rank than asked is an error."""
    padded: dict[str, LoraFactors] = {}
    for name, f in adapter.items():
        if f.rank > rank:
            raise ValueError(f"{name}: rank {f.rank} does not fit in {rank}")
        missing = rank - f.rank
        padded[name] = LoraFactors(a=np.pad(f.a, ((0, missing), (0, 0))), b=np.pad(f.b, ((0, 0), (0, missing))), scale=f.scale)
    return padded


def peft_config(adapter: Adapter, base_model: str) -> dict[str, Any]:
    """The `adapter_config.json` of an adapter whose modules share one rank and scale (fold and pad first if not)."""
    ranks = {f.rank for f in adapter.values()}
    scales = {f.scale for f in adapter.values()}
    if len(ranks) != 1 or len(scales) != 1:
        raise ValueError(f"one rank and one scale are needed, got ranks {sorted(ranks)} and scales {sorted(scales)}")
    rank, scale = ranks.pop(), scales.pop()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": scale * rank,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in adapter}),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def write_peft_folder(adapter: Adapter, folder: Path, base_model: str) -> None:
    """Write a folder that PEFT and vLLM load. Mixed ranks or scales are folded and padded to one first."""
    if len({(f.rank, f.scale) for f in adapter.values()}) > 1:
        adapter = pad_rank(fold_scale(adapter), max(f.rank for f in adapter.values()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(to_safetensors(adapter))
    (folder / CONFIG_FILE).write_text(json.dumps(peft_config(adapter, base_model), indent=2, sort_keys=True))
