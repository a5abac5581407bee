"""All triplets of a trajectory of LoRA factors from one pass over them: G_i, L_i and T_{i-k} of NExt (arXiv 2604.11446, eq. 6 and 7).

Every delta of the trajectory is W_i - W_j = [L_i | -L_j] [R_i ; R_j] with L = scale * B and R = A, and its singular values and vectors
depend on the factors only through the R x R products L_i^T L_j and R_i R_j^T. Each product is computed once, in float64; the Gram
matrices of all deltas are put together from them; vectors come from one product a side.

A small difference of large products cancels in these sums, and the error of sigma^2 is about eps |L|^2 |R|^2. So each result is tested
on the vectors themselves, and a delta goes the slower way, by factors that are subtracted first (`difference`), when sigma^2 is
below `cores.CANCELLATION` |L|^2 |R|^2, or when |u| = 1 or D^T u = sigma v is missed by more than `GRAM_TOLERANCE`.

Shape legend: K checkpoints, O/I out/in features, R largest rank of the trajectory, S deltas, Q rank of a stacked pair (R or 2R),
C deltas that a checkpoint takes part in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from next_ray.delta.cores import Core, difference_core, global_core, pair_gram, products
from next_ray.delta.factors import FLAT, GRAM_TOLERANCE, Spectrum, difference, from_base, spectra, spectrum
from next_ray.delta.gauge import align
from next_ray.errors import ExtrapolationError
from next_ray.threads import one_thread
from next_ray.types import LoraFactors, ModuleTriplets, Triplet

if TYPE_CHECKING:
    from next_ray.delta.history import ModuleHistory


@dataclass(frozen=True)
class Found:
    """Top triplets u [S, O] and v [S, I] float32, sigma [S] float64, and which of them passed the test, bool [S]; on the CPU."""

    u: np.ndarray
    sigma: np.ndarray
    v: np.ndarray
    good: np.ndarray

    def triplet(self, index: int) -> Triplet:
        """One of them."""
        return Triplet(float(self.sigma[index]), self.u[index], self.v[index])


def trajectory_triplets(
    modules: Mapping[str, ModuleHistory], horizon: int, names: Sequence[str] | None = None, threads: int | None = None
) -> dict[str, list[ModuleTriplets]]:
    """Triplets of many modules, one module a thread at a time: memory holds `threads` modules beside the results.

    Args:
        modules: module name to history.
        horizon: k, in checkpoints.
        names: the modules that are wanted; None: all.
        threads: modules in work at once; None: torch's number of threads. Each works with one thread of its own.
    """
    wanted = list(modules) if names is None else list(names)
    count = threads if threads is not None else torch.get_num_threads()
    if count == 1 or len(wanted) < 2:
        return {name: modules[name].triplets(horizon) for name in wanted}
    with one_thread(), ThreadPoolExecutor(count) as pool:
        return dict(zip(wanted, pool.map(lambda name: modules[name].triplets(horizon), wanted), strict=True))


def factor_triplets(factors: Sequence[LoraFactors], horizon: int, device: str = "cpu") -> list[ModuleTriplets]:
    """G_i, L_i and T_{i-k} for i = 1..K of one module, signs aligned; an element of `factors` is read once, again only to fall back.

    Args:
        factors: one adapter a checkpoint; ranks and scales may differ.
        horizon: k >= 1, in checkpoints.
        device: where torch computes, in float64.

    Raises:
        ExtrapolationError: checkpoints of different shapes, or NaN or infinity.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    left, right, ranks = _stacked(factors, device)
    count = len(ranks)
    offsets = [offset for offset in sorted({1, horizon}) if offset < count]
    left_products, right_products = products(left, offsets), products(right, offsets)
    if not (torch.isfinite(left_products[0]).all() and torch.isfinite(right_products[0]).all()):
        raise ExtrapolationError("LoRA factors hold NaN or infinity: training has diverged, or a file is damaged.")
    values, own_core = global_core(left_products[0], right_products[0], [min(rank, left.shape[2], right.shape[2]) for rank in ranks])
    differences = [difference_core(pair_gram(left_products, m, -1.0), pair_gram(right_products, m, 1.0)) for m in offsets]
    own, *pairs = _vectors(left, right, [own_core, *differences], [0, *offsets])
    del left, right
    globals_ = [Spectrum(values[i], own.triplet(i)) if own.good[i] else _exact(factors[i]) for i in range(count)]
    local_and_target = {
        m: [found.triplet(i) if found.good[i] else _subtracted(factors[i + m], factors[i]) for i in range(count - m)]
        for m, found in zip(offsets, pairs, strict=True)
    }
    return _aligned(globals_, local_and_target, horizon)


def _stacked(factors: Sequence[LoraFactors], device: str) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(scale * B)^T [K, R, O] and A [K, R, I] in float64, zero beyond a checkpoint's own rank; and the ranks."""
    left = right = torch.empty(0)
    ranks: list[int] = []
    for index in range(len(factors)):
        own = factors[index]
        out_features, in_features, rank = own.b.shape[0], own.a.shape[1], own.rank
        if index == 0:
            left = _empty((len(factors), rank, out_features), device)
            right = _empty((len(factors), rank, in_features), device)
        if (out_features, in_features) != (left.shape[2], right.shape[2]):
            raise ExtrapolationError(
                f"Checkpoint {index + 1} of the trajectory has a {out_features} x {in_features} module where the first has "
                f"{left.shape[2]} x {right.shape[2]}: it belongs to another model."
            )
        if rank > left.shape[1]:
            left, right = (torch.nn.functional.pad(part, (0, 0, 0, rank - part.shape[1])) for part in (left, right))
        for part, source, scale in ((left[index], own.b.T, own.scale), (right[index], own.a, 1.0)):
            part[rank:] = 0.0
            _upcast(part[:rank], source, scale)
        ranks.append(rank)
    return left, right, ranks


def _empty(shape: tuple[int, ...], device: str) -> torch.Tensor:
    """Float64. On the CPU numpy allocates: it asks for huge pages, and filling fresh memory takes a quarter of the time."""
    return torch.from_numpy(np.empty(shape)) if device == "cpu" else torch.empty(shape, dtype=torch.float64, device=device)


def _upcast(target: torch.Tensor, source: np.ndarray, scale: float) -> None:
    if target.device.type == "cpu":
        np.multiply(source, scale, out=target.numpy(), dtype=np.float64)
    else:
        target.copy_(torch.from_numpy(np.require(source, requirements=["W"]))).mul_(scale)


def _vectors(left: torch.Tensor, right: torch.Tensor, cores: Sequence[Core], offsets: Sequence[int]) -> list[Found]:
    """u = D v / |.|, then v = D^T u / sigma with sigma = |D^T u|: one step beyond the core, on the factors themselves.

    The result is good when the core's u was of length 1 and its v is the new one.
    """
    count, rank, _ = left.shape
    u = [_unit(part) for part in _deltas(_taken(_halves([core.y for core in cores], rank, -1.0), offsets, count) @ left, offsets)]
    lengths, units = [length for length, _ in u], [vector for _, vector in u]
    products = _taken([(vector, vector) for vector in units], offsets, count) @ left.mT
    w = [products[:, 0]] + [
        torch.cat([products[m:, 2 * n - 1], -products[: count - m, 2 * n]], dim=1) for n, m in enumerate(offsets) if n > 0
    ]
    v = [_unit(part) for part in _deltas(_taken(_halves(w, rank, 1.0), offsets, count) @ right, offsets)]
    found = []
    for core, coordinates, length, u_n, (sigma, v_n) in zip(cores, w, lengths, units, v, strict=True):
        moved = (coordinates / sigma.clamp(min=FLAT)[:, None] - core.x)[:, :, None]
        residual = (moved.mT @ core.right @ moved)[:, 0, 0].clamp(min=0.0).sqrt()
        good = core.trusted & ((length - 1.0).abs() <= GRAM_TOLERANCE) & (residual <= GRAM_TOLERANCE)
        found.append(Found(u_n.float().cpu().numpy(), sigma.cpu().numpy(), v_n.float().cpu().numpy(), good.cpu().numpy()))
    return found


def _unit(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengths [S] and unit vectors [S, N]."""
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    return lengths, vectors / lengths.clamp(min=FLAT)[:, None]


def _halves(coordinates: Sequence[torch.Tensor], rank: int, sign: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Coordinates [S, Q] as those of the later and (with `sign`) of the earlier checkpoint, [S, R] each."""
    return [(part[:, :rank], sign * part[:, rank:]) for part in coordinates]


def _taken(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], offsets: Sequence[int], count: int) -> torch.Tensor:
    """[K, C, N]: what each checkpoint contributes to the deltas it takes part in. C: G_i, then later and earlier of each offset."""
    result = parts[0][0].new_zeros((count, 2 * len(offsets) - 1, parts[0][0].shape[1]))
    result[:, 0] = parts[0][0]
    for n, m in list(enumerate(offsets))[1:]:
        result[m:, 2 * n - 1], result[: count - m, 2 * n] = parts[n]
    return result


def _deltas(taken: torch.Tensor, offsets: Sequence[int]) -> list[torch.Tensor]:
    """[K, C, N] back to one [S, N] an offset, the contributions of both checkpoints added."""
    count = len(taken)
    return [taken[:, 0]] + [taken[m:, 2 * n - 1] + taken[: count - m, 2 * n] for n, m in enumerate(offsets) if n > 0]


def _exact(factors: LoraFactors) -> Spectrum:
    if not (factors.a.any() and factors.b.any()):
        return Spectrum(np.zeros(factors.rank), _zero(factors))
    return spectrum(from_base(factors))


def _subtracted(later: LoraFactors, earlier: LoraFactors) -> Triplet:
    pair, rank = difference(later, earlier), max(later.rank, earlier.rank)
    if not (pair.left[:, :rank].any() or pair.right[rank:].any()):
        return _zero(later)
    return spectra({"": pair})[""].top


def _zero(factors: LoraFactors) -> Triplet:
    return Triplet(0.0, np.zeros(factors.b.shape[0], dtype=np.float32), np.zeros(factors.a.shape[1], dtype=np.float32))


def _aligned(globals_: Sequence[Spectrum], differences: Mapping[int, Sequence[Triplet]], horizon: int) -> list[ModuleTriplets]:
    """Signs as `DeltaWindow` has them: G chained, L and T after the G of the checkpoint they start the step to or from."""
    result: list[ModuleTriplets] = []
    for i, own in enumerate(globals_):
        global_ = align(own.top, result[-1].global_ if result else None)
        local = align(differences[1][i - 1], global_) if i > 0 else global_
        target = align(differences[horizon][i - horizon], result[i - horizon].global_) if i >= horizon else None
        result.append(ModuleTriplets(global_, local, target, own.energy, own.frobenius_energy))
    return result
