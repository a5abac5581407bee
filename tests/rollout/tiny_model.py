"""A tiny random Qwen2 with a character tokenizer, and transformers + PEFT as the second opinion on its log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from next_ray.adapter import write_peft_folder
from next_ray.types import Adapter, Completion, LoraFactors, Prompt

CHARACTERS = "0123456789+-= "
END = 1


def save_tiny_model(folder: Path, characters: str = CHARACTERS, seed: int = 0) -> None:
    """Weights are large enough that the predictions are neither uniform nor certain."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *characters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # of 32, the smallest that vLLM's CPU attention takes
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.12,
        tie_word_embeddings=False,
        eos_token_id=END,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = END
    model.bfloat16().save_pretrained(folder)


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Module name to (O, I) of all linear layers but the head."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {name: (m.out_features, m.in_features) for name, m in linear.items() if name != "lm_head"}


def prompt(text: str) -> Prompt:
    return Prompt(id=text, messages=({"role": "user", "content": text},), answer="", verifier="exact")


class SecondOpinion:
    """Log-probabilities by transformers and PEFT in float32, under the base (version 0) or an adapter."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder, self._scratch = folder, scratch

    def logprobs(self, adapter: Adapter | None, prompt_ids: np.ndarray, completion: Completion, temperature: float) -> np.ndarray:
        model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32)
        if adapter is not None:
            folder = self._scratch / f"peft-{id(adapter)}"
            if not folder.exists():
                write_peft_folder(adapter, folder, "tiny")
            model = PeftModel.from_pretrained(model, folder)
        ids = torch.from_numpy(np.concatenate([prompt_ids, completion.token_ids])).long()
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(prompt_ids) - 1 : -1].float() / temperature
        chosen = torch.from_numpy(completion.token_ids).long()[:, None]
        return logits.log_softmax(-1).gather(-1, chosen)[:, 0].numpy()


def rescaled(adapter: Mapping[str, LoraFactors], factor: float) -> dict[str, LoraFactors]:
    return {name: LoraFactors(a=f.a, b=f.b, scale=f.scale * factor) for name, f in adapter.items()}
