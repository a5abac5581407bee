"""Tiny models, adapters with random factors and checkpoint folders as trainers leave them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 32,
}


def qwen(seed: int = 0, **changes: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**{**SIZES, "tie_word_embeddings": True, **changes}))


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": False, **changes}))


def save_base(model: PreTrainedModel, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def adapted(model: PreTrainedModel, base: Path | str, **config: Any) -> PeftModel:
    """The model with a LoRA adapter on it, named after its base as a trainer would."""
    model.config._name_or_path = model.name_or_path = str(base)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    peft = get_peft_model(model, LoraConfig(**settings))
    assert isinstance(peft, PeftModel)
    return peft


def shake(model: torch.nn.Module, seed: int) -> None:
    """New random values for everything that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def save_steps(model: PeftModel, parent: Path, steps: Sequence[int], name: str = "checkpoint-{step}", **how: Any) -> list[Path]:
    """One folder a step, each with other weights (seeded by the step)."""
    folders = []
    for step in steps:
        shake(model, step)
        folder = parent / name.format(step=step)
        # PEFT asks the network about the base unless it is told not to look at the embeddings.
        model.save_pretrained(str(folder), save_embedding_layers=False, **how)
        folders.append(folder)
    return folders


def peft_delta(model: PeftModel, module: str) -> np.ndarray:
    """What PEFT itself would add to a module's weight, float32 [O, I]."""
    layer: Any = model.get_base_model().get_submodule(module)
    return layer.get_delta_weight("default").detach().float().numpy()


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target
