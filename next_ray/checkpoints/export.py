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
from next_ray.checkpoints.tensor_writer import decode, encode, sha256_of, write_tensors
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.extrapolate.materialize import energy_of, to_adapter
from next_ray.extrapolate.plan import Plans
from next_ray.rollout.spec import LORA_RANKS
from next_ray.types import Adapter

CARD_FILE = "README.md"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

SavedTensors = Mapping[str, np.ndarray]
"""Whole tensors of a LoRA run's `modules_to_save` at the last checkpoint: base tensor name to float32 values."""


@dataclass(frozen=True)
class Result:
    """What an extrapolation gave.

    Args:
        plans: one per module.
        trajectory: the plans' trajectory.
        lineage: where the result comes from.
        saved: what the last checkpoint holds whole (`modules_to_save`), which goes with the result.
        renamed: module to tensor name in the base, where that is not `<module>.weight`.
    """

    plans: Plans
    trajectory: WeightTrajectory
    lineage: Lineage
    saved: SavedTensors = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def moved(self) -> int:
        """Modules that no checkpoint has like this."""
        return sum(plan.checkpoint is None for plan in self.plans.values())


@dataclass(frozen=True)
class Written:
    """One exported folder and what its table row says."""

    folder: Path
    kind: Literal["adapter", "merged"]
    num_bytes: int
    facts: Mapping[str, Any] = field(default_factory=dict)


def export_adapter(target: Path, result: Result, *, rank: int | None = None, dtype: str = "float32", overwrite: bool = False) -> Written:
    """Write a PEFT LoRA folder that PEFT and vLLM load.

    All modules have one rank (the widest module's; the others are padded with zeros) and one scale, so that no rank or alpha
    pattern is needed.

    Args:
        target: the folder to make.
        result: of LoRA checkpoints.
        rank: the rank to recompress to; None: exact, as wide as the plans stack.
        dtype: `float32`, `float16` or `bfloat16`.
        overwrite: replace an earlier export.

    Raises:
        StoreError: `target` exists, or the disk refuses.
        ExtrapolationError: the plans do not give an adapter, or numbers that are not finite.
    """
    with new_folder(target, overwrite) as draft:
        facts = fill_adapter(draft, result, rank=rank, dtype=dtype)
        size = _bytes_in(draft)
    return Written(target, "adapter", size, facts)


def export_merged(target: Path, result: Result, base: Path, *, overwrite: bool = False) -> Written:
    """Write a merged Hugging Face folder; see `write_merged` for how, and for the errors beside `StoreError`."""
    with new_folder(target, overwrite) as draft:
        facts = fill_merged(draft, result, base)
        size = _bytes_in(draft)
    return Written(target, "merged", size, facts)


def fill_adapter(draft: Path, result: Result, *, rank: int | None = None, dtype: str = "float32") -> dict[str, Any]:
    """`export_adapter` into an empty folder that somebody else puts in its place; returns the facts of the lineage."""
    found = to_adapter(result.plans, result.trajectory, rank)
    width = max(1, rank or 0, *(f.rank for f in found.adapter.values()))
    adapter = pad_rank(found.adapter, width)
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(adapter):
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = adapter[name].a
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = adapter[name].b
    for name in sorted(result.saved):
        tensors[f"{PEFT_PREFIX}{name}"] = result.saved[name]
    config = peft_config(adapter, result.lineage.base_name)
    if result.saved:
        config["modules_to_save"] = sorted({name.rpartition(".")[0] for name in result.saved})
    files = {WEIGHTS_FILE: write_tensors(tensors, DTYPES[dtype], draft / WEIGHTS_FILE)}
    files[CONFIG_FILE] = _write_text(draft / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
    facts = {
        "kind": "adapter",
        "rank": width,
        "scale": config["lora_alpha"] / width,
        "dtype": dtype,
        "exact": rank is None and dtype == "float32",
        "truncation_error": found.truncation_error,
        "rounding_error": rounding_error(adapter, DTYPES[dtype]),
        "vllm_max_lora_rank": vllm_rank(width),
        "modules": len(adapter),
        "modules_to_save": config["modules_to_save"],
        "moved_modules": result.moved,
    }
    _describe(draft, result.lineage, facts, files)
    return facts


def rounding_error(adapter: Adapter, dtype: str) -> float:
    """|B' A' - B A|_F / |B A|_F over all modules, A' and B' being the float32 factors rounded to `dtype` (`F32`: 0)."""
    if dtype == "F32":
        return 0.0
    lost = energy = 0.0
    for factors in adapter.values():
        a, b = factors.a.astype(np.float64), factors.b.astype(np.float64)
        da, db = (decode(encode(x, dtype), dtype, x.shape) - wide for x, wide in ((factors.a, a), (factors.b, b)))
        lost += factors.scale**2 * energy_of(np.hstack([db, b]), np.vstack([a + da, da]))
        energy += factors.scale**2 * energy_of(b, a)
    return float(np.sqrt(lost / energy)) if energy > 0 else 0.0


def fill_merged(draft: Path, result: Result, base: Path, check: Callable[[Path], Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """`export_merged` into an empty folder that somebody else puts in its place; returns the facts of the lineage.

    `check` sees the folder before it is described, raises when it is not as it should be, and adds its own facts.
    """
    report = write_merged(draft, result.plans, result.trajectory, base, result.saved, result.renamed)
    files = dict(report.files)
    for path in sorted(draft.iterdir()):
        files.setdefault(path.name, sha256_of(path))
    facts = {
        "kind": "merged",
        "touched_tensors": len(report.touched),
        "changed_entries": report.changed_entries,
        "touched_entries": report.entries,
        "rounding_error": report.rounding_error,
        "moved_modules": result.moved,
        **(check(draft) if check is not None else {}),
    }
    _describe(draft, result.lineage, facts, files)
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
