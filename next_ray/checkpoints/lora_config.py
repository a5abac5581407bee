"""What an `adapter_config.json` means for the weights: W = W_0 + (alpha / r) B A, module by module, or a refusal that says why.

Only plain LoRA is linear in this way. Everything that changes the mathematics is named here and refused.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from next_ray.errors import CheckpointFormatError

MAX_RANK = 65536
MAX_PATTERNS = 10_000

PLAIN_STARTS = {True, None, "true", "gaussian", "eva", "orthogonal", "mica"}
"""Initializations that leave the base as it is and start from a zero delta."""

_MERGE = "Merge each checkpoint into a full model (PEFT's merge_and_unload) and give those folders instead."

_REFUSED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("use_dora", bool, "DoRA scales the rows of W_0 + BA by learned magnitudes: its update is no product of two factors"),
    ("use_qalora", bool, "QA-LoRA pools the inputs before A: its update is another one than BA"),
    ("fan_in_fan_out", bool, "the layers store their weights transposed (GPT-2's Conv1D), which is not supported"),
    ("lora_bias", bool, "the adapter trains biases beside B, which would be lost"),
    ("bias", lambda value: value not in (None, "none"), "the adapter trains biases, which would be lost"),
    ("trainable_token_indices", bool, "single tokens of the embedding were trained, which no LoRA delta describes"),
    ("target_parameters", bool, "LoRA on parameters (fused experts) stacks the experts in one factor, which is not supported"),
    ("layer_replication", bool, "layers of the base are repeated: the base's weights have no one-to-one counterpart"),
    ("alora_invocation_tokens", bool, "an activated LoRA applies to some tokens only and cannot be described by weights"),
    ("monteclora_config", bool, "MonteCLoRA samples its weights"),
    ("use_bdlora", bool, "block-diagonal LoRA stores its factors by block"),
    ("arrow_config", bool, "an Arrow router mixes adapters per token and cannot be described by weights"),
    ("kasa_config", bool, "KaSA changes the base and puts a diagonal between the factors"),
)


@dataclass(frozen=True)
class Pattern:
    """A key of `rank_pattern` or `alpha_pattern`, and its value."""

    expression: re.Pattern[str]
    value: float


@dataclass(frozen=True)
class LoraConfig:
    """The part of the configuration that the weights depend on."""

    rank: int
    alpha: float
    rank_patterns: tuple[Pattern, ...]
    alpha_patterns: tuple[Pattern, ...]
    rank_stabilised: bool
    base: str
    saved: tuple[str, ...]
    starts_at_zero: bool

    def rank_of(self, module: str) -> int:
        """The rank that a module should have."""
        return int(_lookup(self.rank_patterns, module, self.rank))

    def scale_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) when rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732)."""
        rank = self.rank_of(module)
        return _lookup(self.alpha_patterns, module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


def parse_lora_config(config: Mapping[str, Any], path: Path) -> LoraConfig:
    """Check a configuration; raises `CheckpointFormatError` naming the file and the field."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointFormatError(f"{path}: peft_type is {str(kind)[:60]!r}; only LORA adapters are read. {_MERGE}")
    for field, applies, reason in _REFUSED:
        if applies(config.get(field)):
            raise CheckpointFormatError(f"{path}: {field} is {str(config[field])[:60]!r}: {reason}. {_MERGE}")
    start = config.get("init_lora_weights", True)
    start = start.lower() if isinstance(start, str) else start
    if not isinstance(start, str | bool | None) or (start not in PLAIN_STARTS and start not in (False, "false")):
        raise CheckpointFormatError(
            f"{path}: init_lora_weights is {str(start)[:60]!r}. Such an initialization moves a part of the base's weights into the "
            "adapter, so that W_0 + BA with the published base is not the trained model. Convert the adapters with PEFT's save_pretrained("
            "path_initial_model_for_weight_conversion=...), or merge each checkpoint into a full model and give those folders instead."
        )
    base = config.get("base_model_name_or_path")
    if base is not None and (not isinstance(base, str) or len(base) > 4096 or not base.isprintable()):
        raise CheckpointFormatError(f"{path}: base_model_name_or_path is no name or path.")
    return LoraConfig(
        rank=_rank(config.get("r"), "r", path),
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha", path),
        rank_patterns=_patterns(config, "rank_pattern", _rank, path),
        alpha_patterns=_patterns(config, "alpha_pattern", _alpha, path),
        rank_stabilised=_flag(config, "use_rslora", path),
        base=base or "",
        saved=_words(config, "modules_to_save", path),
        starts_at_zero=start not in (False, "false"),
    )


def _rank(value: Any, field: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise CheckpointFormatError(f"{path}: {field} is {str(value)[:60]!r}; a rank between 1 and {MAX_RANK} is needed.")
    return value


def _alpha(value: Any, field: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9 or value < 0:
        raise CheckpointFormatError(f"{path}: {field} is {str(value)[:60]!r}; a positive number is needed.")
    if value == 0:
        raise CheckpointFormatError(
            f"{path}: {field} is 0, so that the adapter would change nothing. verl's model merger writes 0 when it does not know the value "
            "of training: set it to the lora_alpha that the run was trained with (its configuration, or lora_train_meta.json, has it)."
        )
    return float(value)


def _flag(config: Mapping[str, Any], field: str, path: Path) -> bool:
    value = config.get(field)
    if not isinstance(value, bool | None):
        raise CheckpointFormatError(f"{path}: {field} is {str(value)[:60]!r}; true or false is needed.")
    return bool(value)


def _words(config: Mapping[str, Any], field: str, path: Path) -> tuple[str, ...]:
    value = config.get(field) or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CheckpointFormatError(f"{path}: {field} is not a list of module names.")
    return tuple(value)


def _patterns(config: Mapping[str, Any], field: str, convert: Callable[[Any, str, Path], float], path: Path) -> tuple[Pattern, ...]:
    table = config.get(field) or {}
    if not isinstance(table, dict) or len(table) > MAX_PATTERNS:
        raise CheckpointFormatError(f"{path}: {field} is not a table of module names.")
    return tuple(Pattern(_compiled(key, field, path), convert(value, f"{field}[{key[:60]!r}]", path)) for key, value in table.items())


def _compiled(key: str, field: str, path: Path) -> re.Pattern[str]:
    """PEFT matches `(.*\\.)?(key)$` from the start of the module's name; here the key must also be one that matches quickly."""
    alternatives = math.prod(part.count("|") + 1 for part in key.split("("))
    if len(key) > 2000 or re.search(r"\)\s*[*+?{]", key) or len(re.findall(r"[*+?{]", key)) > 3 or alternatives > 10_000:
        raise CheckpointFormatError(
            f"{path}: the pattern {key[:60]!r} of {field} is too involved to be matched safely; write the modules' names out."
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError):
        raise CheckpointFormatError(f"{path}: the pattern {key[:60]!r} of {field} is not a regular expression.") from None


def _lookup(patterns: tuple[Pattern, ...], module: str, default: float) -> float:
    return next((pattern.value for pattern in patterns if pattern.expression.match(module)), default)
