"""The model under training: a causal language model with a LoRA adapter, giving log-probabilities of completion tokens.

Shape legend: S sequences, L padded length, N completion tokens, D hidden size, V vocabulary, R rank, I/O in/out features.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from next_ray.config import LoraSection
from next_ray.errors import ConfigError, ModelError
from next_ray.learn.logprobs import token_logprobs
from next_ray.types import Adapter, LoraFactors

ADAPTER_NAME = "default"


class Policy(nn.Module):
    """Wraps a PEFT model so that one call maps tokens to log-probabilities; the head only sees the selected positions."""

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self._select: Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._keep_selected)

    def _keep_selected(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self._select is not None
        hidden: Tensor = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._select).unsqueeze(0), *args[1:])

    def forward(self, input_ids: Tensor, select: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, float32 [N], of `targets` at the flat positions `select` of `input_ids` [S, L]."""
        self._select = select
        try:
            logits = self.model(input_ids=input_ids, use_cache=False).logits
        finally:
            self._select = None
        return token_logprobs(logits[0], targets, self.temperature)

    @contextmanager
    def base_model(self) -> Iterator[None]:
        """Inside, the adapter is switched off: the reference policy."""
        with self.model.disable_adapter():
            yield

    @contextmanager
    def other_adapter(self, adapter: Adapter) -> Iterator[None]:
        """Inside, `adapter` (any rank and scale) takes the place of the trained one, whose weights are not touched."""
        layers = lora_layers(self.model)
        unknown = sorted(set(adapter) - set(layers))
        if unknown:
            raise ModelError(f"The adapter has factors for {unknown[0]!r}, where the learner has no LoRA layer. Expected {sorted(layers)[0]!r} ...")
        handles = [layers[name].register_forward_hook(_added_delta(factors)) for name, factors in adapter.items()]
        try:
            with self.model.disable_adapter():
                yield
        finally:
            for handle in handles:
                handle.remove()


def _added_delta(factors: LoraFactors) -> Any:
    a, b = torch.from_numpy(np.ascontiguousarray(factors.a)), torch.from_numpy(np.ascontiguousarray(factors.b))

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = args[0]
        low = nn.functional.linear(x, a.to(device=x.device, dtype=x.dtype))
        return output + nn.functional.linear(low, b.to(device=x.device, dtype=x.dtype)) * factors.scale

    return hook


def load_policy(model_path: str, lora: LoraSection, dtype: torch.dtype, temperature: float, checkpointing: bool, trust_remote_code: bool) -> Policy:
    """Load the base model, freeze it and put a LoRA adapter on it; raises `ModelError` or `ConfigError`.

    Scaled-dot-product attention without a mask: right padding and causality keep padding out of every token that counts.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        for key, value in config.to_dict().items():
            if key.endswith(("dropout", "pdrop")) and isinstance(value, float):
                setattr(config, key, 0.0)
        model = AutoModelForCausalLM.from_pretrained(
            model_path, config=config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"The learner cannot load the model at {model_path!r}: {error}") from error
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    try:
        peft_model = get_peft_model(
            model,
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, exclude_modules=[head], task_type="CAUSAL_LM"),
            adapter_name=ADAPTER_NAME,
            autocast_adapter_dtype=False,
        )
    except ValueError as error:
        raise ConfigError(f"learner.lora.target_modules={targets!r} does not fit the model at {model_path!r}: {error}") from error
    if checkpointing:
        peft_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Dropout is off everywhere; only checkpointing asks for training mode.
    return Policy(peft_model, temperature).train(checkpointing)


def lora_layers(model: Any) -> dict[str, Any]:
    """The LoRA layers by the base model's module names."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer)}


def lora_parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """Trained parameters as `<module>.lora_A` [R, I] and `<module>.lora_B` [O, R]."""
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in lora_layers(policy.model).items():
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
