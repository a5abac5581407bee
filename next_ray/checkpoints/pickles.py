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

from next_ray.checkpoints.headers import TensorEntry, as_float32, checked, stamp_of
from next_ray.errors import CheckpointFormatError

if TYPE_CHECKING:
    import torch

_CONVERT = "Convert it where you trust it: load it there and save it with safe_serialization."


@dataclass(frozen=True)
class PickleFile:
    """A weights-only pickle and its table of contents (`begin` and `end` are of no meaning here); `stamp` as for safetensors."""

    path: Path
    entries: Mapping[str, TensorEntry]
    stamp: tuple[int, int]

    def read(self, name: str) -> np.ndarray:
        """The tensor, float32; the file is mapped, so that no other tensor's bytes are read."""
        import torch

        content, stamp = _load(self.path)
        if stamp != self.stamp:
            raise CheckpointFormatError(f"{self.path} changed while it was in use. Read checkpoints that no trainer writes to any more.")
        tensor = content[name].detach().contiguous()
        if tensor.dtype is torch.bfloat16:
            return checked(as_float32(tensor.view(torch.uint16).numpy(), "BF16"), name, self.path)
        # A copy, because the mapped bytes are not for writing.
        return checked(as_float32(tensor.numpy(), "F32").copy(), name, self.path)


def open_pickle(path: Path) -> PickleFile:
    """Read the table of contents; raises `CheckpointFormatError` for anything but a dictionary of dense float tensors."""
    import torch

    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
    entries: dict[str, TensorEntry] = {}
    content, stamp = _load(path)
    for name, tensor in content.items():
        size = tensor.numel() * tensor.element_size()
        if tensor.dtype not in names or size > stamp[0]:
            raise CheckpointFormatError(
                f"{path}: tensor {name[:100]!r} is {tensor.dtype} of {size} bytes; weights are floats and no larger than their file."
            )
        entries[name] = TensorEntry(names[tensor.dtype], tuple(tensor.shape), 0, size)
    return PickleFile(path, entries, stamp)


def _load(path: Path) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    import torch

    _plain_archive(path)
    try:
        with path.open("rb") as handle:
            stamp = stamp_of(handle)
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
    return content, stamp


def _plain_archive(path: Path) -> None:
    """torch writes archives without compression; a compressed one could unfold to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        raise CheckpointFormatError(f"{path} is a pickle of the old kind or no file of torch's; it is not read. {_CONVERT}") from None
    if any(member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size for member in members):
        raise CheckpointFormatError(f"{path} is a compressed archive, which torch does not write; it is not read. {_CONVERT}")
