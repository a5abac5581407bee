"""Extrapolated models as folders that other software loads: a PEFT adapter, or a merged Hugging Face model.

Every folder has a model card and `next_ray_lineage.json`; it appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from next_ray.adapter import CONFIG_FILE, PEFT_PREFIX, WEIGHTS_FILE, pad_rank, peft_config
from next_ray.checkpoints.atomic import LINEAGE_FILE, new_folder
from next_ray.checkpoints.card import Lineage, lineage_record, model_card
from next_ray.checkpoints.merge import write_merged
from next_ray.checkpoints.tensor_writer import sha256_of, write_tensors
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.extrapolate.materialize import to_adapter
from next_ray.extrapolate.plan import Plans
from next_ray.rollout.spec import LORA_RANKS

CARD_FILE = "README.md"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

SavedTensors = Mapping[str, np.ndarray]
"""Whole tensors of a LoRA run's `modules_to_save` at the last checkpoint: base tensor name to float32 values."""


@dataclass(frozen=True)
class Written:
    """One exported folder and what its table row says."""

    folder: Path
    kind: Literal["adapter", "merged"]
    num_bytes: int
    facts: Mapping[str, Any] = field(default_factory=dict)


def export_adapter(
    target: Path,
    plans: Plans,
    trajectory: WeightTrajectory,
    lineage: Lineage,
    *,
    rank: int | None = None,
    dtype: str = "float32",
    saved: SavedTensors | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a PEFT LoRA folder that PEFT and vLLM load.

    All modules have one rank (the widest module's; the others are padded with zeros) and one scale, so that no rank or alpha
    pattern is needed.

    Args:
        target: the folder to make.
        plans: one per module.
        trajectory: of LoRA checkpoints.
        lineage: where the result comes from.
        rank: the rank to recompress to; None: exact, as wide as the plans stack.
        dtype: `float32`, `float16` or `bfloat16`.
        saved: the `modules_to_save`, which go with the adapter.
        overwrite: replace an earlier export.

    Raises:
        StoreError: `target` exists, or the disk refuses.
        ExtrapolationError: the plans do not give an adapter, or numbers that are not finite.
    """
    with new_folder(target, overwrite) as draft:
        facts = fill_adapter(draft, plans, trajectory, lineage, rank=rank, dtype=dtype, saved=saved)
        size = _bytes_in(draft)
    return Written(target, "adapter", size, facts)


def export_merged(
    target: Path,
    plans: Plans,
    trajectory: WeightTrajectory,
    lineage: Lineage,
    base: Path,
    *,
    saved: SavedTensors | None = None,
    renamed: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a merged Hugging Face folder; see `write_merged` for how, and for the errors beside `StoreError`."""
    with new_folder(target, overwrite) as draft:
        facts = fill_merged(draft, plans, trajectory, lineage, base, saved=saved, renamed=renamed)
        size = _bytes_in(draft)
    return Written(target, "merged", size, facts)


def fill_adapter(
    draft: Path,
    plans: Plans,
    trajectory: WeightTrajectory,
    lineage: Lineage,
    *,
    rank: int | None = None,
    dtype: str = "float32",
    saved: SavedTensors | None = None,
) -> dict[str, Any]:
    """`export_adapter` into an empty folder that somebody else puts in its place; returns the facts of the lineage."""
    found = to_adapter(plans, trajectory, rank)
    width = max(1, rank or 0, *(f.rank for f in found.adapter.values()))
    adapter = pad_rank(found.adapter, width)
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(adapter):
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = adapter[name].a
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = adapter[name].b
    for name in sorted(saved or {}):
        tensors[f"{PEFT_PREFIX}{name}"] = (saved or {})[name]
    config = peft_config(adapter, lineage.base_name)
    if saved:
        config["modules_to_save"] = sorted({name.rpartition(".")[0] for name in saved})
    files = {WEIGHTS_FILE: write_tensors(tensors, DTYPES[dtype], draft / WEIGHTS_FILE)}
    files[CONFIG_FILE] = _write_text(draft / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
    facts = {
        "kind": "adapter",
        "rank": width,
        "scale": config["lora_alpha"] / width,
        "dtype": dtype,
        "exact": rank is None,
        "truncation_error": found.truncation_error,
        "vllm_max_lora_rank": vllm_rank(width),
        "modules": len(adapter),
        "modules_to_save": config["modules_to_save"],
        "moved_modules": sum(plan.checkpoint is None for plan in plans.values()),
    }
    _describe(draft, lineage, facts, files)
    return facts


def fill_merged(
    draft: Path,
    plans: Plans,
    trajectory: WeightTrajectory,
    lineage: Lineage,
    base: Path,
    *,
    saved: SavedTensors | None = None,
    renamed: Mapping[str, str] | None = None,
    check: Callable[[Path], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """`export_merged` into an empty folder that somebody else puts in its place; returns the facts of the lineage.

    `check` sees the folder before it is described, raises when it is not as it should be, and adds its own facts.
    """
    report = write_merged(draft, plans, trajectory, base, saved, renamed)
    files = dict(report.files)
    for path in sorted(draft.iterdir()):
        files.setdefault(path.name, sha256_of(path))
    facts = {
        "kind": "merged",
        "touched_tensors": len(report.touched),
        "changed_entries": report.changed_entries,
        "touched_entries": report.entries,
        "rounding_error": report.rounding_error,
        "moved_modules": sum(plan.checkpoint is None for plan in plans.values()),
        **(check(draft) if check is not None else {}),
    }
    _describe(draft, lineage, facts, files)
    return facts


def vllm_rank(rank: int) -> int | None:
    """The smallest `max_lora_rank` with which vLLM loads an adapter of this rank; None: vLLM knows no such rank."""
    return next((allowed for allowed in LORA_RANKS if allowed >= max(rank, 8)), None)


def _describe(draft: Path, lineage: Lineage, facts: Mapping[str, Any], files: Mapping[str, str]) -> None:
    record = lineage_record(lineage, facts, files)
    _write_text(draft / LINEAGE_FILE, json.dumps(record, indent=2, allow_nan=False) + "\n")
    _write_text(draft / CARD_FILE, model_card(record))


def _write_text(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return sha256_of(path)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
