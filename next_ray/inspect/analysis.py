"""All measures of a trajectory in one object, module by module (`summaries.py` brings them together)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from next_ray.delta.history import FactorHistory, ModuleHistory
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.plan import Extrapolator
from next_ray.inspect.backtest import Backtest, Progress, backtest
from next_ray.inspect.directions import Directions, directions
from next_ray.inspect.energy import Energy, energies, random_dense, random_factors
from next_ray.inspect.groups import module_group, module_layer
from next_ray.inspect.linearity import (
    Linearity,
    num_train,
    r2_ahead,
    r2_within,
    random_walks,
    rank1_values,
    sample_entries,
    summary,
    weight_values,
)
from next_ray.inspect.movement import Movement, movement, together
from next_ray.inspect.verdict import Verdict, verdict
from next_ray.types import ModuleTriplets

TOGETHER = 16
"""Modules whose triplets are computed between two signs of progress."""


@dataclass(frozen=True)
class ModuleInspection:
    """One module.

    Args:
        energy: of G_t for each checkpoint [K].
        random: the same of random factors (adapters) or a random matrix of that shape and rank [K].
        ahead: R^2 of linear prediction on unseen checkpoints; None when there are too few.
        within: in-sample R^2 of a line through all checkpoints; None when there are too few.
        exact: whether R^2 is over all entries or over a fixed sample.
    """

    name: str
    group: str
    layer: int | None
    shape: tuple[int, int]
    energy: tuple[Energy, ...]
    random: tuple[Energy, ...]
    directions: Directions
    movement: Movement
    ahead: Linearity | None
    within: Linearity | None
    exact: bool


@dataclass(frozen=True)
class Inspection:
    """A whole trajectory. `walk_ahead` and `walk_within` are what random walks over the same steps have for R^2."""

    steps: tuple[int, ...]
    kind: str
    horizon: int
    num_train: int | None
    modules: tuple[ModuleInspection, ...]
    movement: Movement
    walk_ahead: Linearity | None
    walk_within: Linearity | None
    backtest: Backtest
    verdict: Verdict
    notes: tuple[str, ...] = ()


def default_horizon(num_checkpoints: int) -> int:
    """A third of the checkpoints, as the paper's 5 of 15."""
    return max(1, num_checkpoints // 3)


def checked_horizon(horizon: int | None, num_checkpoints: int) -> int:
    """The default for None; raises `ExtrapolationError` for a horizon below 1."""
    if horizon is not None and horizon < 1:
        raise ExtrapolationError(f"The horizon is the number of checkpoints to look ahead and must be at least 1, got {horizon}.")
    return default_horizon(num_checkpoints) if horizon is None else horizon


def inspect_trajectory(
    trajectory: WeightTrajectory,
    methods: Sequence[Extrapolator],
    horizon: int | None = None,
    full_spectrum: bool = False,
    notes: Sequence[str] = (),
    progress: Progress = lambda what, done, total: None,
) -> Inspection:
    """Measure, back test and judge.

    Args:
        trajectory: at least one checkpoint and one module.
        methods: to be tried on the hidden checkpoints.
        horizon: k; None: a third of the checkpoints.
        full_spectrum: all singular values of dense modules of any size (slow).
        notes: sentences for the reader, handed through.
        progress: told what is being done.

    Raises:
        ExtrapolationError: a horizon that is not positive, or no modules.
    """
    horizon = checked_horizon(horizon, trajectory.num_checkpoints)
    if not trajectory.modules:
        raise ExtrapolationError("The checkpoints hold no weight matrix, so there is nothing to inspect.")
    trajectory = with_triplets(trajectory, horizon, progress)
    train = num_train(trajectory.num_checkpoints)
    known = trajectory.computed[horizon] if trajectory.computed else {}
    found: list[ModuleInspection] = []
    for done, (name, history) in enumerate(trajectory.modules.items()):
        progress("measuring modules", done, len(trajectory.modules))
        found.append(_inspect_module(name, history, trajectory.steps, known[name], train, full_spectrum))
    progress("measuring modules", len(found), len(found))
    everything = together([module.movement for module in found])
    walk_ahead, walk_within = random_walks(trajectory.steps, train)
    results = backtest(trajectory, methods, {module.name: module.movement for module in found}, horizon, progress)
    return Inspection(
        steps=trajectory.steps,
        kind="adapter" if all(isinstance(m, FactorHistory) for m in trajectory.modules.values()) else "dense",
        horizon=horizon,
        num_train=train,
        modules=tuple(found),
        movement=everything,
        walk_ahead=walk_ahead,
        walk_within=walk_within,
        backtest=results,
        verdict=verdict(trajectory, everything, results),
        notes=tuple(notes),
    )


def with_triplets(trajectory: WeightTrajectory, horizon: int, progress: Progress) -> WeightTrajectory:
    """The same with its triplets computed, so that methods and measures share them."""
    if trajectory.computed is not None and horizon in trajectory.computed:
        return trajectory
    from next_ray.delta.trajectory_triplets import trajectory_triplets  # who brings triplets should not wait for torch

    triplets: dict[str, Sequence[ModuleTriplets]] = {}
    names = list(trajectory.modules)
    for start in range(0, len(names), TOGETHER):
        progress("singular triplets", start, len(names))
        triplets |= trajectory_triplets(trajectory.modules, horizon, names[start : start + TOGETHER])
    return replace(trajectory, computed={**(trajectory.computed or {}), horizon: triplets})


def _inspect_module(
    name: str,
    history: ModuleHistory,
    steps: Sequence[int],
    triplets: Sequence[ModuleTriplets],
    train: int | None,
    full_spectrum: bool,
) -> ModuleInspection:
    moved = movement(history)
    energy = energies(history, [t.frobenius_energy for t in triplets], full_spectrum)
    adapter = isinstance(history, FactorHistory)
    random = {rank: random_factors(history.shape, rank) if adapter else random_dense(history.shape) for rank in {e.rank for e in energy}}
    entries = sample_entries(name, history.shape)
    ahead = summary(r2_ahead(steps, rank1_values([t.global_ for t in triplets], entries), train)) if train is not None else None
    within = summary(r2_within(steps, weight_values(history, entries))) if len(steps) > 2 else None
    return ModuleInspection(
        name=name,
        group=module_group(name),
        layer=module_layer(name),
        shape=history.shape,
        energy=tuple(energy),
        random=tuple(random[e.rank] for e in energy),
        directions=directions(triplets),
        movement=moved,
        ahead=ahead,
        within=within,
        exact=entries.exact,
    )
