"""Proposed adapters: NExt's rank-1 step (arXiv 2604.11446, eq. 10) and two-point extrapolation (RL-Extra, arXiv 2601.04537).

Shape legend: O/I out/in features, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from next_ray.delta.factors import difference, from_base
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.recompress import Recompressed, recompress_products
from next_ray.types import Adapter, LoraFactors, Triplet


def candidate_name(method: str, alpha: float) -> str:
    """How a candidate is called everywhere, for example `next@1.5` or `two-point@0.5`."""
    return f"{method}@{alpha:g}"


def next_candidate(adapter: Adapter, triplets: Mapping[str, Triplet], alpha: float) -> dict[str, LoraFactors]:
    """W_c + alpha * sigma u v^T per module, exactly, as an adapter of rank R + 1 with the scale it had.

    `a` grows by the row v and `b` by the column (alpha sigma / scale) u. Modules without a triplet were not trained: they get
    zeros, so that the whole adapter has one rank.

    Raises:
        ExtrapolationError: a triplet for a module the adapter lacks, of another size, or a scale of zero.
    """
    strangers = sorted(set(triplets) - set(adapter))
    if strangers:
        raise ExtrapolationError(f"Triplets for modules that the adapter does not have: {strangers[:3]}. They are of another model.")
    result: dict[str, LoraFactors] = {}
    for name, f in adapter.items():
        column, row = np.zeros(f.b.shape[0]), np.zeros(f.a.shape[1])
        if name in triplets:
            triplet = triplets[name]
            if triplet.u.shape != column.shape or triplet.v.shape != row.shape or not f.scale > 0:
                raise ExtrapolationError(
                    f"Module {name!r}: a triplet of {len(triplet.u)} x {len(triplet.v)} does not fit a "
                    f"{len(column)} x {len(row)} adapter of scale {f.scale}."
                )
            column, row = (alpha * triplet.sigma / f.scale) * triplet.u.astype(np.float64), triplet.v
        result[name] = LoraFactors(
            a=np.vstack([f.a, row]).astype(np.float32), b=np.column_stack([f.b, column]).astype(np.float32), scale=f.scale
        )
    return result


def two_point(base: Adapter, start: Adapter, a: float, rank: int, anchor: Adapter | None = None) -> Recompressed:
    """W_b + a (W_s - W_b) per module, at most 2R directions, recompressed to `rank`.

    Formed as `W_s + (a - 1)(W_s - W_b)` with the difference on the factors in float64. See `recompress` for the result and
    `anchor`; without one every module keeps the scale of `start`.

    Raises:
        ExtrapolationError: the two adapters have different modules.
    """
    if set(base) != set(start):
        odd = sorted(set(base) ^ set(start))
        raise ExtrapolationError(f"Two-point extrapolation needs the same modules in both checkpoints; only one has {odd[:3]}.")
    if anchor is not None and set(anchor) != set(start):
        odd = sorted(set(anchor) ^ set(start))
        raise ExtrapolationError(f"The anchor has other modules than the checkpoints, for example {odd[:3]}.")
    products: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, factors in start.items():
        point, step = from_base(factors), difference(factors, base[name])
        left, width = (a - 1.0) * step.left, point.left.shape[1]
        left[:, :width] += point.left
        products[name] = (left, step.right)
    return recompress_products(products, {name: f.scale for name, f in start.items()}, rank, anchor)


def two_point_candidate(current: Adapter, earlier: Adapter, alpha: float, rank: int, anchor: Adapter | None = None) -> Recompressed:
    """W_c + alpha (W_c - W_{c-k}) from the adapters of checkpoints c and c - k: `two_point` with a = 1 + alpha.

    One alpha therefore means the same reach, in horizons, for NExt and for two-point.
    """
    return two_point(base=earlier, start=current, a=1.0 + alpha, rank=rank, anchor=anchor)
