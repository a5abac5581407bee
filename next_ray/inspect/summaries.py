"""Modules brought together: by kind of matrix, and all of them.

Shape legend: K checkpoints.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from next_ray.inspect.analysis import Inspection, ModuleInspection
from next_ray.inspect.directions import Angles
from next_ray.inspect.energy import Energy
from next_ray.inspect.groups import by_group
from next_ray.inspect.linearity import Linearity

ALL = "all"
"""The group that holds every module."""

MEASURES = ("nuclear", "frobenius", "effective_rank", "stable_rank")


@dataclass(frozen=True)
class GroupSummary:
    """Several modules.

    Args:
        name: the group.
        modules: how many.
        energy: mean over the modules of each measure of `Energy`, by checkpoint [K]; None where no module has it.
        random: the same of their random references.
        floor: mean of 1/R, by checkpoint [K].
        global_, local: median over the modules of the angles between successive triplets [K - 1].
        flips, pairs: sums over the modules.
        straightness: median over the modules.
        ahead, within: R^2 over all their entries (`combined`).
    """

    name: str
    modules: int
    energy: dict[str, tuple[float | None, ...]]
    random: dict[str, tuple[float | None, ...]]
    floor: tuple[float | None, ...]
    global_: tuple[Angles | None, ...]
    local: tuple[Angles | None, ...]
    flips: int
    pairs: int
    straightness: float | None
    ahead: Linearity | None
    within: Linearity | None


def summaries(inspection: Inspection) -> list[GroupSummary]:
    """One per kind of matrix, in the order of the model, and last `ALL`."""
    by_name = {module.name: module for module in inspection.modules}
    groups = {group: [by_name[name] for name in names] for group, names in by_group(by_name).items()}
    return [_summary(group, modules) for group, modules in {**groups, ALL: list(inspection.modules)}.items()]


def combined(parts: Iterable[tuple[Linearity | None, int]]) -> Linearity | None:
    """Several modules' R^2 together, each with its number of matrix entries, for which those that were looked at stand."""
    known = [(part, size / (part.entries + part.constant)) for part, size in parts if part is not None]
    total = sum(scale * part.entries for part, scale in known)
    if total == 0:
        return None
    shares = np.sum([np.array(part.shares) * part.entries * scale for part, scale in known], axis=0) / total
    return Linearity(
        shares=(float(shares[0]), float(shares[1]), float(shares[2]), float(shares[3])),
        strong=sum(part.strong * part.entries * scale for part, scale in known) / total,
        entries=sum(part.entries for part, _ in known),
        constant=sum(part.constant for part, _ in known),
        sse=sum(part.sse * scale for part, scale in known),
        sst=sum(part.sst * scale for part, scale in known),
    )


def typical(found: Sequence[Angles | None]) -> Angles | None:
    """Median of each angle; None when there is none."""
    known = [angles for angles in found if angles is not None]
    if not known:
        return None
    return Angles(*(statistics.median(getattr(angles, part) for angles in known) for part in ("u", "v", "matrix")))


def _summary(name: str, modules: Sequence[ModuleInspection]) -> GroupSummary:
    count, turns = len(modules[0].energy), len(modules[0].directions.global_)
    straight = [value for m in modules if (value := m.movement.straightness) is not None]
    return GroupSummary(
        name=name,
        modules=len(modules),
        energy={measure: _means(modules, count, _measure(measure, "energy")) for measure in MEASURES},
        random={measure: _means(modules, count, _measure(measure, "random")) for measure in MEASURES},
        floor=_means(modules, count, lambda module, t: module.energy[t].floor),
        global_=tuple(typical([m.directions.global_[t] for m in modules]) for t in range(turns)),
        local=tuple(typical([m.directions.local[t] for m in modules]) for t in range(turns)),
        flips=sum(m.directions.flips for m in modules),
        pairs=sum(m.directions.pairs for m in modules),
        straightness=statistics.median(straight) if straight else None,
        ahead=combined((m.ahead, m.shape[0] * m.shape[1]) for m in modules),
        within=combined((m.within, m.shape[0] * m.shape[1]) for m in modules),
    )


def _measure(measure: str, kind: str) -> Callable[[ModuleInspection, int], float | None]:
    def read(module: ModuleInspection, t: int) -> float | None:
        energies: tuple[Energy, ...] = getattr(module, kind)
        return getattr(energies[t], measure)

    return read


def _means(
    modules: Sequence[ModuleInspection], count: int, read: Callable[[ModuleInspection, int], float | None]
) -> tuple[float | None, ...]:
    columns = [[value for module in modules if (value := read(module, t)) is not None] for t in range(count)]
    return tuple(statistics.fmean(column) if column else None for column in columns)
