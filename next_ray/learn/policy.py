"""The model under training: a causal language model, with a LoRA adapter or bare, giving log-probabilities of completion tokens.

Shape legend: S sequences, L padded length, N completion tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from next_ray.config import LoraSection
from next_ray.errors import ModelError
from next_ray.learn.attention import register_short_causal
from next_ray.learn.batches import TokenBatch, token_batch
from next_ray.learn.logprobs import token_logprobs
from next_ray.learn.lora import add_adapter, delta_hook, lora_layers, lora_parameters
from next_ray.types import Adapter

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Log-probabilities of the same tokens, computed in batches of another form, differ by less in these formats, nats."""


class Policy(nn.Module):
    """Wraps a PEFT model, or one that is trained whole, so that one call maps tokens to log-probabilities.

    The head only sees the selected positions.
    """

    def __init__(self, model: Any, temperature: float, entropy_gradient: bool = False, has_adapter: bool = True) -> None:
        super().__init__()
        self.model = model
        self.has_adapter = has_adapter
        self.temperature = temperature
        self.entropy_gradient = entropy_gradient
        self.shares_prompts = False
        self._select: Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._keep_selected)

    def _keep_selected(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self._select is not None
        hidden: Tensor = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._select).unsqueeze(0), *args[1:])

    def forward(self, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, float32 [N], of the batch's targets. With `shares_prompts` each prompt is computed once."""
        shared = tokens.shared if self.shares_prompts else None
        inputs: dict[str, Any] = {"input_ids": tokens.input_ids}
        if shared is not None:
            # A mask of four dimensions is handed through as it is, and `short_causal_attention` needs none.
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=shared.ids.device)
            inputs = {"input_ids": shared.ids, "position_ids": shared.positions, "attention_mask": mask, "shared": shared}
        self._select = tokens.select if shared is None else shared.select
        try:
            logits = self.model(use_cache=False, **inputs).logits
        finally:
            self._select = None
        logprobs, entropies = token_logprobs(logits[0], tokens.targets, self.temperature)
        return logprobs, entropies if self.entropy_gradient else entropies.detach()

    @torch.no_grad()
    def share_prompts(self, device: torch.device) -> None:
        """Compute prompts once from now on, if this model gives the same log-probabilities that way (collective under ZeRO-3).

        It does when everything but attention works on single tokens and attention sees the whole past: not with windows, states or
        convolutions, nor in code that does not pass on what `short_causal_attention` needs.
        """
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
            return
        ids = np.arange(3, 3 + 8) % config.vocab_size
        tokens = token_batch([ids[:4], ids[:4], ids[2:5]], [ids[4:], ids[3:5], ids[:6]], device)
        plain, _ = self(tokens)
        self.shares_prompts = True
        try:
            shared, _ = self(tokens)
        except (TypeError, ValueError, RuntimeError):  # the model's own code takes no positions, or no mask of this form
            self.shares_prompts = False
            return
        self.shares_prompts = bool(torch.allclose(plain, shared, rtol=0.0, atol=TOLERANCES[self.model.dtype]))

    @contextmanager
    def base_model(self) -> Iterator[None]:
        """Inside, the adapter is switched off: the reference policy. Without one nothing changes."""
        with self.model.disable_adapter() if self.has_adapter else nullcontext():
            yield

    @contextmanager
    def other_adapter(self, adapter: Adapter) -> Iterator[None]:
        """Inside, `adapter` (any rank and scale) takes the place of the trained one, or stands beside the trained weights."""
        layers = self.linear_layers()
        unknown = sorted(set(adapter) - set(layers))
        if unknown:
            raise ModelError(f"The adapter has factors for {unknown[0]!r}, but the learner has only {sorted(layers)}.")
        handles = [layers[name].register_forward_hook(delta_hook(factors)) for name, factors in adapter.items()]
        try:
            with self.base_model():
                yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def completion_logprobs(
        self, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray], batch_tokens: int, device: torch.device
    ) -> list[np.ndarray]:
        """Log-probabilities float32 [T] of each completion after its prompt (token ids), in batches of `batch_tokens` padded tokens."""
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]) - len(completions[i]))
        results: list[np.ndarray] = [np.zeros(0, np.float32)] * len(prompts)
        start = 0
        while start < len(order):
            longest = len(prompts[order[start]]) + len(completions[order[start]])
            chunk = order[start : start + max(1, batch_tokens // max(1, longest))]
            start += len(chunk)
            tokens = token_batch([prompts[i] for i in chunk], [completions[i] for i in chunk], device)
            values = self(tokens)[0].cpu()
            for i, part in zip(chunk, values.split(tokens.lengths.tolist()), strict=True):
                results[i] = part.numpy().copy()
        return results

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's factors as `<module>.lora_A|lora_B`, or all parameters by their own names, each once."""
        return lora_parameters(self.model) if self.has_adapter else dict(self.model.named_parameters())

    def linear_layers(self) -> dict[str, Any]:
        """The layers that an adapter may be for, by the base model's names: never the output head."""
        if self.has_adapter:
            return lora_layers(self.model)
        head = self.model.get_output_embeddings()
        return {name: module for name, module in self.model.named_modules() if isinstance(module, nn.Linear) and module is not head}


@dataclass(frozen=True)
class PolicySpec:
    """How to build the policy from a local model folder: with an adapter, or (None) to train all weights.

    Entropies carry a gradient only with `entropy_gradient`.
    """

    model_path: str
    lora: LoraSection | None
    dtype: torch.dtype
    temperature: float
    gradient_checkpointing: bool
    trust_remote_code: bool
    entropy_gradient: bool = False


def load_policy(spec: PolicySpec) -> Policy:
    """Load the base model, switch dropout off and add the adapter if there is one; raises `ModelError` or `ConfigError`.

    No attention mask is ever passed: right padding and causality keep padding out of every token that counts.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    attention = register_short_causal()
    try:
        config = AutoConfig.from_pretrained(spec.model_path, trust_remote_code=spec.trust_remote_code)
        for key, value in config.to_dict().items():
            if key.endswith(("dropout", "pdrop")) and isinstance(value, float):
                setattr(config, key, 0.0)
        model = AutoModelForCausalLM.from_pretrained(
            spec.model_path,
            config=config,
            dtype=spec.dtype,
            attn_implementation=attention,
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"The learner cannot load the model at {spec.model_path!r}: {error}") from error
    trained = model if spec.lora is None else add_adapter(model, spec.lora)
    if spec.gradient_checkpointing:
        trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Dropout is off everywhere; only checkpointing asks for training mode.
    policy = Policy(trained, spec.temperature, spec.entropy_gradient, has_adapter=spec.lora is not None)
    return policy.train(spec.gradient_checkpointing)
