"""Trajectory, predictor, candidates, gate, and going on after a jump."""

from __future__ import annotations

from difflib import get_close_matches
from math import isfinite
from typing import Literal

from pydantic import Field, model_validator

from next_ray.config.section import Section


class PredictorSection(Section):
    """NExt's predictor."""

    hidden: int = Field(default=64, ge=4)
    """Width of the predictor's encoders and decoder; the release takes 256, which costs twice the time here."""
    fit_steps: int = Field(default=300, ge=1)
    """Full-batch steps of the first fit; the release takes 1000 (of raw vectors, at a fiftieth of this learning rate)."""
    refine_steps: int = Field(default=25, ge=1)
    """Full-batch steps after each further checkpoint, starting from the last fit."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate (AdamW, cosine); the release uses 2e-5."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW weight decay."""


class GateSection(Section):
    """Who may jump."""

    kind: Literal["paired", "none"] = "paired"
    """paired: accept only what a paired test says is better; none: jump with `fixed`, as the paper does."""
    fixed: str | None = None
    """Candidate taken when kind is none, for example `next@1.5`."""
    samples: int = Field(default=4, ge=1)
    """Completions per gate prompt and candidate."""
    screening: float = Field(default=0.0, ge=0, le=1)
    """What choosing the one candidate that is tested may cost, in evaluations of one on all gate prompts; 0: all are tested on all.

    Candidates are halved round by round on a part of the prompts, and the last one is tested on the others. With a wide grid of
    alphas this is several times cheaper, and at equal cost, with more gate prompts, the sharper test (docs/benchmarks.md).
    """
    level: float = Field(default=0.05, gt=0, lt=1)
    """Largest adjusted p-value that is accepted (one-sided, over all candidates)."""
    min_gain: float = Field(default=0.0, ge=0)
    """Smallest accuracy gain that is accepted (0.01 is one point)."""


class AfterJumpSection(Section):
    """How training goes on from an accepted candidate."""

    moments: Literal["reset", "keep"] = "reset"
    """Adam moments after a jump."""
    warmup_steps: int = Field(default=3, ge=0)
    """Optimizer steps over which the learning rate rises again after a jump."""
    watch_steps: int = Field(default=5, ge=0)
    """Steps after a jump whose training accuracy is compared with as many before it, to take back a jump that turns out bad; 0: never."""
    watch_level: float = Field(default=0.001, gt=0, lt=0.5)
    """Probability below which a fall of the training accuracy after a jump is no chance any more (one-sided): the jump is taken back."""


ONLINE_METHODS = (
    "next",
    "next-no-global",
    "next-no-local",
    "next-released",
    "two-point",
    "persistence",
    "linear-fit",
    "relex",
    "alpharl",
    "rank1",
    "expo",
    "wsm-uniform",
    "wsm-cosine",
    "wsm-sqrt",
    "soup-uniform",
    "key-neurons",
)
"""Methods a running job can propose from: those that make adapters and ask nobody for an evaluation (docs/methods.md).

The accuracy of a checkpoint, which `alpharl` needs, is that of the training completions since the checkpoint before.
"""


class ExtrapolationSection(Section):
    """Trajectory, predictor, candidates and gate."""

    enabled: bool = True
    """False trains plainly, checkpoints included: the honest baseline of the same budget (`--baseline`)."""
    interval_steps: int = Field(default=3, ge=1)
    """RL steps between trajectory checkpoints."""
    checkpoints: int = Field(default=8, ge=3)
    """Checkpoint c at which the first jump is tried."""
    horizon: int = Field(default=3, ge=1)
    """Horizon k: how many checkpoints ahead the target delta looks."""
    repeat_every: int | None = Field(default=None, ge=1)
    """Try again every so many checkpoints after the first attempt; None: one attempt."""
    methods: tuple[str, ...] = ("next", "two-point")
    """Extrapolators that propose candidates (docs/methods.md), over `alphas` or with an alpha of their own, as in `wsm-cosine@1`."""
    alphas: tuple[float, ...] = (0.75, 1.5)
    """Grid of the extending coefficient: how far a candidate reaches, in horizons for the forecasting methods."""
    abstain: bool = True
    """Withdraw `next` when its backtest loses to both persistence and the linear fit."""
    delta_workers: int = Field(default=1, ge=1)
    """Actors that compute triplets, modules sharded by cost."""
    gpus_per_delta_worker: float = Field(default=0.0, ge=0, le=1)
    """Share of a GPU each of them reserves and computes on, for example 0.25; 0: CPU, which is enough for most adapters."""
    predictor: PredictorSection = PredictorSection()
    """NExt's predictor."""
    gate: GateSection = GateSection()
    """Who may jump."""
    after_jump: AfterJumpSection = AfterJumpSection()
    """How training goes on from an accepted candidate."""

    @property
    def proposals(self) -> tuple[tuple[str, float], ...]:
        """(method, alpha) of every candidate, in order, each once."""
        split = [method.partition("@") for method in self.methods]
        wanted = [(name, alpha) for name, at, own in split for alpha in ((float(own),) if at else self.alphas)]
        return tuple(dict.fromkeys(wanted))

    @model_validator(mode="after")
    def _known_methods(self) -> ExtrapolationSection:
        for method in self.methods:
            name, at, alpha = method.partition("@")
            if name not in ONLINE_METHODS:
                close = get_close_matches(name, ONLINE_METHODS, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise ValueError(f"extrapolation.methods: a running job has no method {name!r}{hint} It has {', '.join(ONLINE_METHODS)}.")
            try:
                finite = not at or isfinite(float(alpha))
            except ValueError:
                finite = False
            if not finite:
                raise ValueError(f"extrapolation.methods: {method!r} must be a method or method@alpha with a number, as in wsm-cosine@1.")
        return self

    @model_validator(mode="after")
    def _a_share_that_ray_can_count(self) -> ExtrapolationSection:
        if 0 < self.gpus_per_delta_worker < 0.01:
            raise ValueError(
                f"extrapolation.gpus_per_delta_worker={self.gpus_per_delta_worker:g} is too small a share. Set it to 0 or to 0.01 and more."
            )
        return self

    @model_validator(mode="after")
    def _enough_checkpoints(self) -> ExtrapolationSection:
        if self.checkpoints <= self.horizon + 1:
            raise ValueError(
                f"extrapolation.checkpoints={self.checkpoints} leaves {max(0, self.checkpoints - self.horizon)} targets for "
                f"horizon={self.horizon}; the predictor needs at least 2. Set checkpoints to {self.horizon + 2} or more."
            )
        if self.gate.kind == "none" and self.enabled and self.gate.fixed is None:
            raise ValueError("extrapolation.gate.kind=none needs gate.fixed, the candidate to take (for example next@1.5).")
        proposed = [f"{method}@{alpha:g}" for method, alpha in self.proposals]
        if self.gate.fixed is not None and self.gate.fixed not in proposed:
            raise ValueError(
                f"extrapolation.gate.fixed={self.gate.fixed} is never proposed; methods and alphas give {', '.join(proposed)}."
            )
        return self
