"""The trajectory a predictor has seen so far, in one sign gauge."""

from __future__ import annotations

from collections.abc import Mapping

from next_ray.delta.gauge import align
from next_ray.errors import ExtrapolationError
from next_ray.types import CheckpointTriplets, Triplet

Triplets = Mapping[str, Triplet]
"""Module name to triplet."""


class AlignedTrajectory:
    """G_i, L_i and T_i of checkpoints 1..c, signs chained anew, so that the sign of no input triplet matters.

    `globals_[i]`, `locals_[i]` and `targets[i]` map module names to triplets; `targets` ends at i = c - k.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self.globals_: dict[int, dict[str, Triplet]] = {}
        self.locals_: dict[int, dict[str, Triplet]] = {}
        self.targets: dict[int, dict[str, Triplet]] = {}

    @property
    def last_index(self) -> int:
        """Index c of the newest checkpoint, 0 before the first."""
        return len(self.globals_)

    def append(self, triplets: CheckpointTriplets) -> None:
        """Add checkpoint c + 1; raises `ExtrapolationError` for a gap, other modules, or a target that is missing."""
        index = triplets.index
        if index != self.last_index + 1:
            raise ExtrapolationError(
                f"The predictor has {self.last_index} checkpoints and was given number {index}; replay the trajectory from 1."
            )
        before = self.globals_.get(index - 1)
        if before is not None and set(before) != set(triplets.modules):
            odd = sorted(set(before) ^ set(triplets.modules))
            raise ExtrapolationError(f"Checkpoint {index} has other modules than checkpoint {index - 1}, for example {odd[:3]}.")
        origin = index - self.horizon
        untold = [name for name, module in triplets.modules.items() if origin >= 1 and module.target is None]
        if untold:
            raise ExtrapolationError(f"Checkpoint {index} lacks the target delta from checkpoint {origin} for {untold[:3]}.")
        names = sorted(triplets.modules)
        self.globals_[index] = {n: align(triplets.modules[n].global_, before[n] if before else None) for n in names}
        self.locals_[index] = {n: align(triplets.modules[n].local, self.globals_[index][n]) for n in names}
        if origin >= 1:
            targets = {n: triplets.modules[n].target for n in names}
            self.targets[origin] = {n: align(t, self.globals_[origin][n]) for n, t in targets.items() if t is not None}

    def trained(self, index: int) -> list[str]:
        """Modules that moved both since the base and since the checkpoint before; the others have no direction to go on in."""
        local = self.locals_[index]
        return [name for name, triplet in self.globals_[index].items() if triplet.sigma > 0 and local[name].sigma > 0]

    def examples(self) -> list[tuple[int, str]]:
        """(checkpoint, module) of every training example: trained modules whose target is known and not zero."""
        return [(i, name) for i in sorted(self.targets) for name in self.trained(i) if self.targets[i][name].sigma > 0]
