"""What is measured and logged: evaluations, steps, attempts to jump."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from next_ray.types.rollout import Sample
from next_ray.types.trajectory import BacktestScore, GateDecision


@dataclass(frozen=True)
class Accuracy:
    """A point estimate with its interval (bootstrap over prompts, 95 %)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class EvaluationResult:
    """One model on one set: avg@k and pass@k with intervals, and how it was decoded."""

    label: str
    num_prompts: int
    num_samples: int
    avg_at_k: Accuracy
    pass_at_k: Accuracy
    temperature: float
    correct: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class StepRecord:
    """One RL step as it is logged. `times` are seconds on the critical path by phase; `metrics` are plain numbers."""

    step: int
    version: int
    reward_mean: float
    num_tokens: int
    times: Mapping[str, float]
    metrics: Mapping[str, float]
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class RollbackRecord:
    """A jump that was taken back after `step`: made after `jump_step` with `candidate`, back to checkpoint `returned_to`.

    Accuracies are of the training completions of the `num_steps` steps since the jump and of as many before it; `p_value` is the
    probability of such a fall when nothing has changed.
    """

    step: int
    jump_step: int
    candidate: str
    returned_to: str
    num_steps: int
    accuracy_before: float
    accuracy_since: float
    p_value: float
    reason: str


@dataclass(frozen=True)
class Alarm:
    """A warning about training itself: what is wrong, in one word and in a sentence that says what to do."""

    name: str
    message: str


@dataclass(frozen=True)
class JumpRecord:
    """One attempt to jump: where, what the gate said, what the backtest said, and what it cost (seconds)."""

    step: int
    decision: GateDecision
    backtest: tuple[BacktestScore, ...]
    evidence: str
    abstained: Mapping[str, str]
    times: Mapping[str, float]
    stats: Mapping[str, float]
    method: str | None = None
    alpha: float | None = None


class FaultEvent(StrEnum):
    """What became of something that a fault met."""

    LOST = "lost"
    BACK = "back"
    JOINS = "joins"
    LEAVES = "leaves"


@dataclass(frozen=True)
class Fault:
    """A fault, or the recovery from it: of what (`rollout engine 0`), a sentence about it, and after a recovery how long it took."""

    what: str
    event: FaultEvent
    detail: str
    seconds: float | None = None
