"""Which checkpoints a path stands for: a folder is recognised by its files, a step read from names and the trainer's state.

Layouts: PEFT `adapter_config.json`; verl `global_step_N/actor/lora_adapter` (RL), `global_step_N/lora_adapter` (model merger) and
`global_step_N/[actor/]huggingface`; TRL and transformers `checkpoint-N`; OpenRLHF `global_stepN_hf`; Hugging Face `config.json`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from next_ray.adapter import CONFIG_FILE
from next_ray.checkpoints.atomic import LINEAGE_FILE
from next_ray.checkpoints.documents import MAX_INDEX_BYTES, read_json
from next_ray.errors import CheckpointFormatError

MODEL_CONFIG = "config.json"
TRAINER_STATE = "trainer_state.json"
MODEL_WEIGHTS = ("*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
INSIDE = ("actor/lora_adapter", "lora_adapter", "actor/huggingface", "huggingface")
"""Where verl keeps the weights below a step's folder, adapters first."""

_WORDED = re.compile(r"(?:.*[_-])?(?:global[_-]?step|checkpoint|step|iter|ckpt|epoch)[_-]?(\d{1,12})(?:[_-](?:hf|merged))?", re.IGNORECASE)
_BARE = re.compile(r"\d{1,12}")
_VERL = re.compile(r"global_step_\d+")
_TRL = re.compile(r"checkpoint-\d+")
_OPENRLHF = re.compile(r"global_step\d+(_hf)?")

Kind = Literal["adapter", "dense"]


@dataclass(frozen=True)
class Found:
    """A checkpoint: its step, the folder with its weights, the trainer's layout, and what the weights are."""

    step: int
    folder: Path
    format: str
    kind: Kind


@dataclass(frozen=True)
class _Candidate:
    """A checkpoint as it was named: `given` carries the step, `folder` the weights."""

    given: Path
    folder: Path
    kind: Kind


def discover(paths: Sequence[str]) -> tuple[list[Found], list[str]]:
    """All checkpoints below the paths by step, and what the user should know.

    Raises:
        CheckpointFormatError: no checkpoint, one without a step, two of one step, adapters beside full models.
    """
    notes: list[str] = []
    candidates = [candidate for path in paths for candidate in _candidates(path, notes)]
    if not candidates:
        raise CheckpointFormatError("No checkpoint was given. Name checkpoint folders, or a folder that holds them.")
    kinds = {candidate.kind: candidate for candidate in candidates}
    if len(kinds) > 1:
        raise CheckpointFormatError(
            f"{kinds['adapter'].given} is an adapter and {kinds['dense'].given} a full model; give checkpoints of one kind."
        )
    steps = [_step(candidate) for candidate in candidates]
    known = [step for step in steps if step is not None]
    if not known and len(candidates) == len(paths):
        notes.append("No path says its training step; the checkpoints are taken in the given order as steps 1, 2, ...")
        known = list(range(1, len(candidates) + 1))
    elif len(known) < len(steps):
        nameless = candidates[steps.index(None)].given
        raise CheckpointFormatError(
            f"{nameless} does not say its training step, neither in its name (checkpoint-100, global_step_100) nor in {TRAINER_STATE}. "
            "Rename it."
        )
    found = sorted(
        (Found(step, c.folder, _format(c), c.kind) for step, c in zip(known, candidates, strict=True)),
        key=lambda checkpoint: checkpoint.step,
    )
    for earlier, later in pairwise(found):
        if earlier.step == later.step:
            raise CheckpointFormatError(f"{earlier.folder} and {later.folder} are both of step {later.step}; name one of them.")
    trainers = {checkpoint.format: checkpoint for checkpoint in found if checkpoint.format not in ("peft", "hf")}
    if len(trainers) > 1:
        one, other, *_ = trainers.values()
        raise CheckpointFormatError(
            f"{one.folder} is laid out as {one.format}'s and {other.folder} as {other.format}'s; give the checkpoints of one run."
        )
    return found, notes


def step_folder(weights: Path) -> Path:
    """The checkpoint's folder whose weights lie in `weights`: further up in verl's layouts."""
    for inside in INSIDE:
        if weights.parts[-len(Path(inside).parts) :] == Path(inside).parts:
            return weights.parents[len(Path(inside).parts) - 1]
    return weights


def gaps(steps: Sequence[int]) -> list[str]:
    """A sentence when checkpoints are missing from an even spacing."""
    distances = [later - earlier for earlier, later in pairwise(steps)]
    if len(set(distances)) < 2:
        return []
    unit = math.gcd(*distances)
    missing = sum(distance // unit - 1 for distance in distances)
    wide = [f"{a} and {b}" for a, b in pairwise(steps) if b - a > min(distances)]
    return [
        f"The steps are not evenly spaced ({missing} of a spacing of {unit} missing, the widest gaps lie between {', '.join(wide[:3])}). "
        "Methods count checkpoints, not steps: a horizon across a gap is longer."
    ]


def _candidates(path: str, notes: list[str]) -> list[_Candidate]:
    try:
        return _scan(path, Path(path).expanduser(), notes)
    except (OSError, RuntimeError, ValueError) as error:  # no permission, nobody's home, a name that no file can have
        raise CheckpointFormatError(f"{path[:300]!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _scan(path: str, folder: Path, notes: list[str]) -> list[_Candidate]:
    if not folder.is_dir():
        what = "is a file; give its folder" if folder.is_file() else "does not exist"
        raise CheckpointFormatError(f"{path} {what}.")
    own = _recognise(folder)
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith((".", "_"))]
    below = [(child, _recognise(child)) for child in children]
    results = [child.name for child, found in below if found is not None and _is_extrapolated(found)]
    below = [(child, found) for child, found in below if child.name not in results]
    if results:
        notes.append(f"{folder}: {_listed(results)} was extrapolated, not trained ({LINEAGE_FILE} is in it), and is left aside.")
    steps = [(child, found) for child, found in below if _named_step(child) is not None]
    if own is not None and not any(found for _, found in steps):
        if _is_extrapolated(own):
            raise CheckpointFormatError(f"{path} was extrapolated ({LINEAGE_FILE} is in it), not trained. Name checkpoints of a trainer.")
        return [own]
    if own is not None:
        notes.append(f"{folder} holds weights itself, without a step; only the checkpoints below it are read.")
    for child, found in steps:
        if found is None:
            raise CheckpointFormatError(f"{child} looks like a checkpoint but {_why_not(child)}")
    if steps and (stepless := [child.name for child, found in below if found is not None and _named_step(child) is None]):
        notes.append(f"{folder}: {_listed(stepless)} has weights but no step in its name and is left aside.")
    chosen = steps or [(child, found) for child, found in below if found is not None]
    if not chosen and results:
        raise CheckpointFormatError(f"{folder} holds only results of extrapolation ({_listed(results)}). Name checkpoints of a trainer.")
    if not chosen:
        raise CheckpointFormatError(f"{folder} is no checkpoint and holds none: it {_why_not(folder)}")
    return [found for _, found in chosen if found is not None]


def _recognise(folder: Path) -> _Candidate | None:
    """The folder as a checkpoint, by its files."""
    for inside in ("", *INSIDE):
        place = folder / inside if inside else folder
        if (place / CONFIG_FILE).is_file():
            return _Candidate(folder, place, "adapter")
        if (place / MODEL_CONFIG).is_file() and any(next(place.glob(pattern), None) for pattern in MODEL_WEIGHTS):
            return _Candidate(folder, place, "dense")
    return None


def _is_extrapolated(candidate: _Candidate) -> bool:
    return any((place / LINEAGE_FILE).is_file() for place in (candidate.given, candidate.folder))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")


def _why_not(folder: Path) -> str:
    for pattern in ("model_world_size_*_rank_*.pt", "actor/model_world_size_*_rank_*.pt"):
        if next(folder.glob(pattern), None):
            return (
                "has only verl's FSDP shards, which are pickles. Let verl save the adapter (it does, for LoRA) or the model "
                "(checkpoint.save_contents with hf_model), or convert the shards with verl.model_merger."
            )
    if any(next(folder.glob(f"{depth}*_model_states.pt"), None) for depth in ("", "*/", "*/*/")):
        return "has only DeepSpeed's checkpoints, which are pickles. Let the trainer save Hugging Face folders (OpenRLHF: --save_hf_ckpt)."
    return f"has neither {CONFIG_FILE} nor {MODEL_CONFIG} with weights."


def _named_step(folder: Path) -> int | None:
    if match := _WORDED.fullmatch(folder.name):
        return int(match[1])
    return int(folder.name) if _BARE.fullmatch(folder.name) else None


def _step(candidate: _Candidate) -> int | None:
    """From the folder's name, or that of the two above it where it carries a word; the trainer's state must agree."""
    above = (_WORDED.fullmatch(parent.name) for parent in candidate.given.absolute().parents[:2])
    named = _named_step(candidate.given.absolute())
    named = next((int(match[1]) for match in above if match), None) if named is None else named
    for place in (candidate.given, candidate.folder):
        if (state := place / TRAINER_STATE).is_file():
            written = read_json(state, MAX_INDEX_BYTES).get("global_step")
            if isinstance(written, bool) or not isinstance(written, int) or written < 0:
                raise CheckpointFormatError(f"{state}: global_step is no step.")
            if named is not None and named != written:
                raise CheckpointFormatError(f"{candidate.given} is named after step {named}, but its {TRAINER_STATE} says {written}.")
            return written
    return named


def _format(candidate: _Candidate) -> str:
    names = [candidate.given.name, *(parent.name for parent in candidate.given.absolute().parents[:2])]
    for pattern, name in ((_VERL, "verl"), (_TRL, "trl"), (_OPENRLHF, "openrlhf")):
        if any(pattern.fullmatch(part) for part in names):
            return name
    return "peft" if candidate.kind == "adapter" else "hf"
