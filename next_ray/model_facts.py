"""Shapes and parameter counts of decoder models, known without loading or downloading any.

Level 1: standard library; the hub's local cache is looked into, never the network. Only plain dense decoders of the Llama and
Qwen2 families are understood; of anything else nothing is claimed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from next_ray.config import ModelSection

_DENSE_FAMILIES = {"qwen2": True, "llama": False, "mistral": False}
"""Supported `model_type`s and whether q, k and v have biases unless the configuration says otherwise."""


@dataclass(frozen=True)
class LinearShape:
    """A linear layer that can carry LoRA: `count` modules of this name with weight [O, I]."""

    name: str
    out_features: int
    in_features: int
    count: int


@dataclass(frozen=True)
class ModelFacts:
    """What memory estimates need to know of a dense decoder (sizes in elements)."""

    name: str
    num_parameters: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    kv_size: int
    vocab_size: int
    linears: tuple[LinearShape, ...]

    @property
    def linear_parameters(self) -> int:
        """Parameters of all linear layers but the output head."""
        return sum(s.count * s.out_features * s.in_features for s in self.linears)

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head, tied or not."""
        return self.vocab_size * self.hidden_size

    @property
    def query_size(self) -> int:
        """Features of the queries of a layer, all heads."""
        return next(s.out_features for s in self.linears if s.name == "q_proj")

    def lora_parameters(self, rank: int, target_modules: str | list[str] = "all-linear") -> int:
        """Parameters of an adapter of `rank` on the targeted linear layers: sum of R * (O + I)."""
        return sum(s.count * rank * (s.out_features + s.in_features) for s in self.targeted(target_modules))

    def targeted(self, target_modules: str | list[str] = "all-linear") -> list[LinearShape]:
        """The linear layers that get an adapter."""
        return [s for s in self.linears if target_modules == "all-linear" or s.name in target_modules]


def facts_from_config(name: str, config: Mapping[str, Any]) -> ModelFacts | None:
    """Facts from a Hugging Face `config.json`; None when the family is unknown or a size is missing."""
    family = config.get("model_type")
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    optional = [config[key] for key in ("head_dim", "num_key_value_heads") if config.get(key) is not None]
    sizes = [*(config.get(key) for key in needed), *optional]
    if not isinstance(family, str) or family not in _DENSE_FAMILIES or not all(isinstance(n, int) and 0 < n < 2**40 for n in sizes):
        return None
    hidden, inner, layers, heads, vocab = (config[key] for key in needed)
    head_size = config.get("head_dim") or hidden // heads
    query, kv = heads * head_size, (config.get("num_key_value_heads") or heads) * head_size
    linears = (
        LinearShape("q_proj", query, hidden, layers),
        LinearShape("k_proj", kv, hidden, layers),
        LinearShape("v_proj", kv, hidden, layers),
        LinearShape("o_proj", hidden, query, layers),
        LinearShape("gate_proj", inner, hidden, layers),
        LinearShape("up_proj", inner, hidden, layers),
        LinearShape("down_proj", hidden, inner, layers),
    )
    biases = layers * (query + 2 * kv) if config.get("attention_bias", _DENSE_FAMILIES[family]) else 0
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    weights = sum(s.count * s.out_features * s.in_features for s in linears)
    return ModelFacts(
        name=name,
        num_parameters=embeddings + weights + biases + (2 * layers + 1) * hidden,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        kv_size=kv,
        vocab_size=vocab,
        linears=linears,
    )


def facts_of(model: ModelSection) -> ModelFacts | None:
    """Facts of the configured model from the table, its folder or the hub's local cache; None when they are not known here."""
    known = _KNOWN.get(model.name.lower())
    if known is not None:
        return facts_from_config(model.name, known)
    path = _local_config(model)
    if path is None:
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # a dry run estimates what it can; the run itself names what is wrong with the file
    return facts_from_config(model.name, config) if isinstance(config, dict) else None


def _local_config(model: ModelSection) -> Path | None:
    try:
        folder = Path(model.name).expanduser()
        if folder.is_dir():
            return folder / "config.json"
    except (OSError, ValueError, RuntimeError):  # a name that no path can have, or nobody's home
        return None
    if model.name.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model.name, "config.json", revision=model.revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _qwen(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, *, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }


_KNOWN: dict[str, dict[str, Any]] = {
    "tiny": _qwen(192, 512, 2, 6, 6, 17, tied=True),
    "smollm2-135m": _qwen(576, 1536, 30, 9, 3, 49152, tied=True) | {"model_type": "llama"},
    "qwen/qwen2.5-1.5b-instruct": _qwen(1536, 8960, 28, 12, 2, 151936, tied=True),
    "qwen/qwen2.5-3b-instruct": _qwen(2048, 11008, 36, 16, 2, 151936, tied=True),
    "qwen/qwen2.5-7b-instruct": _qwen(3584, 18944, 28, 28, 4, 152064, tied=False),
    "qwen/qwen2.5-14b-instruct": _qwen(5120, 13824, 48, 40, 8, 152064, tied=False),
    "qwen/qwen2.5-32b-instruct": _qwen(5120, 27648, 64, 40, 8, 152064, tied=False),
    "qwen/qwen2.5-72b-instruct": _qwen(8192, 29568, 80, 64, 8, 152064, tied=False),
}
