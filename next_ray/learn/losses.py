"""The policy-gradient loss over a flat list of completion tokens. Pure torch; blind to the algorithm that made the advantages.

Shape legend: S sequences, N completion tokens of all sequences, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to +-20 so that exp stays finite; far outside every clip range."""

KlEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["seq-mean-token-mean", "token-mean"]


@dataclass(frozen=True)
class Surrogate:
    """Per-token results [N]: `loss` carries the gradient, `ratio` and `clipped` (bool: the clip is active) do not."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Surrogate:
    """PPO's `-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)` per token, `r = exp(logprobs - old_logprobs)`; all [N].

    Source: PPO (arXiv 1707.06347) eq. 7; separate bounds as in DAPO (arXiv 2503.14476) eq. 10.
    """
    ratio = torch.exp(torch.clamp(logprobs - old_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    plain = ratio * advantages
    bounded = torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
    return Surrogate(loss=-torch.minimum(plain, bounded), ratio=ratio.detach(), clipped=(bounded < plain).detach())


def kl_penalty(logprobs: Tensor, reference_logprobs: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimate [N] of KL(policy || reference) from samples of the policy.

    With `d = reference - policy`: k1 = -d, k2 = d^2 / 2, k3 = e^d - d - 1. As a loss, k2 has the gradient of the true KL,
    k3 approximates it, and k1's gradient is zero in expectation. Source: Schulman, "Approximating KL divergence" (2020).
    """
    d = torch.clamp(reference_logprobs - logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return 0.5 * d * d
    return torch.expm1(d) - d


def token_weights(lengths: Tensor, aggregation: Aggregation, num_sequences: int, num_tokens: int) -> Tensor:
    """Weight [N] of each token, so that the loss is `sum(weight * token loss)` over all ranks and micro batches.

    `lengths` int64 [S] are those at hand; `num_sequences` and `num_tokens` count the whole mini batch. seq-mean-token-mean
    (NExt, arXiv 2604.11446, eq. 1): 1 / (length * num_sequences); token-mean (DAPO, arXiv 2503.14476, eq. 8): 1 / num_tokens.
    """
    if aggregation == "token-mean":
        return torch.full((int(lengths.sum()),), 1.0 / max(1, num_tokens), dtype=torch.float32, device=lengths.device)
    per_sequence = 1.0 / (lengths.clamp(min=1).to(torch.float32) * max(1, num_sequences))
    return torch.repeat_interleave(per_sequence, lengths)
