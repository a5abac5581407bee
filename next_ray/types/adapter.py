"""What is trained, served, stored and extrapolated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BASE_VERSION = 0
"""The adapter version that means "the base model, no adapter"."""


@dataclass(frozen=True)
class LoraFactors:
    """One module's adapter: delta = scale * b @ a. `a` float32 [R, I], `b` float32 [O, R]."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """The rank R."""
        return int(self.a.shape[0])


Adapter = Mapping[str, LoraFactors]
"""Module name (as in the base model, for example `model.layers.0.self_attn.q_proj`) to factors."""

Weights = Mapping[str, "np.ndarray"]
"""Some or all parameters of a model, by their names in its files; bfloat16 as the uint16 that holds the same bits."""
