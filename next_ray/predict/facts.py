"""What is known of the predictors without torch: methods are named, described and checked by it."""

from __future__ import annotations

from typing import Literal

Inputs = Literal["both", "global", "local"]
"""Which deltas a network sees; one alone is an ablation (table 5: w/o L-Delta, w/o G-Delta), with that encoder alone."""

MIN_TARGETS = 2
"""Targets needed before a first fit: one transition would be memorised, two can disagree."""

RELEASED_HIDDEN = 256
"""Width of the bottlenecks in the predictor as published."""

RELEASED_STEPS = 1000
"""Full-batch steps of the predictor as published."""
