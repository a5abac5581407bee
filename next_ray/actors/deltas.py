"""Delta workers: the triplets of a shard of modules, computed beside training."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from next_ray.actors.metrics import count_seconds
from next_ray.actors.observed import RunActor
from next_ray.actors.parts import Reader
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.checkpoints.models import open_model_folder
from next_ray.delta.dense_window import DenseWindow
from next_ray.delta.window import DeltaWindow
from next_ray.types import Adapter, CheckpointTriplets

BACKGROUND_NICENESS = 10
"""On a CPU machine trajectory work yields to rollout and update."""


class DeltaActor(RunActor):
    """Computes the triplets of its shard of modules, on a device of torch or (None) by numpy; holds the last k+1 checkpoints' factors."""

    def __init__(self, horizon: int, modules: Sequence[str], device: str | None) -> None:
        os.nice(BACKGROUND_NICENESS)
        self._horizon, self._modules, self._device = horizon, tuple(modules), device
        self.restart()

    def restart(self) -> None:
        """Forget the trajectory."""
        self._window = DeltaWindow(self._horizon, self._modules, self._device)

    def observe(self, index: int, step: int, adapter: Adapter) -> tuple[CheckpointTriplets, float]:
        """Triplets of checkpoint `index`, and the seconds they took."""
        started = time.perf_counter()
        triplets = self._window.observe(index, step, adapter)
        return triplets, _worked(started)


class DenseDeltaActor(RunActor):
    """The same where all weights are trained: holds references to the last k+1 checkpoints and reads them module by module."""

    def __init__(self, horizon: int, shapes: Mapping[str, tuple[int, int]], device: str | None, place: ModelPlace, files: Any) -> None:
        os.nice(BACKGROUND_NICENESS)
        self._horizon, self._shapes, self._device = horizon, shapes, device or "cpu"
        self._base = open_model_folder(Path(localize(place, files)))
        self.restart()

    def restart(self) -> None:
        """Forget the trajectory."""
        self._window = DenseWindow(self._horizon, self._shapes, self._device)
        self._reader = Reader()

    def observe(self, index: int, step: int, policy: Any) -> tuple[CheckpointTriplets, float]:
        """Triplets of checkpoint `index`, a learner state or references to float32 weights, and the seconds they took."""
        started = time.perf_counter()
        self._reader.hold(index, policy)
        triplets = self._window.observe(index, step, self._read)
        self._reader.drop_before(index - self._horizon + 1)
        return triplets, _worked(started)

    def _read(self, index: int, name: str) -> np.ndarray:
        return self._reader.read(index, name) if index else self._base.read(name)


def _worked(started: float) -> float:
    """Seconds since `started`, counted as delta work."""
    seconds = time.perf_counter() - started
    count_seconds("next_ray_delta_seconds", seconds)
    return seconds


DeltaRemote = ray.remote(DeltaActor)
DenseDeltaRemote = ray.remote(DenseDeltaActor)
