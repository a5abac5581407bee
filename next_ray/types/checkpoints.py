"""Checkpoints as the store knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from next_ray.types.ref import Ref
from next_ray.types.training import LearnerState


class CheckpointKind(StrEnum):
    """How a checkpoint came to be."""

    TRAINED = "trained"
    PREDICTED = "predicted"
    JUMPED = "jumped"
    REVERTED = "reverted"
    MERGED = "merged"


@dataclass(frozen=True)
class NewCheckpoint:
    """A checkpoint to be committed: the learner's state, the loop's progress, and the ids that retention must spare."""

    step: int
    kind: CheckpointKind
    state: Ref[LearnerState]
    parents: tuple[str, ...]
    progress: Mapping[str, Any]
    keep: tuple[str, ...]


@dataclass(frozen=True)
class ObjectEntry:
    """One immutable object named by a manifest."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The committed description of a checkpoint; readers see a checkpoint only through its manifest."""

    id: str
    run: str
    step: int
    kind: CheckpointKind
    parents: tuple[str, ...]
    base_fingerprint: str
    rank: int
    scale: float
    objects: Mapping[str, ObjectEntry]
    metadata: Mapping[str, Any]
    created_at: str

    @property
    def is_whole(self) -> bool:
        """Whether it names full weights and no adapter."""
        return self.rank == 0
