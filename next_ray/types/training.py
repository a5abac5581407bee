"""An RL update: who computes what, what comes out, and what a learner needs to go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from next_ray.types.adapter import Adapter, Weights
from next_ray.types.ref import Ref
from next_ray.types.rollout import Group, Shard

if TYPE_CHECKING:
    import numpy as np


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
    """One RL update: references to the completions, the versions they may carry, and who computes what.

    `version` is the learner's own; `oldest_version` equals it unless rollout runs ahead (`rollout.max_staleness`).
    """

    shards: tuple[Ref[list[Group]], ...]
    version: int
    oldest_version: int
    mini_batches: tuple[MiniBatch, ...]


@dataclass(frozen=True)
class TrainedBatch:
    """What a step was trained on: shards, and rewards and advantages [P][G] of their groups in order (None: left out of the loss)."""

    shards: tuple[Shard, ...]
    rewards: tuple[tuple[float, ...], ...]
    advantages: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class UpdateResult:
    """What an update left behind: the new adapter (float32) or full weights, and the numbers to log, averaged over ranks."""

    adapter: Ref[Adapter]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class FullPart:
    """Some parameters of a model that is trained whole: `weights` float32 and `moments` `<name>.exp_avg|exp_avg_sq` of equal shapes."""

    weights: Weights
    moments: Weights


@dataclass(frozen=True)
class LearnerState:
    """Everything a learner gang of any size needs to go on: unpartitioned, float32.

    `moments` maps `"<module>.lora_A|lora_B.exp_avg|exp_avg_sq"` to float32 arrays shaped like the factor.
    `scalars` are JSON numbers: optimizer steps done, schedule position, warm-up start.
    Where all weights are trained, adapter and moments are empty and `parts` gives the model piece by piece, each in memory alone.
    """

    adapter: Adapter
    moments: Mapping[str, np.ndarray]
    scalars: Mapping[str, float]
    parts: Iterable[FullPart] = ()
