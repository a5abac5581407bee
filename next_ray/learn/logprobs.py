"""Log-probabilities of given tokens without ever holding a float32 or log-softmax copy of all logits. Pure torch.

Shape legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Logits converted to float32 at a time."""


class _TokenLogprobs(torch.autograd.Function):
    """Row chunks of `log_softmax(logits / temperature)[targets]`; the backward pass recomputes the softmax by chunks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        num_tokens = logits.shape[0]
        logprobs = torch.empty(num_tokens, dtype=torch.float32, device=logits.device)
        log_norms, entropies = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for rows in _chunks(logits):
            scaled = logits[rows].float() / temperature
            log_norms[rows] = torch.logsumexp(scaled, dim=-1)
            logprobs[rows] = scaled.gather(1, targets[rows, None]).squeeze(1) - log_norms[rows]
            probabilities = torch.exp(scaled - log_norms[rows, None])
            entropies[rows] = log_norms[rows] - torch.linalg.vecdot(probabilities, scaled)
        ctx.save_for_backward(logits, targets, log_norms, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        logits, targets, log_norms, entropies = ctx.saved_tensors
        grad = None if grads[0] is None else grads[0] / ctx.temperature
        entropy_grad = None if grads[1] is None else grads[1] / ctx.temperature
        result = torch.empty_like(logits)
        for rows in _chunks(logits):
            log_probs = logits[rows].float() / ctx.temperature - log_norms[rows, None]
            # d entropy / d scaled logit = -p (log p + entropy)
            slope = None if entropy_grad is None else -(log_probs + entropies[rows, None]) * entropy_grad[rows, None]
            chunk = torch.exp(log_probs)
            slope = None if slope is None else slope * chunk
            if grad is not None:
                chunk *= -grad[rows, None]
                index = targets[rows, None]
                chunk.scatter_(1, index, chunk.gather(1, index) + grad[rows, None])
            else:
                chunk.zero_()
            result[rows] = (chunk if slope is None else chunk + slope).to(result.dtype)
        return result, None, None


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`log_softmax(logits / temperature)[targets]` and the entropy of each row, both float32 [N].

    `logits` [N, V] of any floating type, `targets` int64 [N].
    """
    return _TokenLogprobs.apply(logits, targets, temperature)  # type: ignore[return-value]


def _chunks(logits: Tensor) -> list[slice]:
    rows = max(1, CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return [slice(start, start + rows) for start in range(0, logits.shape[0], rows)]
