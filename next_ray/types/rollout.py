"""From a prompt to scored completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from next_ray.types.ref import Ref

if TYPE_CHECKING:
    import numpy as np


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
    """What one engine made of its part of a batch: a reference to the groups, and the sizes of those that count, in request order.

    `chosen` are the places of these groups in the list that `groups` refers to, ascending; None: all of them. `restarts` counts
    requests that were begun anew under a newer adapter.
    """

    groups: Ref[list[Group]]
    sizes: tuple[GroupSize, ...]
    chosen: tuple[int, ...] | None = None
    restarts: int = 0

    @property
    def places(self) -> tuple[int, ...]:
        """Where the groups of `sizes` are in the referenced list."""
        return tuple(range(len(self.sizes))) if self.chosen is None else self.chosen


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
    correct: tuple[tuple[float, ...], ...] | None = None
    """1 for a correct answer, else 0, [P][G]; None: the rewards are just that."""

    @property
    def accuracy(self) -> tuple[tuple[float, ...], ...]:
        """What gate and evaluation count, [P][G]: whether answers are correct, whatever else a reward is made of."""
        return self.rewards if self.correct is None else self.correct

    @staticmethod
    def joined(parts: Sequence[Scores]) -> Scores:
        """All groups and samples of the parts in their order, and their verdicts added up."""
        verdicts = Counter[str]()
        for part in parts:
            verdicts.update(part.verdicts)
        return Scores(
            tuple(group for part in parts for group in part.rewards),
            dict(verdicts),
            tuple(sample for part in parts for sample in part.samples),
            tuple(group for part in parts for group in part.accuracy),
        )
