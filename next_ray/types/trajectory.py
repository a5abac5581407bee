"""From deltas to the gate's decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from next_ray.types.adapter import Adapter
from next_ray.types.ref import Ref

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Triplet:
    """Top singular triplet of a delta: sigma >= 0, `u` float32 [O], `v` float32 [I], unit norm; zero delta: all zero."""

    sigma: float
    u: np.ndarray
    v: np.ndarray


@dataclass(frozen=True)
class ModuleTriplets:
    """Triplets of one module at checkpoint i (1-based): global G_i, local L_i and, when it exists, target T_{i-k}.

    `energy` is G's sigma_1 / sum(sigma) and `frobenius_energy` its sigma_1^2 / |G|_F^2.
    """

    global_: Triplet
    local: Triplet
    target: Triplet | None
    energy: float
    frobenius_energy: float


@dataclass(frozen=True)
class CheckpointTriplets:
    """All modules' triplets of one checkpoint, index i counted from 1."""

    index: int
    step: int
    modules: Mapping[str, ModuleTriplets]


@dataclass(frozen=True)
class BacktestScore:
    """Relative errors |T_hat - T|_F / |T|_F (rank-1, mean over modules) on a transition no method had seen.

    `index` is the checkpoint the transition starts from; it becomes known `horizon` checkpoints later.
    """

    index: int
    next_: float
    persistence: float
    linear: float


@dataclass(frozen=True)
class Candidate:
    """A proposed adapter: how it was made and where it is."""

    name: str
    method: str
    alpha: float
    adapter: Ref[Adapter]
    truncation_error: float = 0.0


@dataclass(frozen=True)
class Proposal:
    """What the predictor offers at a jump: candidates, the backtest behind them and what it abstained from and why.

    `evidence` is the back test in one phrase.
    """

    candidates: tuple[Candidate, ...]
    backtest: tuple[BacktestScore, ...]
    evidence: str
    abstained: Mapping[str, str]
    stats: Mapping[str, float]


@dataclass(frozen=True)
class GateRow:
    """One candidate's showing on the gate set: mean accuracy, difference to the last checkpoint and adjusted p-value."""

    name: str
    accuracy: float
    difference: float
    p_value: float


@dataclass(frozen=True)
class ScreenedRow:
    """A candidate's mean accuracy on the first `num_prompts` gate prompts, after which it was left behind or, the last one, tested."""

    name: str
    accuracy: float
    num_prompts: int


@dataclass(frozen=True)
class GateDecision:
    """The gate's word: the accepted candidate's name or None, and why; the last checkpoint's accuracy where it was measured.

    `rows` are the candidates that were tested; `screened` is how all did on the prompts that chose whom to test (empty without screening).
    """

    accepted: str | None
    reason: str
    baseline_accuracy: float | None
    rows: tuple[GateRow, ...]
    screened: tuple[ScreenedRow, ...] = ()
