"""The nouns that travel between stages.

Shape legend: P prompts, G samples of a prompt (a group), T tokens, I/O in/out features, R rank.
Nothing here imports numpy at run time; arrays are named in the annotations only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

BASE_VERSION = 0
"""The adapter version that means "the base model, no adapter"."""


@dataclass(frozen=True)
class Ref(Generic[T]):
    """A handle to a value that lives elsewhere: a Ray object reference in a run, the value itself in a test.

    Only `actors/` (or a test's fake) makes and resolves the content; the loop passes it on unopened.
    """

    value: Any


@dataclass(frozen=True)
class Prompt:
    """One problem: chat messages, the reference answer and the verifier that judges it."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    verifier: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How completions are decoded; the same object serves training and evaluation."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class RolloutRequest:
    """`num_samples` completions of `prompt` under adapter `version`; sample i uses `seed + i`."""

    prompt: Prompt
    version: int
    seed: int
    num_samples: int


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `token_ids` int32 [T] includes the end token when it was sampled; `logprobs` float32 [T]."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    text: str
    finish_reason: FinishReason
    version: int


@dataclass(frozen=True)
class Group:
    """All completions of one request. `prompt_token_ids` int32 [T]."""

    prompt: Prompt
    prompt_token_ids: np.ndarray
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class GroupSize:
    """Token counts of a group: what planning needs without opening the payload."""

    prompt_tokens: int
    completion_tokens: tuple[int, ...]
    versions: tuple[int, ...]
    truncated: tuple[bool, ...]


@dataclass(frozen=True)
class Shard:
    """What one engine made of its part of a batch: a reference to the groups and their sizes, in request order."""

    groups: Ref[list[Group]]
    sizes: tuple[GroupSize, ...]


class Verdict(StrEnum):
    """How a verifier call ended; everything but OK costs reward 0."""

    OK = "ok"
    TIMEOUT = "timeout"
    CRASH = "crash"
    MEMORY = "memory"
    ERROR = "error"


@dataclass(frozen=True)
class Sample:
    """One completion as people see it in the console and the samples table."""

    prompt_id: str
    prompt: str
    completion: str
    answer: str
    reward: float


@dataclass(frozen=True)
class Scores:
    """Rewards float32 [P][G] in request order (over all shards), verdict counts, and a few samples to look at."""

    rewards: tuple[tuple[float, ...], ...]
    verdicts: Mapping[str, int]
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class SampleIndex:
    """Where a completion is: shard, group in the shard, sample in the group."""

    shard: int
    group: int
    sample: int


@dataclass(frozen=True)
class MicroBatch:
    """What one rank runs in one forward and backward pass; empty when the rank only keeps the others company."""

    samples: tuple[SampleIndex, ...]
    advantages: tuple[float, ...]


@dataclass(frozen=True)
class MiniBatch:
    """One optimizer step. `per_rank[rank]` lists that rank's micro batches, equally many on every rank.

    `num_sequences` and `num_tokens` count the whole mini batch over all ranks, dropped zero-advantage samples included:
    they are the loss's denominators.
    """

    per_rank: tuple[tuple[MicroBatch, ...], ...]
    num_sequences: int
    num_tokens: int


@dataclass(frozen=True)
class UpdatePlan:
    """One RL update: references to the completions, the version all of them must carry, and who computes what."""

    shards: tuple[Ref[list[Group]], ...]
    expected_version: int
    mini_batches: tuple[MiniBatch, ...]


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


@dataclass(frozen=True)
class UpdateResult:
    """What an update left behind: the new adapter (float32) and the numbers to log, averaged over ranks."""

    adapter: Ref[Adapter]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class LearnerState:
    """Everything a learner gang of any size needs to go on: unpartitioned, float32.

    `moments` maps `"<module>.lora_A|lora_B.exp_avg|exp_avg_sq"` to float32 arrays shaped like the factor.
    `scalars` are JSON numbers: optimizer steps done, schedule position, warm-up start.
    """

    adapter: Adapter
    moments: Mapping[str, np.ndarray]
    scalars: Mapping[str, float]


class CheckpointKind(StrEnum):
    """How a checkpoint came to be."""

    TRAINED = "trained"
    PREDICTED = "predicted"
    JUMPED = "jumped"
    MERGED = "merged"


@dataclass(frozen=True)
class NewCheckpoint:
    """A checkpoint to be committed: the learner's state, the loop's progress, and the ids that retention must spare."""

    step: int
    kind: CheckpointKind
    state: Ref[LearnerState]
    parents: tuple[str, ...]
    progress: Mapping[str, Any]
    keep: tuple[str, ...]


@dataclass(frozen=True)
class ObjectEntry:
    """One immutable object named by a manifest."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The committed description of a checkpoint; readers see a checkpoint only through its manifest."""

    id: str
    run: str
    step: int
    kind: CheckpointKind
    parents: tuple[str, ...]
    base_fingerprint: str
    rank: int
    scale: float
    objects: Mapping[str, ObjectEntry]
    metadata: Mapping[str, Any]
    created_at: str


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
class GateDecision:
    """The gate's word: the accepted candidate's name or None, and why; the last checkpoint's accuracy where it was measured."""

    accepted: str | None
    reason: str
    baseline_accuracy: float | None
    rows: tuple[GateRow, ...]


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
