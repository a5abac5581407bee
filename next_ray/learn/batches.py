"""Token arrays to right-padded tensors, keeping track of which positions predict completion tokens.

Shape legend: S sequences, L padded length, N completion tokens of all sequences, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from next_ray.learn.sharing import SharedTokens, shared_tokens
from next_ray.types import Completion, Group, MicroBatch


@dataclass(frozen=True)
class TokenBatch:
    """What one forward pass needs.

    `input_ids` int64 [S, L] lacks each sequence's last token, whose successor nobody asks for; `select` int64 [N] are the
    flat positions in [S * L] that predict `targets` int64 [N]; `lengths` int64 [S] are completion lengths; `num_tokens`
    counts the tokens that are no padding. Padding is known by position only, so the pad token may equal the end token.
    `shared` is the same batch with every prompt once and no padding, None for a single sequence.
    """

    input_ids: Tensor
    select: Tensor
    targets: Tensor
    lengths: Tensor
    num_tokens: int
    shared: SharedTokens | None = None


@dataclass(frozen=True)
class TrainingBatch:
    """A micro batch: tokens, and per completion token the advantage and the engine's log-probability, float32 [N]."""

    tokens: TokenBatch
    advantages: Tensor
    engine_logprobs: Tensor
    is_empty: bool


def token_batch(prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray], device: torch.device) -> TokenBatch:
    """Pad prompt + completion (int [T] each, prompts not empty) to the right; causal attention then needs no mask."""
    lengths = np.array([len(c) for c in completions], dtype=np.int64)
    starts = np.array([len(p) for p in prompts], dtype=np.int64) - 1
    inputs = starts + lengths
    width = max(1, int(inputs.max()))
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, : inputs[row]] = np.concatenate((prompt, completion))[:-1]
    select = np.concatenate([row * width + np.arange(s, s + n) for row, (s, n) in enumerate(zip(starts, lengths, strict=True))])
    targets = np.concatenate([np.asarray(c, dtype=np.int64) for c in completions])
    arrays = (ids, select.astype(np.int64), targets, lengths)
    shared = shared_tokens(prompts, completions, width, device) if len(prompts) > 1 else None
    return TokenBatch(*(torch.from_numpy(a).to(device) for a in arrays), num_tokens=int(inputs.sum()), shared=shared)


def training_batch(micro: MicroBatch, shards: Sequence[Sequence[Group]], device: torch.device) -> TrainingBatch:
    """Gather a micro batch's samples; an empty one becomes a single token without advantage, to run beside the other ranks."""
    if not micro.samples:
        tokens = token_batch([np.zeros(1, np.int64)], [np.zeros(1, np.int64)], device)
        zero = torch.zeros(1, dtype=torch.float32, device=device)
        return TrainingBatch(tokens=tokens, advantages=zero, engine_logprobs=zero, is_empty=True)
    groups = [shards[i.shard][i.group] for i in micro.samples]
    completions: list[Completion] = [g.completions[i.sample] for g, i in zip(groups, micro.samples, strict=True)]
    tokens = token_batch([g.prompt_token_ids for g in groups], [c.token_ids for c in completions], device)
    per_sequence = torch.tensor(micro.advantages, dtype=torch.float32, device=device)
    engine = np.concatenate([np.asarray(c.logprobs, dtype=np.float32) for c in completions])
    return TrainingBatch(
        tokens=tokens,
        advantages=torch.repeat_interleave(per_sequence, tokens.lengths),
        engine_logprobs=torch.from_numpy(engine).to(device),
        is_empty=False,
    )
