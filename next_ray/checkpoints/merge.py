"""A merged model folder: base weights + deltas, the sum in float32, rounded once to the base's dtype, one tensor at a time.

Shape legend: O/I out/in features.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from next_ray.checkpoints.headers import TensorEntry, open_safetensors
from next_ray.checkpoints.models import HEAD, open_model_folder
from next_ray.checkpoints.tensor_writer import WIDTHS, Edit, copy_edited, decode, encoded_finite
from next_ray.delta.factors import FactorPair
from next_ray.delta.history import Delta
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ExtrapolationError, ModelError
from next_ray.extrapolate.materialize import check_plans
from next_ray.extrapolate.plan import Plans, realize

COPIED = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
"""Files of the base's folder that go with the weights: configuration, tokenizer, chat template, the model's own code."""
NOT_COPIED = ("adapter_config.json", "trainer_state.json", "next_ray_lineage.json", "optimizer.json")
ROWS_ENTRIES = 1 << 22
"""Entries of a delta that are formed at once, in float64."""


@dataclass
class MergeReport:
    """What merging did.

    Args:
        files: file name to sha256 of the weights.
        touched: tensors that were meant to change.
        changed_entries, entries: how many of their entries did, and how many there are.
        rounding_error: |written - base - delta|_F / |delta|_F over them: what the base's dtype could not hold.
    """

    files: dict[str, str] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)
    changed_entries: int = 0
    entries: int = 0
    rounding_error: float = 0.0


@dataclass
class _Sums:
    error: float = 0.0
    delta: float = 0.0


def write_merged(
    draft: Path,
    plans: Plans,
    trajectory: WeightTrajectory,
    base: Path,
    saved: Mapping[str, np.ndarray] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> MergeReport:
    """Fill the empty folder `draft` with the merged model.

    Args:
        draft: where to write.
        plans: one per module of the trajectory; modules that a plan leaves at the base, and all other tensors, are copied bit by bit.
        trajectory: the plans' trajectory, LoRA or full-parameter.
        base: a Hugging Face folder with safetensors weights (one file or shards with an index).
        saved: whole tensors (base tensor name to float32 values) that replace the base's: a LoRA run's `modules_to_save`, or what
            is no matrix in a full-parameter run.
        renamed: module to tensor name in the base, where that is not `<module>.weight`.

    Raises:
        ModelError: the base has no safetensors weights, lacks a module or has it in another size.
        ExtrapolationError: the result would equal the base, or holds numbers that its dtype cannot.
    """
    check_plans(plans, trajectory)
    shards, tied = weight_shards(base), open_model_folder(base).tied
    entries = {name: entry for shard in shards for name, entry in open_safetensors(shard).entries.items()}
    report, sums = MergeReport(), _Sums()
    edits: dict[str, Edit] = {}
    for module, plan in plans.items():
        if plan.checkpoint == 0:
            continue
        for name in _tensor_names((renamed or {}).get(module, f"{module}.weight"), entries, tied, base):
            edits[name] = _addition(module, name, plans, trajectory, report, sums)
            _check_shape(entries[name].shape, trajectory.modules[module].shape, name, base)
    for name in saved or {}:
        if name not in entries:
            raise ModelError(
                f"{base}: no tensor {name!r}, which training saved whole (modules_to_save). Give the base that was trained from (one "
                "with tied embeddings has no head of its own: export an adapter instead)."
            )
        edits[name] = _replacement(name, saved or {}, report, base)
    for shard in shards:
        report.files[shard.name] = copy_edited(shard, draft / shard.name, edits)
    if not report.changed_entries:
        raise ExtrapolationError(
            f"The merged model would be identical to the base {base}: "
            + ("the result moves no module." if not edits else "every change is lost in rounding to the base's dtype. Export an adapter.")
        )
    report.rounding_error = float(np.sqrt(sums.error / sums.delta)) if sums.delta else 0.0
    copy_companions(base, draft)
    return report


def weight_shards(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, by name.

    Raises `ModelError` when the weights are pickles, `CheckpointFormatError` for anything out of order.
    """
    shards = [file.path for file in open_model_folder(folder).files]
    if pickles := [shard.name for shard in shards if shard.suffix != ".safetensors"]:
        raise ModelError(f"{folder}: the weights are pickles ({pickles[0]}); a merged model needs a base with safetensors weights.")
    return shards


def copy_companions(base: Path, draft: Path) -> None:
    """Copy configuration, tokenizer and the like."""
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in COPIED and path.name not in NOT_COPIED:
            shutil.copyfile(path, draft / path.name)


def delta_rows(delta: Delta, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) of a delta, float64."""
    return delta.left[start:stop] @ delta.right if isinstance(delta, FactorPair) else delta[start:stop]


def _addition(module: str, name: str, plans: Plans, trajectory: WeightTrajectory, report: MergeReport, sums: _Sums) -> Edit:
    """base + delta to float32's accuracy; the delta's rows are formed a block at a time, so that no second matrix is needed."""

    def add(data: bytes, entry: TensorEntry) -> bytes:
        delta = realize(plans[module], trajectory.modules[module], module)
        out_features, in_features = trajectory.modules[module].shape
        width, step = in_features * WIDTHS[entry.dtype], max(1, ROWS_ENTRIES // max(1, in_features))
        blocks = []
        for start in range(0, out_features, step):
            stop = min(start + step, out_features)
            moved = delta_rows(delta, start, stop)
            old = decode(data[start * width : stop * width], entry.dtype, moved.shape)
            # Summed in float64: the difference of two stored models comes back as the second, bit for bit.
            block = encoded_finite((old + moved).astype(np.float32), entry.dtype, name)
            written = decode(block, entry.dtype, moved.shape)
            report.changed_entries += int(np.count_nonzero(written != old))
            sums.error += float(np.sum((written.astype(np.float64) - old - moved) ** 2))
            sums.delta += float(np.sum(moved**2))
            blocks.append(block)
        report.touched.append(name)
        report.entries += out_features * in_features
        return b"".join(blocks)

    return add


def _replacement(name: str, saved: Mapping[str, np.ndarray], report: MergeReport, base: Path) -> Edit:
    """The tensor that training left, read only now."""

    def replace(data: bytes, entry: TensorEntry) -> bytes:
        values = saved[name]
        if values.shape != entry.shape:
            raise ModelError(f"{base}: tensor {name!r} has shape {list(entry.shape)}, training saved it as {list(values.shape)}.")
        new = encoded_finite(values, entry.dtype, name)
        changed = decode(new, entry.dtype, entry.shape) != decode(data, entry.dtype, entry.shape)
        report.changed_entries += int(np.count_nonzero(changed))
        report.touched.append(name)
        report.entries += values.size
        return new

    return replace


def _tensor_names(name: str, entries: Mapping[str, TensorEntry], tied: bool, base: Path) -> list[str]:
    """The base's tensors that a module's delta belongs to; two where embeddings are tied and stored twice."""
    if name == HEAD and (tied or name not in entries):
        raise ModelError(
            f"{base}: the head is tied to the embeddings, and the adapter changes the head alone, which one tensor cannot hold. "
            "Export an adapter instead of a merged model."
        )
    if name not in entries:
        raise ModelError(f"{base}: no tensor {name!r}. The checkpoints belong to another model; give their base (--base).")
    return [name, HEAD] if tied and name.endswith("embed_tokens.weight") and HEAD in entries else [name]


def _check_shape(stored: tuple[int, ...], shape: tuple[int, int], name: str, base: Path) -> None:
    """[O, I] as it is, [N] as [1, N], more axes with all but the last in O."""
    rows = int(np.prod(stored[:-1], dtype=np.int64))
    if (rows, stored[-1] if stored else 1) != shape:
        raise ModelError(
            f"{base}: tensor {name!r} has shape {list(stored)}, the trajectory's has {list(shape)}. The checkpoints belong to another "
            "model (or store this layer transposed, which merging does not know); give their base (--base) or export an adapter."
        )
