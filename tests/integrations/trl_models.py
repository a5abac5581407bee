"""A random model with a tokenizer on disk, for real TRL runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from next_ray.models.tiny import build_model, build_tokenizer
from next_ray.models.tiny_spec import TinySpec


def save_random_model(folder: Path) -> Path:
    torch.manual_seed(0)
    model: Any = build_model(TinySpec(hidden_size=64, intermediate_size=96, num_heads=2, initializer_range=0.2))
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
