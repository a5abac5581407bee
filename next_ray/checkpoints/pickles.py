"""Hugging Face `.bin` files, by weights-only loading: a restricted unpickler that knows tensors and nothing else.

Whatever that unpickler does not accept is refused; no other way to read a pickle exists here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from next_ray.checkpoints.headers import TensorEntry, as_float32, checked
from next_ray.errors import CheckpointFormatError

if TYPE_CHECKING:
    import torch

_CONVERT = "Convert it where you trust it: load it there and save it with safe_serialization."


@dataclass(frozen=True)
class PickleFile:
    """A weights-only pickle and its table of contents (`begin` and `end` are of no meaning here)."""

    path: Path
    entries: Mapping[str, TensorEntry]

    def read(self, name: str) -> np.ndarray:
        """The tensor, float32; the file is mapped, so that no other tensor's bytes are read."""
        import torch

        tensor = _load(self.path)[name].detach()
        if tensor.dtype is torch.bfloat16:
            array = as_float32(tensor.contiguous().view(torch.uint16).numpy(), "BF16")
        else:
            array = as_float32(tensor.contiguous().numpy(), "F32").copy()
        return checked(array, name, self.path)


def open_pickle(path: Path) -> PickleFile:
    """Read the table of contents; raises `CheckpointFormatError` for anything but a dictionary of dense float tensors."""
    import torch

    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
    entries: dict[str, TensorEntry] = {}
    for name, tensor in _load(path).items():
        if tensor.dtype not in names:
            raise CheckpointFormatError(f"{path}: tensor {name[:100]!r} is stored as {tensor.dtype}; weights are floating point.")
        entries[name] = TensorEntry(names[tensor.dtype], tuple(tensor.shape), 0, tensor.numel() * tensor.element_size())
    return PickleFile(path, entries)


def _load(path: Path) -> dict[str, torch.Tensor]:
    import torch

    if not zipfile.is_zipfile(path):
        raise CheckpointFormatError(f"{path} is a pickle of the old kind or no file of torch's; it is not read. {_CONVERT}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile file may raise anything here, and all of it means the same
        raise CheckpointFormatError(
            f"{path} is a pickle that weights-only loading refuses ({type(error).__name__}); nothing in it was run. {_CONVERT}"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        for name, tensor in content.items()
    ):
        raise CheckpointFormatError(f"{path} holds something else than named tensors. {_CONVERT}")
    return content
