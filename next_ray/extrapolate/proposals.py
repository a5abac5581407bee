"""The candidates of a running job: every wanted method and alpha over the trajectory so far, as adapters.

Shape legend: R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.materialize import Materialized, to_adapter
from next_ray.extrapolate.methods.registry import make
from next_ray.extrapolate.plan import Fitted, Setting

WINDOWED = frozenset({"next", "two-point"})
"""Methods that need the last k + 1 checkpoints only (`next` has learned from the others when they came)."""


@dataclass(frozen=True)
class Proposed:
    """One adapter per wanted candidate, None where its method abstained; why, by method."""

    adapters: tuple[Materialized | None, ...]
    abstained: Mapping[str, str]


def candidate_name(method: str, alpha: float) -> str:
    """How a candidate is called everywhere, for example `next@1.5` or `two-point@0.5`."""
    return f"{method}@{alpha:g}"


def make_candidates(
    wanted: Sequence[tuple[str, float]], trajectory: WeightTrajectory, setting: Setting, fitted: Mapping[str, Fitted], rank: int
) -> Proposed:
    """The candidates, each of at most rank R.

    Args:
        wanted: (method, alpha).
        trajectory: LoRA checkpoints, the last one being where a jump would start.
        setting: horizon and seed.
        fitted: methods that have been fitted already; the others are fitted here. One that cannot work with the trajectory abstains:
            that is no reason to stop training.
        rank: R of the result.
    """
    abstained: dict[str, str] = {}
    ready = dict(fitted)
    for method in dict.fromkeys(name for name, _ in wanted):
        if method in ready:
            continue
        try:
            ready[method] = make(method).fit(trajectory, setting)
        except ExtrapolationError as error:
            abstained[method] = str(error)
    for method, found in ready.items():
        if "abstains" in found.notes:
            abstained[method] = found.notes["abstains"]
    return Proposed(
        tuple(None if method in abstained else to_adapter(ready[method].at(alpha), trajectory, rank) for method, alpha in wanted), abstained
    )
