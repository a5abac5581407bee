"""What decides the tiny model; apart from its training, so that a command can name it without waiting for torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

FORMAT = 1
"""Raised whenever the same spec would give other bytes, so that cached folders are not mistaken for new ones."""


@dataclass(frozen=True)
class TinySpec:
    """Everything that decides the tiny model, bit for bit."""

    digits: int = 2
    """Largest number of digits of each operand."""
    operations: str = "+"
    """Operations it is taught: `+`, `-` or `+-`."""
    steps: int = 500
    """Supervised optimizer steps."""
    seed: int = 0
    """Seed of the weights and of the demonstrations."""
    batch_size: int = 128
    """Demonstrations per step."""
    lr: float = 2.5e-3
    """Peak learning rate (AdamW)."""
    warmup_steps: int = 40
    """Steps of linear warm-up; then the rate falls on a cosine to a twentieth of its peak."""
    mistakes: float = 0.5
    """Share of the demonstrations with one wrong digit, once the teacher makes mistakes."""
    careful: float = 0.75
    """Share of the steps before the teacher starts to make mistakes."""
    hidden_size: int = 192
    """Width of the residual stream."""
    intermediate_size: int = 512
    """Width of the feed-forward layers."""
    num_layers: int = 2
    """Transformer layers."""
    num_heads: int = 6
    """Attention heads, each with its own keys and values."""
    initializer_range: float = 0.06
    """Standard deviation of the initial weights; the usual 0.02 learns far slower at this width."""

    @property
    def key(self) -> str:
        """Cache key: 16 hex digits over every setting and the format version, independent of library versions."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
