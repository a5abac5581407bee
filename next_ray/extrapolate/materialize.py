"""From plans to the factors of an adapter: exact (stacked) or recompressed to a rank.

Shape legend: O/I out/in features, Q rank of stacked factors, R rank wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from next_ray.delta.factors import FactorPair
from next_ray.delta.history import Delta, FactorHistory, ModuleHistory
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.plan import ModulePlan, Plans, realize
from next_ray.extrapolate.recompress import recompress_products
from next_ray.types import LoraFactors

LARGEST = float(np.finfo(np.float32).max)
"""A delta whose Frobenius norm is beyond float32 has no place in an adapter."""


@dataclass(frozen=True)
class Materialized:
    """Factors of one common scale (ranks may differ; float32) and sqrt(dropped energy / energy) over all modules."""

    adapter: dict[str, LoraFactors]
    truncation_error: float


def check_plans(plans: Plans, trajectory: WeightTrajectory) -> None:
    """Raises `ExtrapolationError` unless there is one plan for every module of the trajectory and no other."""
    if odd := sorted(set(plans) ^ set(trajectory.modules)):
        raise ExtrapolationError(f"The plans and the trajectory have different modules, for example {odd[:3]}.")


def to_adapter(plans: Plans, trajectory: WeightTrajectory, rank: int | None = None) -> Materialized:
    """The plans as an adapter.

    All modules get one scale, the last checkpoint's if its modules agree on one, else 1. A module whose plan is a checkpoint
    keeps that checkpoint's factors, bit for bit where the scale is the same; a checkpoint plus rank-1 terms keeps them stacked. Sums
    of several checkpoints are factored anew: stacked, their terms would cancel in the bfloat16 that engines hold adapters in.

    Args:
        plans: one per module of the trajectory.
        trajectory: of LoRA factors.
        rank: R, the largest rank of a module; None: as many as the plan stacks (Q, at most min(O, I)).

    Raises:
        ExtrapolationError: full-parameter checkpoints, a plan that no adapter holds exactly (entries removed) without a rank, or
            numbers that are not finite.
    """
    check_plans(plans, trajectory)
    scale = common_scale(trajectory)
    adapter: dict[str, LoraFactors] = {}
    energy = dropped = 0.0
    for name, plan in plans.items():
        history = trajectory.modules[name]
        kept = _checkpoint(plan, history, scale)
        if kept is not None and (rank is None or kept.rank <= rank):
            adapter[name] = kept
            energy += energy_of(kept.b.astype(np.float64) * kept.scale, kept.a.astype(np.float64))
            continue
        pair = _factors(realize(plan, history, name), name, rank)
        own = energy_of(pair.left, pair.right)
        if not own < LARGEST**2:
            raise ExtrapolationError(
                f"Module {name!r}: the extrapolated weights are beyond float32. Lower alpha, or check the checkpoints."
            )
        adds_up = bool(np.count_nonzero(plan.weights) <= 1)
        adapter[name], error = _within(pair, name, scale, rank, _anchor(history, rank), stack=adds_up)
        energy, dropped = energy + own, dropped + error**2 * own
    return Materialized(adapter, float(np.sqrt(dropped / energy)) if energy > 0 else 0.0)


def common_scale(trajectory: WeightTrajectory) -> float:
    """The scale alpha / rank of the last checkpoint's modules if it is one and positive, else 1."""
    scales = {m.factors[m.num_checkpoints - 1].scale for m in trajectory.modules.values() if isinstance(m, FactorHistory)}
    scale = scales.pop() if len(scales) == 1 else 1.0
    return float(scale) if scale > 0 else 1.0


def _checkpoint(plan: ModulePlan, history: ModuleHistory, scale: float) -> LoraFactors | None:
    """The factors of the checkpoint that the plan gives back, none of rank 0 for the base; None when it gives back none."""
    if not isinstance(history, FactorHistory):
        raise ExtrapolationError("Full-parameter checkpoints give a merged model, not an adapter: add --merge.")
    if plan.checkpoint is None:
        return None
    if plan.checkpoint == 0:
        out_features, in_features = history.shape
        return LoraFactors(np.zeros((0, in_features), np.float32), np.zeros((out_features, 0), np.float32), scale)
    factors = history.factors[plan.checkpoint - 1]
    if factors.scale == scale:
        return factors
    return LoraFactors(factors.a, (factors.b.astype(np.float64) * (factors.scale / scale)).astype(np.float32), scale)


def _factors(delta: Delta, name: str, rank: int | None) -> FactorPair:
    if isinstance(delta, FactorPair):
        return delta
    if rank is None:
        raise ExtrapolationError(
            f"Module {name!r}: single entries were removed, which no adapter holds exactly. Give a rank (--rank R) or merge (--merge)."
        )
    return FactorPair(delta, np.eye(delta.shape[1])) if delta.shape[0] >= delta.shape[1] else FactorPair(np.eye(delta.shape[0]), delta)


def _anchor(history: ModuleHistory, rank: int | None) -> LoraFactors | None:
    """The last checkpoint's factors where they have the rank wanted: training can go on from the result at its old speed."""
    assert isinstance(history, FactorHistory)
    last = history.factors[history.num_checkpoints - 1]
    return last if last.rank == rank and last.scale > 0 else None


def _within(
    pair: FactorPair, name: str, scale: float, rank: int | None, anchor: LoraFactors | None, *, stack: bool
) -> tuple[LoraFactors, float]:
    """Stacked as they are where `stack` and the rank allow it, else recompressed; with the share of energy lost."""
    stacked, largest = pair.left.shape[1], min(pair.left.shape[0], pair.right.shape[1])
    if stack and stacked <= (largest if rank is None else rank):
        return LoraFactors(pair.right.astype(np.float32), (pair.left / scale).astype(np.float32), scale), 0.0
    wanted = min(stacked, largest) if rank is None else rank
    anchors = {name: anchor} if anchor is not None and anchor.scale == scale else None
    found = recompress_products({name: (pair.left, pair.right)}, {name: scale}, wanted, anchors)
    return found.adapter[name], found.truncation_error


def energy_of(left: np.ndarray, right: np.ndarray) -> float:
    """|left @ right|_F^2 without the product; at least 0 whatever the rounding."""
    with np.errstate(over="ignore", invalid="ignore"):
        return max(float(np.sum((left.T @ left) * (right @ right.T))), 0.0)
