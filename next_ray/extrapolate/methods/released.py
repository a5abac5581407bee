"""The released NExt predictor behind the protocol.

Shape legend: K = c checkpoints, k horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from next_ray.delta.gauge import canonical
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.methods.common import check, require
from next_ray.extrapolate.methods.next import from_last_along
from next_ray.extrapolate.plan import Fitted, Needs, Setting
from next_ray.predict.facts import RELEASED_HIDDEN, RELEASED_STEPS
from next_ray.types import CheckpointTriplets, ModuleTriplets


@dataclass(frozen=True)
class NextReleased:
    """NExt's predictor as released (arXiv 2604.11446; `predict.released`): W_c + alpha sigma u v^T, no correction, no back test.

    The release takes the signs that its SVD returns and does not align them. Here each triplet has the sign that makes its largest
    entry of u positive, whatever its neighbours have, so that a result can be repeated. Only modules that moved are touched; the
    release also moves frozen tensors, along arbitrary vectors.

    Args:
        signs: `own`, every triplet by itself as described; `aligned`, chained along the trajectory as in `next`.
        steps: full-batch steps.
        hidden: width of the bottlenecks.
    """

    signs: Literal["own", "aligned"] = "own"
    steps: int = RELEASED_STEPS
    hidden: int = RELEASED_HIDDEN

    name = "next-released"
    neutral = 0.0
    forecast = 1.0
    alphas = (0.5, 1.0, 1.5)

    def __post_init__(self) -> None:
        """Settings in range."""
        check(self.steps >= 1, "next-released: steps", "at least 1", self.steps)
        check(self.hidden >= 1, "next-released: hidden", "at least 1", self.hidden)

    def needs(self, horizon: int) -> Needs:
        """One known target."""
        return Needs(horizon + 1)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Fit all networks once; raises `ExtrapolationError` when no module has moved."""
        from next_ray.predict.released import foretell  # a list of methods should not wait for torch

        require(self, trajectory, setting)
        triplets = trajectory.triplets(setting.horizon)
        if self.signs == "own":
            triplets = [with_own_signs(checkpoint) for checkpoint in triplets]
        found = foretell(triplets, setting.horizon, setting.seed, self.steps, self.hidden)
        if not found:
            raise ExtrapolationError("next-released has nothing to learn from: no module moved between the checkpoints.")
        return from_last_along(trajectory, found, {})


def with_own_signs(checkpoint: CheckpointTriplets) -> CheckpointTriplets:
    """Each triplet in its own canonical sign, not aligned to any other."""

    def signed(module: ModuleTriplets) -> ModuleTriplets:
        target = None if module.target is None else canonical(module.target)
        return replace(module, global_=canonical(module.global_), local=canonical(module.local), target=target)

    return replace(checkpoint, modules={name: signed(module) for name, module in checkpoint.modules.items()})
