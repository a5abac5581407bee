"""What an import gives: the trajectory, where every checkpoint came from, the base, and what a user should know about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import CheckpointFormatError


@dataclass(frozen=True)
class Source:
    """One checkpoint: its training step, where it lies (a folder, or an object's URL), which trainer's layout it has.

    `format` is "peft", "verl", "trl", "openrlhf", "store" or "hf". `files` are the paths of the weight files and `sha256` their
    hashes by file name, empty until somebody asks for them (`hashes.with_hashes`).
    """

    step: int
    path: str
    format: str
    files: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """The model that training started from, checkpoint 0.

    `name` is what the checkpoints call it (or the given path), `path` its folder where it is known to be here, `fingerprint` its
    `models.folder.fingerprint`, where a store recorded it or somebody asked for it (`hashes.with_hashes`).
    """

    name: str
    path: Path | None = None
    fingerprint: str | None = None


class SavedModules(Protocol):
    """Tensors that a checkpoint holds whole (`modules_to_save`, and a full model's vectors): taken over, not extrapolated."""

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names as the base model has them, for example `lm_head.weight`; the same at every checkpoint."""
        ...

    def load(self, index: int, name: str) -> np.ndarray:
        """The tensor at checkpoint `index` (1..K), float32."""
        ...


class NothingSaved:
    """No such tensors."""

    names: tuple[str, ...] = ()

    def load(self, index: int, name: str) -> np.ndarray:
        """There is nothing to load."""
        raise KeyError(name)


@dataclass(frozen=True)
class Imported:
    """A trajectory with its origin.

    Args:
        trajectory: checkpoints 1..K; modules under the base model's names, weights read when they are asked for.
        kind: whether the checkpoints are adapters or full weights.
        sources: one per checkpoint, in order.
        base: checkpoint 0.
        saved: tensors that are not extrapolated.
        notes: sentences for the user: gaps, renamed modules, things left aside.
        adapter_config: the last checkpoint's `adapter_config.json`, where there is one.
        renamed: module to tensor name in the base's files, for modules whose tensor is not `<module>.weight`.
    """

    trajectory: WeightTrajectory
    kind: Literal["adapter", "dense"]
    sources: tuple[Source, ...]
    base: Base
    saved: SavedModules = field(default_factory=NothingSaved)
    notes: tuple[str, ...] = ()
    adapter_config: Mapping[str, object] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def base_tensor(self, module: str) -> str:
        """The name of a module's weight in the base's files."""
        return self.renamed.get(module, f"{module}.weight")

    def with_accuracies(self, accuracies: Mapping[int, float]) -> Imported:
        """The same with held-out accuracies by training step; step 0 is the base's. Every checkpoint needs one.

        Raises:
            CheckpointFormatError: a checkpoint without accuracy, an accuracy without checkpoint, or one outside 0..1.
        """
        steps = self.trajectory.steps
        _same_steps(steps, accuracies)
        for step, value in accuracies.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0.0 <= value <= 1.0:
                raise CheckpointFormatError(f"The accuracy of step {step} is {value!r}; a share between 0 and 1 is needed.")
        trajectory = replace(self.trajectory, accuracies=tuple(float(accuracies[step]) for step in steps), base_accuracy=accuracies.get(0))
        return replace(self, trajectory=trajectory)


def _same_steps(steps: Sequence[int], accuracies: Mapping[int, float]) -> None:
    missing = [step for step in steps if step not in accuracies]
    if missing:
        raise CheckpointFormatError(f"No accuracy is given for step {', '.join(map(str, missing))}; every checkpoint needs one.")
    if foreign := sorted(set(accuracies) - {0, *steps}):
        known = ", ".join(map(str, steps))
        raise CheckpointFormatError(f"An accuracy is given for step {foreign[0]}, which is no checkpoint's; there are {known}.")
