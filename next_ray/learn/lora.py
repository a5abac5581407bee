"""The LoRA layers of a PEFT model: finding them, starting them, standing in for them.

Shape legend: N tokens, R rank, I/O in/out features.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from next_ray.config import LoraSection
from next_ray.errors import ConfigError
from next_ray.types import LoraFactors

ADAPTER_NAME = "default"


def add_adapter(model: Any, lora: LoraSection) -> Any:
    """Freeze a transformers model and put a LoRA adapter on it (never on the head); `ConfigError` when no module matches."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.layer import LoraVariant

    class ScaledInside(LoraVariant):
        """`x W + (x A * scale) B`: PEFT's own forward multiplies the wide output, which costs a tenth of a small model's step."""

        @staticmethod
        def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
            return result + module.lora_B[active_adapter](module.lora_A[active_adapter](x) * module.scaling[active_adapter])

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT only divides it by the rank
        lora_dropout=0.0,
        target_modules=targets,
        exclude_modules=[head],
        task_type="CAUSAL_LM",
    )
    try:
        peft_model = get_peft_model(model, config, adapter_name=ADAPTER_NAME, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(f"learner.lora.target_modules={targets!r} does not fit the model: {error}") from error
    for layer in lora_layers(peft_model).values():
        layer.lora_variant[ADAPTER_NAME] = ScaledInside()
    return peft_model


def lora_layers(peft_model: Any) -> dict[str, Any]:
    """The LoRA layers by the base model's module names."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in peft_model.base_model.model.named_modules() if isinstance(module, LoraLayer)}


def lora_parameters(peft_model: Any) -> dict[str, nn.Parameter]:
    """Trained parameters as `<module>.lora_A` [R, I] and `<module>.lora_B` [O, R]."""
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in lora_layers(peft_model).items():
        parameters[f"{name}.lora_A"] = layer.lora_A[ADAPTER_NAME].weight
        parameters[f"{name}.lora_B"] = layer.lora_B[ADAPTER_NAME].weight
    return parameters


def initial_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """LoRA's start: A uniform in +-1/sqrt(I) (Kaiming with a = sqrt 5, as PEFT does), B zero; float32.

    Drawn per tensor from the seed and its name, hence equal on every rank and for every world size.
    """
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = np.zeros(shape, dtype=np.float32)
        if name.endswith(".lora_A"):
            bound = shape[1] ** -0.5
            generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
            values = generator.uniform(-bound, bound, size=shape).astype(np.float32)
        weights[name] = torch.from_numpy(values)
    return weights


def delta_hook(factors: LoraFactors) -> Any:
    """A forward hook that adds `(x A * scale) B` to a layer's output, with the factors in the output's format."""
    a, b = torch.from_numpy(np.array(factors.a, dtype=np.float32)), torch.from_numpy(np.array(factors.b, dtype=np.float32))

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = args[0]
        low = nn.functional.linear(x, a.to(device=x.device, dtype=x.dtype)) * factors.scale
        return output + nn.functional.linear(low, b.to(device=x.device, dtype=x.dtype))

    return hook
