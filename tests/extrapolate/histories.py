"""Trajectories of adapters and of full matrices with known futures, for tests of the extrapolation methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from next_ray.delta.dense import DenseHistory
from next_ray.delta.history import Delta, FactorHistory, ModuleHistory
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.types import LoraFactors
from tests.delta.trajectories import dense


@dataclass(frozen=True)
class InMemory:
    """One module's weights, base first, float32."""

    weights: Sequence[np.ndarray]

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights[0].shape

    def load(self, index: int) -> np.ndarray:
        return self.weights[index].copy()


def product(delta: Delta) -> np.ndarray:
    """A realised delta as one matrix."""
    return delta if isinstance(delta, np.ndarray) else delta.left @ delta.right


def in_full(trajectory: WeightTrajectory) -> WeightTrajectory:
    """The same trajectory as full float32 weights on a random base."""
    rng = np.random.default_rng(11)
    modules: dict[str, ModuleHistory] = {}
    for name, module in trajectory.modules.items():
        assert isinstance(module, FactorHistory)
        deltas = [dense(f) for f in module.factors]
        base = (0.01 * np.abs(deltas[-1]).max() * rng.normal(size=module.shape)).astype(np.float32)
        modules[name] = DenseHistory(InMemory([base, *((base + d).astype(np.float32) for d in deltas)]), len(deltas))
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
