"""How much of a delta lies in its first singular direction, and how much random factors of that size would have there.

NExt (arXiv 2604.11446, section 3.2) measures sigma_1 / sum(sigma). A rank-R adapter cannot go below 1/R, so that number says
nothing without R and without the value of random factors; both stand beside it here.

Shape legend: O/I out/in features, R rank, Q number of singular values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from next_ray.delta.history import FactorHistory, ModuleHistory

SPECTRUM_LIMIT = 1024
"""Dense modules with min(O, I) up to this have all their singular values computed; larger ones only where it is asked for."""

RANDOM_DRAWS = 16
QUADRATURE_POINTS = 4096


@dataclass(frozen=True)
class Energy:
    """Concentration of one delta's spectrum. None where it takes singular values that were not computed, or the delta is zero.

    Args:
        nuclear: sigma_1 / sum(sigma), the paper's E_1.
        frobenius: sigma_1^2 / |D|_F^2.
        effective_rank: exp of the entropy of sigma / sum(sigma) (Roy and Vetterli 2007).
        stable_rank: |D|_F^2 / sigma_1^2, the inverse of `frobenius`.
        rank: how many singular values can differ from zero.
    """

    nuclear: float | None
    frobenius: float | None
    effective_rank: float | None
    stable_rank: float | None
    rank: int

    @property
    def floor(self) -> float | None:
        """The least `nuclear` and `frobenius` that this rank allows, 1/R."""
        return 1.0 / self.rank if self.rank else None


def energy(singular_values: np.ndarray) -> Energy:
    """From all singular values [Q] (descending, zeros included)."""
    rank = len(singular_values)
    if rank == 0 or singular_values[0] <= 0.0:
        return Energy(None, None, None, None, rank)
    sigma = singular_values.astype(np.float64) / singular_values[0]
    shares = sigma[sigma > 0] / sigma.sum()
    squares = float(np.sum(sigma**2))
    return Energy(
        nuclear=float(shares[0]),
        frobenius=1.0 / squares,
        effective_rank=float(np.exp(-np.sum(shares * np.log(shares)))),
        stable_rank=squares,
        rank=rank,
    )


def energies(history: ModuleHistory, frobenius: Sequence[float], full_spectrum: bool = False) -> list[Energy]:
    """Of G_t = W_t - W_0 for t = 1..K.

    Args:
        history: the module.
        frobenius: sigma_1^2 / |G_t|_F^2 of each, 0 for a zero delta: all that is known of large dense modules.
        full_spectrum: compute all singular values of dense modules of any size.
    """
    size = min(history.shape)
    if isinstance(history, FactorHistory) or full_spectrum or size <= SPECTRUM_LIMIT:
        return [energy(history.singular_values(t)[:size]) for t in range(1, history.num_checkpoints + 1)]
    return [Energy(None, share or None, None, 1.0 / share if share else None, size) for share in frobenius]


def random_factors(shape: tuple[int, int], rank: int, seed: int = 0) -> Energy:
    """The mean over draws of B A with independent normal B [O, R] and A [R, I]: what an adapter without any structure has.

    Only the R x R triangular factors of B and A^T matter, and these are drawn directly (Bartlett's decomposition).
    """
    rank = min(rank, *shape)
    rng = np.random.default_rng(seed)
    draws = [
        energy(np.linalg.svd(_bartlett(shape[0], rank, rng) @ _bartlett(shape[1], rank, rng).T, compute_uv=False))
        for _ in range(RANDOM_DRAWS)
    ]
    return Energy(
        nuclear=_mean([d.nuclear for d in draws]),
        frobenius=_mean([d.frobenius for d in draws]),
        effective_rank=_mean([d.effective_rank for d in draws]),
        stable_rank=_mean([d.stable_rank for d in draws]),
        rank=rank,
    )


def random_dense(shape: tuple[int, int]) -> Energy:
    """A full matrix of independent normal entries, in the limit of large O and I (Marchenko and Pastur 1967), by quadrature."""
    small, large = sorted(shape)
    low, high = np.sqrt(large) - np.sqrt(small), np.sqrt(large) + np.sqrt(small)
    # midpoints in an angle, because the density ends like a square root on both sides
    angle = (np.arange(QUADRATURE_POINTS) + 0.5) * np.pi / QUADRATURE_POINTS
    squares = (low**2 + high**2) / 2 - (high**2 - low**2) / 2 * np.cos(angle)
    density = np.sqrt(np.maximum((squares - low**2) * (high**2 - squares), 0.0)) / squares * np.sin(angle)
    count = small * density / density.sum()
    sigma = np.sqrt(squares)
    total = float(np.sum(count * sigma))
    entropy = -float(np.sum(count * sigma / total * np.log(sigma / total)))
    return Energy(
        nuclear=float(high / total),
        frobenius=float(high**2 / (small * large)),
        effective_rank=float(np.exp(entropy)),
        stable_rank=float(small * large / high**2),
        rank=small,
    )


def _bartlett(size: int, rank: int, rng: np.random.Generator) -> np.ndarray:
    """R of the QR factorization of a normal [size, rank] matrix, up to signs."""
    triangle = np.triu(rng.normal(size=(rank, rank)), 1)
    triangle[np.diag_indices(rank)] = np.sqrt(rng.chisquare(size - np.arange(rank)))
    return triangle


def _mean(values: list[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))
