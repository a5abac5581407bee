"""What a user asks `python -m next_ray.extrapolate` for: how to extrapolate, and what to write where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Method:
    """A method's name and settings as the user gave them."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """How to extrapolate. `alphas` None: every method's own grid; `horizon` None: a third of the checkpoints."""

    methods: tuple[Method, ...]
    alphas: tuple[float, ...] | None = None
    horizon: int | None = None
    seed: int = 0
    accuracies: Mapping[int, float] | None = None
    evaluator: str | None = None
    workers: int = 0
    segment: int | None = None
    endpoint_url: str | None = None


@dataclass(frozen=True)
class Target:
    """What to write, and where."""

    folder: Path
    base: str | None = None
    merge: bool = False
    rank: int | None = None
    dtype: str = "float32"
    verify: bool = True
    overwrite: bool = False
    nested: bool = False

    def place(self, root: Path, names: Sequence[str], name: str) -> Path:
        """The folder of a candidate: `root` itself where it is the only one, unless results are always `nested`."""
        return root if len(names) == 1 and not self.nested else root / name
