"""Small LoRA trajectories and their dense counterparts, for tests of everything that reads trajectories."""

from __future__ import annotations

import numpy as np

from next_ray.types import LoraFactors


def random_factors(rng: np.random.Generator, out_features: int, in_features: int, rank: int, scale: float = 0.5) -> LoraFactors:
    """Factors as training has them: A uniform as initialised, B small."""
    a = rng.uniform(-1, 1, (rank, in_features)) / np.sqrt(in_features)
    b = 1e-2 * rng.normal(size=(out_features, rank))
    return LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32), scale=scale)


def dense(factors: LoraFactors) -> np.ndarray:
    """The delta as a float64 matrix [O, I]."""
    return factors.scale * (factors.b.astype(np.float64) @ factors.a.astype(np.float64))


def wandering_adapters(rng: np.random.Generator, shapes: dict[str, tuple[int, int]], rank: int, count: int) -> list[dict[str, LoraFactors]]:
    """`count` checkpoints of a drifting adapter: a steady part in B, and noise in A and B."""
    current = {name: random_factors(rng, o, i, rank) for name, (o, i) in shapes.items()}
    drift = {name: 2e-3 * np.outer(rng.normal(size=f.b.shape[0]), rng.normal(size=rank)) for name, f in current.items()}
    trajectory = []
    for _ in range(count):
        current = {
            name: LoraFactors(
                a=(f.a + 1e-4 * rng.normal(size=f.a.shape)).astype(np.float32),
                b=(f.b + drift[name] + 3e-4 * rng.normal(size=f.b.shape)).astype(np.float32),
                scale=f.scale,
            )
            for name, f in current.items()
        }
        trajectory.append(current)
    return trajectory
