"""Linear layers of models that are not here: the sizes that costs and benchmarks are computed for, and adapters of these sizes on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from next_ray.adapter import CONFIG_FILE, PEFT_PREFIX, WEIGHTS_FILE, peft_config
from next_ray.types import LoraFactors

SCALE = 0.5
"""alpha / r of the paper's runs."""

NOISE = 2**24
"""Random numbers that are drawn once; every noise term is a stretch of them."""


@dataclass(frozen=True)
class Model:
    """A decoder's linear layers: `layers` times q, k, v, o, gate, up and down."""

    layers: int
    hidden: int
    key_value: int
    inner: int

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Module name to (O, I)."""
        h, kv, inner = self.hidden, self.key_value, self.inner
        attention = {"q_proj": (h, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, h)}
        mlp = {"gate_proj": (inner, h), "up_proj": (inner, h), "down_proj": (h, inner)}
        return {
            f"model.layers.{layer}.{part}.{name}": shape
            for layer in range(self.layers)
            for part, group in (("self_attn", attention), ("mlp", mlp))
            for name, shape in group.items()
        }


MODELS = {
    "Qwen2.5-1.5B": Model(layers=28, hidden=1536, key_value=256, inner=8960),
    "Qwen2.5-7B": Model(layers=28, hidden=3584, key_value=512, inner=18944),
    "Qwen2.5-14B": Model(layers=48, hidden=5120, key_value=1024, inner=13824),
    "Llama-3-70B": Model(layers=80, hidden=8192, key_value=1024, inner=28672),
    "Qwen2.5-72B": Model(layers=80, hidden=8192, key_value=1024, inner=29568),
}
"""Sizes from the models' configurations."""


def write_adapters(model: Model, rank: int, checkpoints: int, folder: Path, seed: int = 0) -> list[Path]:
    """A trajectory of PEFT folders `checkpoint-10`, `checkpoint-20`, ..., float32: A as initialised and B from 0, both moving a step at a
    time, in part in one direction (G_c gets an energy ratio of about 0.15) and in part at random. Each file is flushed to the disk.
    """
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(NOISE, dtype=np.float32)
    state: dict[str, np.ndarray] = {}
    drift: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def stretch(count: int) -> np.ndarray:
        start = int(rng.integers(0, NOISE - count))
        return noise[start : start + count]

    for name, (out_features, in_features) in model.shapes.items():
        bound = np.float32(1 / np.sqrt(in_features))
        state[f"{PEFT_PREFIX}{name}.lora_A.weight"] = rng.uniform(-bound, bound, (rank, in_features)).astype(np.float32)
        state[f"{PEFT_PREFIX}{name}.lora_B.weight"] = np.zeros((out_features, rank), dtype=np.float32)
        drift[f"{PEFT_PREFIX}{name}.lora_B.weight"] = 1e-4 * stretch(out_features)[:, None], stretch(rank)[None]
    example = {"q_proj": LoraFactors(np.zeros((rank, 1), np.float32), np.zeros((1, rank), np.float32), SCALE)}
    config = peft_config(example, "none") | {"target_modules": sorted({name.rsplit(".", 1)[-1] for name in model.shapes})}
    folders = []
    for index in range(1, checkpoints + 1):
        for name, tensor in state.items():
            step = stretch(tensor.size).reshape(tensor.shape)
            tensor += np.float32(1e-4) * step if name not in drift else drift[name][0] * drift[name][1] + np.float32(3e-4) * step
        folders.append(folder / f"checkpoint-{10 * index}")
        folders[-1].mkdir(parents=True, exist_ok=True)
        save_file(state, folders[-1] / WEIGHTS_FILE)
        (folders[-1] / CONFIG_FILE).write_text(json.dumps(config))
    return folders
