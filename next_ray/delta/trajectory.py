"""A whole trajectory of weights: which checkpoints, which modules, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from next_ray.delta.history import FactorHistory, ModuleHistory
from next_ray.errors import ExtrapolationError
from next_ray.types import Adapter, CheckpointTriplets, ModuleTriplets


@dataclass(frozen=True)
class WeightTrajectory:
    """Checkpoints 1..K of one training run; the base (step 0) is implied.

    Args:
        steps: training step of each checkpoint, rising [K].
        modules: module name to its deltas.
        accuracies: held-out accuracy of each checkpoint [K], where known.
        base_accuracy: held-out accuracy of the base, where known.
        computed: triplets by horizon and module that somebody (delta workers) has computed already.
    """

    steps: tuple[int, ...]
    modules: Mapping[str, ModuleHistory]
    accuracies: tuple[float, ...] | None = None
    base_accuracy: float | None = None
    computed: Mapping[int, Mapping[str, Sequence[ModuleTriplets]]] | None = None

    @property
    def num_checkpoints(self) -> int:
        """K."""
        return len(self.steps)

    def truncated(self, num_checkpoints: int) -> WeightTrajectory:
        """The trajectory as it was known at checkpoint `num_checkpoints`."""
        if not 1 <= num_checkpoints <= self.num_checkpoints:
            raise ValueError(f"cannot truncate {self.num_checkpoints} checkpoints to {num_checkpoints}")
        return replace(
            self,
            steps=self.steps[:num_checkpoints],
            modules={name: module.truncated(num_checkpoints) for name, module in self.modules.items()},
            accuracies=self.accuracies[:num_checkpoints] if self.accuracies is not None else None,
            computed={
                horizon: {name: found[:num_checkpoints] for name, found in modules.items()}
                for horizon, modules in (self.computed or {}).items()
            },
        )

    def triplets(self, horizon: int) -> list[CheckpointTriplets]:
        """G, L and T of every checkpoint, from `computed` where it is there, else computed here module by module."""
        known = (self.computed or {}).get(horizon)
        found = known if known is not None else {name: module.triplets(horizon) for name, module in self.modules.items()}
        return [
            CheckpointTriplets(index, step, {name: found[name][index - 1] for name in self.modules})
            for index, step in enumerate(self.steps, start=1)
        ]


def from_adapters(
    steps: Sequence[int], adapters: Sequence[Adapter], accuracies: Sequence[float] | None = None, base_accuracy: float | None = None
) -> WeightTrajectory:
    """A trajectory of LoRA adapters; raises `ExtrapolationError` when their modules or sizes differ."""
    if not adapters or len(steps) != len(adapters):
        raise ExtrapolationError(f"A trajectory needs one step per checkpoint, got {len(steps)} steps and {len(adapters)} checkpoints.")
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ExtrapolationError(f"The checkpoints' steps must rise, got {list(steps)}.")
    names = list(adapters[0])
    for step, adapter in zip(steps, adapters, strict=True):
        if set(adapter) != set(names):
            odd = sorted(set(adapter) ^ set(names))
            raise ExtrapolationError(f"The checkpoint of step {step} has other modules than the first, for example {odd[:3]}.")
        for name in names:
            own, first = adapter[name], adapters[0][name]
            if (own.b.shape[0], own.a.shape[1]) != (first.b.shape[0], first.a.shape[1]):
                raise ExtrapolationError(f"Module {name!r} has another size at step {step}; the checkpoint is another model's.")
    modules = {name: FactorHistory([adapter[name] for adapter in adapters]) for name in names}
    return WeightTrajectory(tuple(steps), modules, tuple(accuracies) if accuracies is not None else None, base_accuracy)
