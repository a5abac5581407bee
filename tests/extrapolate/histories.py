"""Trajectories of adapters and of full matrices with known futures, for tests of the extrapolation methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from next_ray.delta.gauge import align
from next_ray.delta.history import Delta, FactorHistory, ModuleHistory
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.types import LoraFactors, ModuleTriplets, Triplet
from tests.delta.trajectories import dense


@dataclass(frozen=True)
class PlainHistory:
    """Full matrices and nothing clever: float64 numpy, a whole SVD for every triplet."""

    deltas: Sequence[np.ndarray]

    @property
    def shape(self) -> tuple[int, int]:
        return self.deltas[0].shape

    @property
    def num_checkpoints(self) -> int:
        return len(self.deltas)

    def combine(self, weights: np.ndarray) -> np.ndarray:
        return np.einsum("t,toi->oi", weights, np.stack(self.deltas))

    def gram(self) -> np.ndarray:
        flat = np.stack([d.ravel() for d in self.deltas])
        return flat @ flat.T

    def top(self, later: int, earlier: int = 0) -> Triplet:
        u, s, vt = np.linalg.svd(self._difference(later, earlier), full_matrices=False)
        if s[0] == 0:
            return Triplet(0.0, np.zeros(self.shape[0], np.float32), np.zeros(self.shape[1], np.float32))
        return Triplet(float(s[0]), u[:, 0].astype(np.float32), vt[0].astype(np.float32))

    def singular_values(self, later: int, earlier: int = 0) -> np.ndarray:
        return np.linalg.svd(self._difference(later, earlier), compute_uv=False)

    def row_norms(self, index: int) -> np.ndarray:
        return np.linalg.norm(self.deltas[index - 1], axis=1)

    def triplets(self, horizon: int) -> list[ModuleTriplets]:
        result: list[ModuleTriplets] = []
        for i in range(1, self.num_checkpoints + 1):
            global_ = align(self.top(i), result[-1].global_ if result else None)
            target = align(self.top(i, i - horizon), result[i - horizon - 1].global_) if i > horizon else None
            result.append(ModuleTriplets(global_, align(self.top(i, i - 1), global_), target, 0.0, 0.0))
        return result

    def truncated(self, num_checkpoints: int) -> PlainHistory:
        return PlainHistory(self.deltas[:num_checkpoints])

    def _difference(self, later: int, earlier: int) -> np.ndarray:
        return self.deltas[later - 1] - (self.deltas[earlier - 1] if earlier else 0.0)


def product(delta: Delta) -> np.ndarray:
    """A realised delta as one matrix."""
    return delta if isinstance(delta, np.ndarray) else delta.left @ delta.right


def in_full(trajectory: WeightTrajectory) -> WeightTrajectory:
    """The same trajectory as full matrices."""
    modules: dict[str, ModuleHistory] = {}
    for name, module in trajectory.modules.items():
        assert isinstance(module, FactorHistory)
        modules[name] = PlainHistory([dense(f) for f in module.factors])
    return replace(trajectory, modules=modules, computed=None)


def regauged(trajectory: WeightTrajectory, seed: int) -> WeightTrajectory:
    """A -> M A, B -> B M^-1 with another M for each module and checkpoint: the same deltas."""
    rng = np.random.default_rng(seed)

    def mixed(f: LoraFactors) -> LoraFactors:
        q, _ = np.linalg.qr(rng.normal(size=(f.rank, f.rank)))
        m = q * rng.uniform(0.5, 2.0, f.rank)
        return LoraFactors((m @ f.a).astype(np.float32), (f.b @ np.linalg.inv(m)).astype(np.float32), f.scale)

    modules = {}
    for name, module in trajectory.modules.items():
        assert isinstance(module, FactorHistory)
        modules[name] = FactorHistory([mixed(f) for f in module.factors])
    return replace(trajectory, modules=modules)


Path = Callable[[float], np.ndarray]
"""Training step to delta [O, I]."""


def factors_of(delta: np.ndarray, rank: int, scale: float = 0.5) -> LoraFactors:
    """A LoRA pair with that product, as near as float32 allows."""
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    root = np.sqrt(s[:rank] / scale)
    return LoraFactors((root[:, None] * vt[:rank]).astype(np.float32), (u[:, :rank] * root).astype(np.float32), scale)


def along(paths: Mapping[str, Path], steps: Sequence[int], rank: int = 4, accuracies: Sequence[float] | None = None) -> WeightTrajectory:
    """The trajectory that follows a path per module."""
    modules = {name: FactorHistory([factors_of(path(t), rank) for t in steps]) for name, path in paths.items()}
    return WeightTrajectory(tuple(steps), modules, None if accuracies is None else tuple(accuracies))
