"""A tiny random Qwen2 in any dtype, sharded or not, tied or not, and LoRA trajectories over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from next_ray.checkpoints.card import Lineage, Parent
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.extrapolate.plan import ModulePlan, realize
from next_ray.types import LoraFactors
from tests.delta.trajectories import wandering_adapters

LINEAGE = Lineage(
    base_name="tiny/base",
    parents=(Parent(10, "run/checkpoint-10", "trl", {"adapter_model.safetensors": "0" * 64}), Parent(20, "run/checkpoint-20", "trl")),
    method="two-point",
    alpha=0.5,
    horizon=1,
    seed=3,
    settings={"horizon": 1},
    evidence={"back test": "beats persistence by 3 %"},
)


def save_base(folder: Path, dtype: torch.dtype = torch.bfloat16, tied: bool = False, shard_size: str = "5GB") -> Path:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.12,
        tie_word_embeddings=tied,
    )
    model: Any = Qwen2ForCausalLM(config)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def linear_shapes(base: Path) -> dict[str, tuple[int, int]]:
    model = AutoModelForCausalLM.from_pretrained(base)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {name: (m.out_features, m.in_features) for name, m in linear.items() if name != "lm_head"}


def lora_trajectory(base: Path, count: int = 3, rank: int = 4, amplitude: float = 20.0) -> WeightTrajectory:
    """Large enough deltas that no dtype rounds them away."""
    adapters = [
        {name: LoraFactors(f.a, np.float32(amplitude) * f.b, f.scale) for name, f in adapter.items()}
        for adapter in wandering_adapters(np.random.default_rng(7), linear_shapes(base), rank, count)
    ]
    return from_adapters([10 * (i + 1) for i in range(count)], adapters)


def two_point(trajectory: WeightTrajectory, alpha: float) -> dict[str, ModulePlan]:
    """W_K + alpha (W_K - W_{K-1}), written down here once more."""
    weights = np.zeros(trajectory.num_checkpoints)
    weights[-1], weights[-2] = 1.0 + alpha, -alpha
    return {name: ModulePlan(weights) for name in trajectory.modules}


def dense_delta(plan: ModulePlan, trajectory: WeightTrajectory, name: str) -> np.ndarray:
    delta = realize(plan, trajectory.modules[name], name)
    return delta if isinstance(delta, np.ndarray) else delta.left @ delta.right


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(24).reshape(2, 12)).logits.numpy()
