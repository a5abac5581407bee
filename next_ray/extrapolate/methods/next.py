"""NExt, and its ablations without one of the two input deltas.

Shape legend: O/I out/in features, K = c checkpoints, k horizon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from next_ray.config import PredictorSection
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.extrapolate.methods.common import check, last, require
from next_ray.extrapolate.plan import Fitted, ModulePlan, Needs, Setting
from next_ray.predict.facts import MIN_TARGETS, Inputs
from next_ray.types import Triplet

if TYPE_CHECKING:
    from next_ray.predict.predictor import TrajectoryPredictor

DEFAULTS = PredictorSection()
"""What the online job takes."""

NAMES: Mapping[Inputs, str] = {"both": "next", "local": "next-no-global", "global": "next-no-local"}
"""How a NExt that sees these deltas is called."""


def from_last_along(trajectory: WeightTrajectory, steps: Mapping[str, Triplet], notes: Mapping[str, str]) -> Fitted:
    """W_c + alpha sigma u v^T (NExt, eq. 10) for the modules with a triplet, W_c for the others and at alpha = 0."""

    def at(alpha: float) -> dict[str, ModulePlan]:
        def plan(step: Triplet | None) -> ModulePlan:
            moved = () if step is None or alpha == 0.0 else (Triplet(alpha * step.sigma, step.u, step.v),)
            return ModulePlan(last(trajectory), moved)

        return {name: plan(steps.get(name)) for name in trajectory.modules}

    return Fitted(at, notes)


@dataclass(frozen=True)
class Next:
    """NExt (arXiv 2604.11446, section 4): W_c + alpha sigma u v^T, the triplet of T_c foretold by networks from those of G_c and L_c.

    With the corrections of docs/methods.md. The same method on a trajectory of full-parameter checkpoints is the paper's "w/o LoRA".
    The notes hold the back test (`backtest`) and, when NExt lost it to persistence and to the linear fit, why it would rather not
    be used (`abstains`); plans are made all the same. Time is counted in checkpoints.

    Args:
        inputs: the deltas that the networks see; part of the method's name.
        hidden: width of encoders and decoder.
        fit_steps: full-batch steps of the first fit.
        refine_steps: full-batch steps after each further checkpoint.
        lr: peak learning rate (AdamW, cosine).
        weight_decay: of AdamW.
    """

    inputs: Inputs
    hidden: int = DEFAULTS.hidden
    fit_steps: int = DEFAULTS.fit_steps
    refine_steps: int = DEFAULTS.refine_steps
    lr: float = DEFAULTS.lr
    weight_decay: float = DEFAULTS.weight_decay

    neutral = 0.0
    forecast = 1.0
    alphas = (0.5, 1.0, 1.5)

    def __post_init__(self) -> None:
        """Settings in range."""
        check(self.hidden >= 4, f"{self.name}: hidden", "at least 4", self.hidden)
        check(self.fit_steps >= 1, f"{self.name}: fit_steps", "at least 1", self.fit_steps)
        check(self.refine_steps >= 1, f"{self.name}: refine_steps", "at least 1", self.refine_steps)
        check(self.lr > 0, f"{self.name}: lr", "above 0", self.lr)
        check(self.weight_decay >= 0, f"{self.name}: weight_decay", "at least 0", self.weight_decay)

    @property
    def name(self) -> str:
        """After what it sees."""
        return NAMES[self.inputs]

    def needs(self, horizon: int) -> Needs:
        """Two known targets: one transition would be memorised."""
        return Needs(horizon + MIN_TARGETS)

    def fit(self, trajectory: WeightTrajectory, setting: Setting) -> Fitted:
        """Fit and back-test along the trajectory; raises `ExtrapolationError` also when no module has moved."""
        from next_ray.predict.predictor import TrajectoryPredictor  # a list of methods should not wait for torch

        require(self, trajectory, setting)
        cfg = PredictorSection(
            hidden=self.hidden, fit_steps=self.fit_steps, refine_steps=self.refine_steps, lr=self.lr, weight_decay=self.weight_decay
        )
        predictor = TrajectoryPredictor(cfg, setting.horizon, setting.seed, abstain=True, inputs=self.inputs)
        for checkpoint in trajectory.triplets(setting.horizon):
            predictor.observe(checkpoint)
        return from_last_along(trajectory, predictor.predict(), _notes(predictor, trajectory))


def _notes(predictor: TrajectoryPredictor, trajectory: WeightTrajectory) -> dict[str, str]:
    notes = {"backtest": predictor.evidence}
    if predictor.abstention is not None:
        notes["abstains"] = predictor.abstention
    if len({later - earlier for earlier, later in pairwise((0, *trajectory.steps))}) > 1:
        notes["spacing"] = "the checkpoints are not evenly spaced; NExt counts checkpoints, not steps"
    return notes
