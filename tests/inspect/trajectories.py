"""Trajectories whose future is known by construction, as adapters and as full weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from next_ray.delta.dense import DenseHistory
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.types import LoraFactors

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
class Stored:
    """Full weights in memory, float32 [K + 1, O, I], the base first."""

    weights: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights.shape[1], self.weights.shape[2]

    def load(self, index: int) -> np.ndarray:
        return self.weights[index].copy()


def dense_history(deltas: np.ndarray) -> DenseHistory:
    """Full matrices with these deltas [K, O, I] (rounded to float32) from a base of zeros."""
    return DenseHistory(Stored(np.pad(deltas, ((1, 0), (0, 0), (0, 0))).astype(np.float32)), len(deltas))


def as_dense(weights: WeightTrajectory) -> WeightTrajectory:
    """The same trajectory as full-parameter training would have left it."""
    return replace(weights, modules={name: dense_history(matrices(weights, name)) for name in weights.modules})
