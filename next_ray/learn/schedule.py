"""The learning rate as a pure function of the position, so that a resumed run needs two numbers and no scheduler object."""

from __future__ import annotations

import math
from dataclasses import dataclass

from next_ray.config import LearnerSection


@dataclass(frozen=True)
class Rewarm:
    """A second warm-up after a jump: it starts at `start` (a schedule position) and lasts `steps` positions."""

    start: int = 0
    steps: int = 0


def learning_rate(position: int, total: int, cfg: LearnerSection, rewarm: Rewarm) -> float:
    """Learning rate of the optimizer step at `position` (0-based) of `total`.

    Warm-up over w steps gives `(position + 1) / (w + 1)` of the peak, so that no step has rate 0 and step w has the peak.
    Linear and cosine fall from the peak at position w to 0 at position `total`; a re-warm-up multiplies the result.
    """
    warm = cfg.warmup_steps
    factor = _ramp(position, warm)
    if position >= warm and cfg.schedule != "constant":
        progress = min(1.0, (position - warm) / max(1, total - warm))
        factor = 1.0 - progress if cfg.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return cfg.lr * factor * _ramp(position - rewarm.start, rewarm.steps)


def _ramp(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / (steps + 1))
