"""Prompts of a micro batch computed once, however many completions follow them. Pure torch.

Everything in a transformer but attention works on single tokens, so equal tokens behind equal histories need one computation:
the tokens of a batch are laid out as one row in which a prompt stands once. Attention alone sees sequences: `unfold` gives every
sequence its own copy of queries, keys and values, `fold` takes one output a token back. Same products, fewer of them; prompts
shared in this way are described by Liu et al., Prefix Grouper (arXiv 2506.05433), where attention is split instead.

Shape legend: S sequences, L padded length, N different tokens, C completion tokens of all sequences, D features, k copies of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedTokens:
    """The different tokens of a padded batch [S, L], and the way between both forms.

    `ids`, `positions` int64 [1, N]; `select` int64 [C] are the places in N that predict the completions' tokens; `unfolding`
    int64 [S * L] is the place in N of each padded position (any place for padding, which nobody sees); `copies` are int64 [k, M]
    padded positions of the tokens that occur k times, for each k, in the order of N.
    """

    ids: Tensor
    positions: Tensor
    select: Tensor
    unfolding: Tensor
    copies: tuple[Tensor, ...]
    num_sequences: int


def shared_tokens(prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray], width: int, device: torch.device) -> SharedTokens:
    """Lay out prompts and completions (int [T] each, the last token of a sequence is not an input) for rows of `width` tokens."""
    together: dict[bytes, list[int]] = {}
    for row, prompt in enumerate(prompts):
        together.setdefault(np.asarray(prompt, dtype=np.int64).tobytes(), []).append(row)
    # Tokens in the order of how often they occur: completions once, then prompts by the number of their completions.
    blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # padded positions [k, M], ids [M], positions [M]
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        places = len(prompt) + np.arange(max(0, len(completion) - 1))
        blocks.append((row * width + places[None], np.asarray(completion[:-1], dtype=np.int64), places))
    for rows in together.values():
        prompt = np.asarray(prompts[rows[0]], dtype=np.int64)
        places = np.arange(max(1, len(prompt) - all(len(completions[row]) == 0 for row in rows)))
        blocks.append((np.array(rows)[:, None] * width + places, prompt[: len(places)], places))
    blocks.sort(key=lambda block: len(block[0]))
    unfolding = np.zeros(len(prompts) * width, dtype=np.int64)
    copies: dict[int, list[np.ndarray]] = {}
    start = 0
    for padded, ids, _ in blocks:
        unfolding[padded] = start + np.arange(len(ids))
        copies.setdefault(len(padded), []).append(padded)
        start += len(ids)
    predicting = [row * width + len(p) - 1 + np.arange(len(c)) for row, (p, c) in enumerate(zip(prompts, completions, strict=True))]

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

    return SharedTokens(
        ids=tensor(np.concatenate([ids for _, ids, _ in blocks])[None]),
        positions=tensor(np.concatenate([places for _, _, places in blocks])[None]),
        select=tensor(unfolding[np.concatenate(predicting)]),
        unfolding=tensor(unfolding),
        copies=tuple(tensor(np.concatenate(parts, axis=1)) for parts in copies.values()),
        num_sequences=len(prompts),
    )


class _Unfold(torch.autograd.Function):
    """[N, D] to [S * L, D]; a token's gradient is the sum over its copies."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shared: SharedTokens) -> Tensor:
        ctx.shared = shared
        return values.index_select(0, shared.unfolding)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        grad: Tensor = grads[0]
        parts = [grad.index_select(0, places.flatten()).view(*places.shape, grad.shape[1]) for places in ctx.shared.copies]
        return torch.cat([part[0] if len(part) == 1 else part.sum(0) for part in parts]), None


class _Fold(torch.autograd.Function):
    """[S * L, D] to [N, D]: of equal copies the first is taken, and only that one gets a gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shared: SharedTokens) -> Tensor:
        ctx.places = torch.cat([places[0] for places in shared.copies])
        ctx.length = values.shape[0]
        return values.index_select(0, ctx.places)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        grad: Tensor = grads[0]
        return grad.new_zeros(ctx.length, grad.shape[1]).index_copy_(0, ctx.places, grad), None


def unfold(values: Tensor, shared: SharedTokens) -> Tensor:
    """Heads of the different tokens [1, H, N, E] as heads of all sequences [S, H, L, E]."""
    heads, size = values.shape[1], values.shape[3]
    rows: Tensor = _Unfold.apply(values.transpose(1, 2).reshape(-1, heads * size), shared)  # type: ignore[assignment]
    return rows.view(shared.num_sequences, -1, heads, size).transpose(1, 2)


def fold(values: Tensor, shared: SharedTokens) -> Tensor:
    """Outputs of all sequences [S, L, H, E] as those of the different tokens [1, N, H, E]."""
    heads, size = values.shape[2], values.shape[3]
    rows: Tensor = _Fold.apply(values.reshape(-1, heads * size), shared)  # type: ignore[assignment]
    return rows.view(1, -1, heads, size)
