"""A step's completions as flat rows, one a completion: what a person needs to see why a loss was not finite. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from next_ray.types import Completion, Group, TrainedBatch

TABLE = "nonfinite_batches"


def batch_rows(step: int, batch: TrainedBatch, groups: Sequence[Sequence[Group]]) -> list[dict[str, Any]]:
    """Rows for the store's table `TABLE`; `groups` are the lists that the batch's shards refer to.

    Columns: step, prompt_id, messages (JSON), answer, verifier, prompt_token_ids, sample (number within the group), token_ids, logprobs
    (the engine's), version, finish_reason, text, reward, advantage (null: left out of the loss).
    """
    rows = []
    chosen = (list_[place] for shard, list_ in zip(batch.shards, groups, strict=True) for place in shard.places)
    for group, rewards, advantages in zip(chosen, batch.rewards, batch.advantages, strict=True):
        prompt = group.prompt
        common = {
            "step": step,
            "prompt_id": prompt.id,
            "messages": json.dumps([dict(message) for message in prompt.messages], ensure_ascii=False),
            "answer": prompt.answer,
            "verifier": prompt.verifier,
            "prompt_token_ids": group.prompt_token_ids.tolist(),
        }
        rows += [{**common, **own} for own in _samples(group.completions, rewards, advantages)]
    return rows


def _samples(completions: Sequence[Completion], rewards: Sequence[float], advantages: Sequence[float | None]) -> Iterator[dict[str, Any]]:
    for i, (completion, reward, advantage) in enumerate(zip(completions, rewards, advantages, strict=True)):
        yield {
            "sample": i,
            "token_ids": completion.token_ids.tolist(),
            "logprobs": completion.logprobs.tolist(),
            "version": completion.version,
            "finish_reason": str(completion.finish_reason),
            "text": completion.text,
            "reward": float(reward),
            "advantage": None if advantage is None else float(advantage),
        }
