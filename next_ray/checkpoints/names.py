"""What a tensor's name in an adapter file says, whichever trainer wrote it, and which names are names at all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from next_ray.adapter import PEFT_PREFIX
from next_ray.errors import CheckpointFormatError

WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
"""What FSDP, torch.compile and activation checkpointing put between a module and its name."""

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_UNSUPPORTED = {
    ".lora_embedding_": "is LoRA on an embedding table, whose product is transposed; only linear layers are read",
    ".lora_magnitude_vector": "belongs to DoRA, whose update is no product of two factors",
    ".trainable_tokens_": "holds single trained tokens, which no LoRA delta describes",
    ".lora_diag": "belongs to KaSA, whose update is no product of two factors",
    ".lora_E": "belongs to AdaLoRA, whose update has a diagonal between the factors",
    ".vera_lambda_": "belongs to VeRA, whose factors are shared random matrices",
    ".original_module.": "is a frozen copy of the base's, which PEFT does not save",
}


@dataclass(frozen=True)
class TensorRole:
    """A tensor is factor "A" or "B" of a module, or "saved": kept whole, `target` being a module or a tensor name of the base."""

    kind: Literal["A", "B", "saved"]
    target: str


def role(name: str, path: Path) -> TensorRole:
    """What an adapter's tensor is; raises `CheckpointFormatError` naming the file for what cannot be used."""
    plain = name
    for wrapper in WRAPPERS:
        plain = plain.replace(wrapper, "")
    plain = plain.removeprefix(PEFT_PREFIX)
    check_name(plain, path)
    if match := _FACTOR.fullmatch(plain):
        return TensorRole("A" if match["factor"] == "A" else "B", match["module"].removesuffix(".base_layer"))
    for part, reason in _UNSUPPORTED.items():
        if part in plain:
            raise CheckpointFormatError(f"{path}: tensor {name!r} {reason}. Merge the adapter into full checkpoints and give those.")
    if ".lora_" in plain:
        raise CheckpointFormatError(
            f"{path}: tensor {name!r} is not a LoRA factor that is understood; names end in lora_A.weight and lora_B.weight, "
            "with `.default` in between or without. Files with other adapter names hold several adapters: save the trained one alone."
        )
    return TensorRole("saved", re.sub(r"\.(modules_to_save\.default|base_layer)\.", ".", plain))


def check_name(name: str, path: Path) -> None:
    """Module and tensor names are dotted words: nothing that a path could be made of."""
    if not _NAME.fullmatch(name):
        raise CheckpointFormatError(
            f"{path}: {name[:100]!r} is no module's name (letters, digits, `_` and `-`, joined by dots). The file was tampered with "
            "or is another program's."
        )
