"""Trajectories whose future is known by construction, and a dense double of a module's history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from next_ray.delta.gauge import align
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.types import LoraFactors, ModuleTriplets, Triplet

SHAPES = {
    "model.layers.0.self_attn.q_proj": (12, 9),
    "model.layers.0.mlp.down_proj": (9, 14),
    "model.layers.1.self_attn.q_proj": (12, 9),
}
RANK = 3


def trajectory(
    path: Callable[[np.random.Generator, int, np.ndarray], np.ndarray], count: int = 15, seed: int = 0, every: int = 10
) -> WeightTrajectory:
    """Adapters whose B follows `path(rng, t, B_{t-1})` for t = 1..count and whose A stays."""
    rng = np.random.default_rng(seed)
    a = {name: rng.normal(size=(RANK, i)).astype(np.float32) for name, (_, i) in SHAPES.items()}
    b = {name: np.zeros((o, RANK)) for name, (o, _) in SHAPES.items()}
    drift = {name: np.random.default_rng(seed + 100) for name in SHAPES}
    adapters = []
    for t in range(1, count + 1):
        b = {name: path(drift[name], t, value) for name, value in b.items()}
        adapters.append({name: LoraFactors(a[name], b[name].astype(np.float32), 0.5) for name in SHAPES})
    return from_adapters([every * t for t in range(1, count + 1)], adapters)


def line(count: int = 15, noise: float = 0.0) -> WeightTrajectory:
    """B_t = t V + noise."""

    def path(rng: np.random.Generator, t: int, b: np.ndarray) -> np.ndarray:
        direction = np.random.default_rng(b.shape[0]).normal(size=b.shape)
        return t * direction + noise * rng.normal(size=b.shape)

    return trajectory(path, count)


def random_walk(count: int = 15, seed: int = 0) -> WeightTrajectory:
    return trajectory(lambda rng, _, b: b + rng.normal(size=b.shape), count, seed)


def converging(count: int = 15, ratio: float = 0.5) -> WeightTrajectory:
    """B_t = (1 - ratio^t) V."""
    return trajectory(lambda _, t, b: (1 - ratio**t) * np.random.default_rng(b.shape[0]).normal(size=b.shape), count)


def still(count: int = 6) -> WeightTrajectory:
    return trajectory(lambda _, t, b: b, count)


def matrices(weights: WeightTrajectory, name: str) -> np.ndarray:
    """D_1..D_K, float64 [K, O, I], from the stored factors themselves."""
    history = weights.modules[name]
    return np.stack([f.scale * (f.b.astype(np.float64) @ f.a.astype(np.float64)) for f in history.factors])  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Matrices:
    """A `ModuleHistory` that holds dense matrices in memory and knows nothing cleverer than numpy's SVD."""

    deltas: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.deltas.shape[1], self.deltas.shape[2]

    @property
    def num_checkpoints(self) -> int:
        return len(self.deltas)

    def combine(self, weights: np.ndarray) -> np.ndarray:
        return np.tensordot(weights, self.deltas, 1)

    def gram(self) -> np.ndarray:
        flat = self.deltas.reshape(len(self.deltas), -1)
        return flat @ flat.T

    def _difference(self, later: int, earlier: int) -> np.ndarray:
        return self.deltas[later - 1] - (self.deltas[earlier - 1] if earlier else 0.0)

    def top(self, later: int, earlier: int = 0) -> Triplet:
        u, s, vt = np.linalg.svd(self._difference(later, earlier), full_matrices=False)
        return Triplet(float(s[0]), u[:, 0].astype(np.float32), vt[0].astype(np.float32))

    def singular_values(self, later: int, earlier: int = 0) -> np.ndarray:
        return np.linalg.svd(self._difference(later, earlier), compute_uv=False)

    def row_norms(self, index: int) -> np.ndarray:
        return np.linalg.norm(self.deltas[index - 1], axis=1)

    def triplets(self, horizon: int) -> list[ModuleTriplets]:
        found: list[ModuleTriplets] = []
        for t in range(1, self.num_checkpoints + 1):
            own = align(self.top(t), found[-1].global_ if found else None)
            local = align(self.top(t, t - 1), own)
            target = align(self.top(t, t - horizon), found[t - horizon - 1].global_) if t > horizon else None
            values = self.singular_values(t)
            found.append(ModuleTriplets(own, local, target, float(values[0] / values.sum()), float(values[0] ** 2 / np.sum(values**2))))
        return found

    def truncated(self, num_checkpoints: int) -> Matrices:
        return Matrices(self.deltas[:num_checkpoints])


def as_dense(weights: WeightTrajectory) -> WeightTrajectory:
    """The same trajectory as full-parameter training would have left it."""
    return replace(weights, modules={name: Matrices(matrices(weights, name)) for name in weights.modules})
