"""Full weights as plain arrays: cut into parts that fit in memory, in any number format that numpy can carry.

Level 1. numpy knows no bfloat16: such arrays travel as the uint16 that hold the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from next_ray.types import Weights

PART_BYTES = 2**30
"""A part holds at most this many bytes of float32, or one larger parameter."""

_FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def plan_parts(shapes: Mapping[str, tuple[int, ...]], part_bytes: int = PART_BYTES) -> list[list[str]]:
    """Cut parameters, in their order, into parts of at most `part_bytes` of float32; a larger parameter is a part of its own."""
    parts: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = 4 * prod(shape)
        if not parts or size > room:
            parts.append([])
            room = part_bytes
        parts[-1].append(name)
        room -= size
    return parts


def to_array(tensor: Tensor, dtype: str) -> np.ndarray:
    """A tensor on the CPU, rounded once to `dtype` (float32, float16 or bfloat16); never a view of it."""
    converted = tensor.detach().to("cpu", _FORMATS[dtype], copy=True).contiguous()
    return converted.view(torch.uint16).numpy() if dtype == "bfloat16" else converted.numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    """The tensor of an array that `to_array` made, in its format; copied where the array may not be written to."""
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def write_parts(parts: Iterable[Weights], folder: Path) -> dict[str, str]:
    """Write every part to `folder` as a shard of a model in the Hugging Face format; returns the shard of every parameter."""
    shards: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = f"model-{number:05d}.safetensors"
        save_file({parameter: to_tensor(values) for parameter, values in part.items()}, folder / name, metadata={"format": "pt"})
        shards |= dict.fromkeys(part, name)
    return shards
