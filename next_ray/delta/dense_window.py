"""Checkpoints of full weights in, triplets out: `DeltaWindow` where no adapter is trained. Weights are read, never held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from next_ray.delta.dense import DenseHistory
from next_ray.errors import ExtrapolationError
from next_ray.types import CheckpointTriplets, ModuleTriplets

Read = Callable[[int, str], np.ndarray]
"""Parameter of checkpoint i, float32; 0 is the base."""


@dataclass(frozen=True)
class _Module:
    """One module's weights at every checkpoint."""

    read: Read
    name: str
    shape: tuple[int, int]

    def load(self, index: int) -> np.ndarray:
        """A copy, which the caller may write to."""
        try:
            weights = self.read(index, f"{self.name}.weight")
        except KeyError:
            raise ExtrapolationError(f"Checkpoint {index} lacks {self.name}.weight: it is another model's.") from None
        if weights.shape != self.shape:
            raise ExtrapolationError(f"Checkpoint {index}: {self.name}.weight has shape {weights.shape} instead of {self.shape}.")
        result = np.array(weights, dtype=np.float32)
        if not np.isfinite(result).all():
            raise ExtrapolationError(
                f"Checkpoint {index}: {self.name}.weight holds NaN or infinity. Training has diverged; lower learner.lr."
            )
        return result


class DenseWindow:
    """Turns checkpoints 1, 2, ... into the triplets of G_i, L_i and T_{i-k} (NExt, arXiv 2604.11446, eq. 6 and 7), module by module.

    Each triplet starts from the one before it, and at most four matrices are in memory (`DenseHistory`).

    Args:
        horizon: k, how many checkpoints ahead the target delta looks.
        shapes: this worker's modules, (O, I) each.
        device: where torch computes.
    """

    def __init__(self, horizon: int, shapes: Mapping[str, tuple[int, int]], device: str = "cpu") -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        self.horizon = horizon
        self._shapes, self._device = dict(shapes), device
        self._results: dict[int, CheckpointTriplets] = {}

    def observe(self, index: int, step: int, read: Read) -> CheckpointTriplets:
        """The triplets of checkpoint `index`; reads it, its predecessor, the one k before and the base. The same index again is free.

        Raises:
            ExtrapolationError: a gap in the indices, another model, or weights that are not finite.
        """
        last = max(self._results, default=0)
        if index in self._results:
            return self._results[index]
        if index != last + 1:
            raise ExtrapolationError(
                f"Checkpoint {index} (step {step}) came after checkpoint {last}; hand over checkpoint {last + 1} first."
            )
        modules = {name: self._triplets(index, name, shape, read) for name, shape in self._shapes.items()}
        self._results[index] = CheckpointTriplets(index, step, modules)
        self._results = {i: result for i, result in self._results.items() if i >= index - self.horizon}
        return self._results[index]

    def _triplets(self, index: int, name: str, shape: tuple[int, int], read: Read) -> ModuleTriplets:
        history = DenseHistory(_Module(read, name, shape), index, device=self._device)
        return history.triplets_at(index, self.horizon, self._known(index - 1, name), self._known(index - self.horizon, name))

    def _known(self, index: int, name: str) -> ModuleTriplets | None:
        return self._results[index].modules[name] if index in self._results else None
