"""Who computes what in an update: mini batches, ranks and micro batches, planned from token counts alone. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from next_ray.errors import StaleCompletionError
from next_ray.types import MicroBatch, MiniBatch, SampleIndex, Shard, UpdatePlan

UNCUT_TOKENS = 8192
"""Micro batches up to this padded size are filled whatever the lengths."""
NEARLY = 0.9
"""Larger ones take samples of at least this share of the longest one's length."""
SHORT_TOKENS = 256
"""Sequences up to this length may be padded for the sake of shared prompts: their attention is under a tenth of a layer's work."""


class Versions(NamedTuple):
    """Adapter versions that completions of an update may come from: `oldest..learner`, the latter being the learner's own."""

    oldest: int
    learner: int

    def require(self, version: int, where: str) -> None:
        """Refuse a completion that is older than allowed, or from the future."""
        if not self.oldest <= version <= self.learner:
            allowed = f"version {self.learner}" if self.oldest == self.learner else f"versions {self.oldest} to {self.learner}"
            raise StaleCompletionError(
                f"{where} was sampled from adapter version {version}, but the learner takes {allowed}: its log-probabilities "
                "would not be those of the policy that is updated. Load the current adapter on every engine before sampling."
            )


@dataclass(frozen=True)
class _Item:
    """One completion: where it is, its length with the prompt, its own length and its advantage."""

    index: SampleIndex
    tokens: int
    completion_tokens: int
    advantage: float


def plan_update(
    shards: Sequence[Shard],
    advantages: Sequence[Sequence[float | None]],
    versions: Versions,
    num_ranks: int,
    prompts_per_mini_batch: int | None,
    micro_batch_tokens: int,
    drop_zero_advantage: bool,
) -> UpdatePlan:
    """Plan one RL update over all completions of `shards`.

    `advantages` [P][G] follow the groups' order over all shards; a completion with None is neither computed nor counted. Mini
    batches take `prompts_per_mini_batch` groups in that order (None: all). Within one, samples go to the rank with the fewest
    tokens, longest first, and then into micro batches whose padded size (longest times count) stays within
    `micro_batch_tokens`; a longer sample is alone in its micro batch. Every rank gets equally many micro batches, empty ones if
    need be: ZeRO's collectives need company. With `drop_zero_advantage` samples without advantage are not computed; the
    denominators count them all the same, so without a KL term or an entropy bonus the gradient is exact.

    Raises `StaleCompletionError` for a completion of a version that is not allowed, `ValueError` when the shapes do not match.
    """
    groups = _items(shards, advantages, versions)
    per_mini = prompts_per_mini_batch or max(1, len(groups))
    mini_batches = tuple(
        _mini_batch(groups[start : start + per_mini], num_ranks, micro_batch_tokens, drop_zero_advantage)
        for start in range(0, len(groups), per_mini)
    )
    return UpdatePlan(tuple(shard.groups for shard in shards), versions.learner, versions.oldest, mini_batches)


def _items(shards: Sequence[Shard], advantages: Sequence[Sequence[float | None]], versions: Versions) -> list[list[_Item]]:
    num_groups = sum(len(shard.sizes) for shard in shards)
    if num_groups != len(advantages):
        raise ValueError(f"{len(advantages)} groups of advantages for {num_groups} groups of completions")
    groups: list[list[_Item]] = []
    for s, shard in enumerate(shards):
        for g, size in enumerate(shard.sizes):
            values = advantages[len(groups)]
            if len(values) != len(size.completion_tokens):
                raise ValueError(f"group {len(groups)}: {len(values)} advantages for {len(size.completion_tokens)} completions")
            for i, version in enumerate(size.versions):
                versions.require(version, f"completion {i} of group {g} in shard {s}")
            groups.append(
                [
                    _Item(SampleIndex(s, shard.places[g], i), size.prompt_tokens + tokens, tokens, float(value))
                    for i, (tokens, value) in enumerate(zip(size.completion_tokens, values, strict=True))
                    if value is not None
                ]
            )
    return groups


def _mini_batch(groups: Sequence[list[_Item]], num_ranks: int, budget: int, drop_zero: bool) -> MiniBatch:
    everything = [item for group in groups for item in group]
    kept = [item for item in everything if item.advantage != 0.0] if drop_zero else everything
    per_rank = [_micro_batches(items, budget) for items in _spread(kept, num_ranks)]
    count = max(len(micro) for micro in per_rank)
    empty = MicroBatch(samples=(), advantages=())
    return MiniBatch(
        per_rank=tuple(tuple(micro) + (empty,) * (count - len(micro)) for micro in per_rank),
        num_sequences=len(everything),
        num_tokens=sum(item.completion_tokens for item in everything),
    )


def _spread(items: Sequence[_Item], num_ranks: int) -> list[list[_Item]]:
    """Longest processing time first: each sample to the rank that has the fewest tokens so far; longest first in each rank."""
    ranks: list[list[_Item]] = [[] for _ in range(num_ranks)]
    heap = [(0, rank) for rank in range(num_ranks)]
    for item in sorted(items, key=lambda item: -item.tokens):
        tokens, rank = heapq.heappop(heap)
        ranks[rank].append(item)
        heapq.heappush(heap, (tokens + item.tokens, rank))
    return ranks


def _micro_batches(items: Sequence[_Item], budget: int) -> list[MicroBatch]:
    """Cut a list sorted by falling length; where all are short with the samples of a prompt together, if less is computed that way.

    A micro batch computes each of its prompts once (`sharing.py`). Padding then concerns attention alone, which is little work for
    short sequences; for long ones it is much, and their prompts are the smaller part.
    """
    batches = _cut(items, budget)
    if items and items[0].tokens <= SHORT_TOKENS:
        longest: dict[tuple[int, int], int] = {}
        for item in items:
            longest.setdefault(_prompt(item), item.tokens)
        together = _cut(sorted(items, key=lambda item: (-longest[_prompt(item)], _prompt(item))), budget)
        batches = min((batches, together), key=_computed_tokens)
    return [MicroBatch(tuple(item.index for item in batch), tuple(item.advantage for item in batch)) for batch in batches]


def _prompt(item: _Item) -> tuple[int, int]:
    return item.index.shard, item.index.group


def _computed_tokens(batches: Sequence[Sequence[_Item]]) -> int:
    prompts = sum(sum({_prompt(item): item.tokens - item.completion_tokens for item in batch}.values()) for batch in batches)
    return prompts + sum(item.completion_tokens for batch in batches for item in batch)


def _cut(items: Sequence[_Item], budget: int) -> list[list[_Item]]:
    """Cut a list where the next sample would break the budget, or waste more than a small batch's worth.

    Beyond `UNCUT_TOKENS` a batch takes only samples of nearly its longest one's length: large batches of few, unlike samples would
    be padding for a quarter.
    """
    batches: list[list[_Item]] = []
    longest = shortest = 0
    for item in items:
        high, low = max(longest, item.tokens, 1), min(shortest, item.tokens)
        padded = high * (len(batches[-1]) + 1) if batches else 0
        if batches and padded <= budget and (padded <= UNCUT_TOKENS or low >= NEARLY * high):
            batches[-1].append(item)
            longest, shortest = high, low
        else:
            batches.append([item])
            longest = shortest = max(1, item.tokens)
    for batch in batches:
        batch.sort(key=lambda item: -item.tokens)
    return batches
