"""One module along a trajectory: its deltas D_t = W_t - W_0 at checkpoints t = 1..K, whatever they are stored as.

Extrapolators, analyses and exporters see a module only through `ModuleHistory`. `FactorHistory` (below) keeps LoRA factors and never
forms a dense matrix; `DenseHistory` (`dense.py`) streams full matrices.

Shape legend: O/I out/in features, K checkpoints, Q rank of stacked factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from next_ray.delta.factors import FactorPair, difference, from_base, spectra
from next_ray.types import LoraFactors, ModuleTriplets, Triplet

Delta = FactorPair | np.ndarray
"""A delta as float64 factors ([O, Q] and [Q, I]) or as a dense float64 matrix [O, I]."""


class ModuleHistory(Protocol):
    """One module's deltas. Indices t count checkpoints from 1; index 0 is the base, whose delta is zero."""

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        ...

    @property
    def num_checkpoints(self) -> int:
        """K."""
        ...

    def combine(self, weights: np.ndarray) -> Delta:
        """sum_t weights[t - 1] D_t; `weights` float64 [K]. Checkpoints of weight 0 are not read."""
        ...

    def gram(self) -> np.ndarray:
        """Inner products <D_i, D_j>_F over time, float64 [K, K]."""
        ...

    def top(self, later: int, earlier: int = 0) -> Triplet:
        """The top singular triplet of W_later - W_earlier, in any sign."""
        ...

    def singular_values(self, later: int, earlier: int = 0) -> np.ndarray:
        """All singular values of W_later - W_earlier that can differ from zero, float64, descending."""
        ...

    def row_norms(self, index: int) -> np.ndarray:
        """|row|_2 of D_index, float64 [O]."""
        ...

    def triplets(self, horizon: int) -> list[ModuleTriplets]:
        """G_i, L_i and T_{i-k} for i = 1..K, signs aligned along the trajectory (as `DeltaWindow` gives them)."""
        ...

    def truncated(self, num_checkpoints: int) -> ModuleHistory:
        """The same module as it was known at checkpoint `num_checkpoints`."""
        ...


@dataclass(frozen=True)
class FactorHistory:
    """A module whose checkpoints are LoRA adapters; `factors[t - 1]` belongs to checkpoint t. Ranks and scales may differ.

    `device` is where torch computes the triplets. `whole` is the longer history that this one was cut from: what it knows of the
    checkpoints they share is not computed again.
    """

    factors: Sequence[LoraFactors]
    device: str = "cpu"
    whole: FactorHistory | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I); a lazy sequence that has a `shape` of its own is not read for it."""
        known: tuple[int, int] | None = getattr(self.factors, "shape", None)
        return known if known is not None else (self.factors[0].b.shape[0], self.factors[0].a.shape[1])

    @property
    def num_checkpoints(self) -> int:
        """K."""
        return len(self.factors)

    def combine(self, weights: np.ndarray) -> FactorPair:
        """The weighted sum as stacked factors; an empty sum has Q = 0."""
        parts = [(w, from_base(f)) for w, f in zip(weights, self.factors, strict=True) if w != 0.0]
        if not parts:
            out_features, in_features = self.shape
            return FactorPair(np.zeros((out_features, 0)), np.zeros((0, in_features)))
        return FactorPair(np.hstack([w * part.left for w, part in parts]), np.vstack([part.right for _, part in parts]))

    def gram(self) -> np.ndarray:
        """<D_i, D_j> = tr((L_i^T L_j)(R_j R_i^T)): no dense matrix. Computed once."""
        if self.whole is not None:
            return self.whole.gram()[: self.num_checkpoints, : self.num_checkpoints]
        return self._inner_products

    @cached_property
    def _inner_products(self) -> np.ndarray:
        """All factors side by side, so that each side is one symmetric product; [K, K]."""
        pairs = [from_base(f) for f in self.factors]
        left, right = np.hstack([p.left for p in pairs]), np.vstack([p.right for p in pairs])
        starts = np.cumsum([0, *(p.left.shape[1] for p in pairs[:-1])])
        products = (left.T @ left) * (right @ right.T)
        return np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)

    def top(self, later: int, earlier: int = 0) -> Triplet:
        """From the factors, by Gram matrices, QR where these are not accurate."""
        return spectra({"": self._pair(later, earlier)})[""].top

    def singular_values(self, later: int, earlier: int = 0) -> np.ndarray:
        """Float64 [Q], exact up to rounding."""
        return spectra({"": self._pair(later, earlier)})[""].singular_values

    def row_norms(self, index: int) -> np.ndarray:
        """sqrt(diag(L (R R^T) L^T))."""
        pair = from_base(self.factors[index - 1])
        return np.sqrt(np.maximum(np.sum((pair.left @ (pair.right @ pair.right.T)) * pair.left, axis=1), 0.0))

    def triplets(self, horizon: int) -> list[ModuleTriplets]:
        """All triplets from one pass over the factors (`trajectory_triplets.py`)."""
        from next_ray.delta.trajectory_triplets import factor_triplets  # a list of methods should not wait for torch

        return factor_triplets(self.factors, horizon, self.device)

    def truncated(self, num_checkpoints: int) -> FactorHistory:
        """The first checkpoints alone."""
        return replace(self, factors=self.factors[:num_checkpoints], whole=self.whole or self)

    def _pair(self, later: int, earlier: int) -> FactorPair:
        current = self.factors[later - 1]
        return from_base(current) if earlier == 0 else difference(current, self.factors[earlier - 1])
