"""Triplet trajectories with a known future."""

from __future__ import annotations

import numpy as np

from next_ray.delta.gauge import flipped
from next_ray.types import CheckpointTriplets, ModuleTriplets, Triplet

Shapes = dict[str, tuple[int, int]]


def rank_one_trajectory(
    shapes: Shapes, count: int, horizon: int, seed: int, growth: float = 1.0, turn: float = 0.0
) -> list[CheckpointTriplets]:
    """W_t = t^growth * size * u(t) v^T with u turning by `turn` radians over `count` checkpoints; every delta by dense SVD."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, (o, i) in shapes.items():
        u, _ = np.linalg.qr(rng.normal(size=(o, 2)))
        v = rng.normal(size=i)
        size = rng.uniform(0.5, 2.0)
        angles = turn * np.arange(count + 1) / count
        factors = size * np.arange(count + 1) ** growth
        weights[name] = [f * np.outer(u @ [np.cos(t), np.sin(t)], v / np.linalg.norm(v)) for f, t in zip(factors, angles, strict=True)]
    return [CheckpointTriplets(i, 10 * i, {name: module(w, i, horizon) for name, w in weights.items()}) for i in range(1, count + 1)]


def module(w: list[np.ndarray], i: int, horizon: int) -> ModuleTriplets:
    target = top(w[i] - w[i - horizon]) if i > horizon else None
    return ModuleTriplets(top(w[i]), top(w[i] - w[i - 1]), target, energy=1.0, frobenius_energy=1.0)


def top(matrix: np.ndarray) -> Triplet:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return Triplet(float(s[0]), u[:, 0].astype(np.float32), vt[0].astype(np.float32))


def randomly_flipped(trajectory: list[CheckpointTriplets], seed: int) -> list[CheckpointTriplets]:
    """The same trajectory with the signs of its triplets drawn anew."""
    rng = np.random.default_rng(seed)

    def maybe(triplet: Triplet) -> Triplet:
        return flipped(triplet) if rng.random() < 0.5 else triplet

    return [
        CheckpointTriplets(
            t.index,
            t.step,
            {
                name: ModuleTriplets(maybe(m.global_), maybe(m.local), maybe(m.target) if m.target else None, m.energy, m.frobenius_energy)
                for name, m in t.modules.items()
            },
        )
        for t in trajectory
    ]
