"""Between the learner's tensors and the nouns that are stored: adapter, moments, counters. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from next_ray.errors import ConfigError
from next_ray.learn.masters import MOMENTS
from next_ray.types import Adapter, LearnerState, LoraFactors


@dataclass(frozen=True)
class Progress:
    """Where training stands. `optimizer_steps` counts mini batches applied, `position` (the schedule's clock) those without signal too."""

    position: int = 0
    optimizer_steps: int = 0
    skipped_zero: int = 0
    skipped_nonfinite: int = 0
    rewarm_start: int = 0
    rewarm_steps: int = 0


def as_adapter(weights: Mapping[str, Tensor], scale: float) -> dict[str, LoraFactors]:
    """Weights `<module>.lora_A|lora_B` on CPU as an adapter of one scale."""
    modules = sorted(name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A"))
    return {m: LoraFactors(weights[f"{m}.lora_A"].numpy(), weights[f"{m}.lora_B"].numpy(), scale) for m in modules}


def weights_of(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], scale: float) -> dict[str, Tensor]:
    """An adapter of the trained rank as weights for `scale` (another one goes into B); `ConfigError` when a shape differs."""
    weights: dict[str, Tensor] = {}
    for module, factors in adapter.items():
        b = factors.b if factors.scale == scale else factors.b * np.float32(factors.scale / scale)
        weights[f"{module}.lora_A"] = torch.from_numpy(np.array(factors.a, dtype=np.float32))
        weights[f"{module}.lora_B"] = torch.from_numpy(np.array(b, dtype=np.float32))
    for name in sorted(set(shapes) | set(weights)):
        have = tuple(weights[name].shape) if name in weights else None
        if have != shapes.get(name):
            raise ConfigError(
                f"The adapter's {name} has shape {have}, the learner's {shapes.get(name)}: model, learner.lora.rank and "
                "learner.lora.target_modules must be those the adapter was trained with."
            )
    return weights


def moments_of(state: LearnerState, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Adam's moments `<module>.lora_A|lora_B.exp_avg|exp_avg_sq`; `ConfigError` when one is missing or of another shape."""
    moments: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        for key in (f"{name}.{moment}" for moment in MOMENTS):
            have = np.shape(state.moments[key]) if key in state.moments else None
            if have != shape:
                raise ConfigError(
                    f"The learner state's optimizer moment {key} has shape {have} instead of {shape}: "
                    "it was not written by a learner of this model and adapter."
                )
            moments[key] = torch.from_numpy(np.array(state.moments[key], dtype=np.float32))
    return moments


def progress_of(state: LearnerState) -> Progress:
    """The counters of a stored state."""
    return Progress(**{field.name: int(state.scalars[field.name]) for field in fields(Progress)})
