"""The policy-gradient loss over a flat list of completion tokens. Pure torch; blind to the algorithm that made the advantages.

Shape legend: S sequences, N completion tokens of all sequences, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from next_ray.config.algorithms import Aggregation, LossKind

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to +-20 so that exp stays finite; far outside every clip range."""

KlEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class Surrogate:
    """Per-token results [N]: `loss` carries the gradient, `ratio` and `clipped` (bool: the clip is active) do not."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class Clips:
    """The ratio's bounds are 1 - `low` and 1 + `high`; where A < 0 the loss is at most `-dual A` (None: without bound)."""

    low: float
    high: float
    dual: float | None = None


def policy_loss(kind: LossKind, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor, clips: Clips) -> Surrogate:
    """The token losses of `kind`; all [N] but the completions' `lengths`, int64 [S], which sum to N."""
    if kind == "clip":
        return clipped_surrogate(logprobs, old_logprobs, advantages, clips.low, clips.high, clips.dual)
    if kind == "cispo":
        return weighted_logprobs(logprobs, old_logprobs, advantages, clips.low, clips.high)
    mean_ratio = sequence_means(logprobs - old_logprobs, lengths)
    return clipped_surrogate(mean_ratio, torch.zeros_like(mean_ratio), advantages, clips.low, clips.high, clips.dual)


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Surrogate:
    """PPO's `-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)` per token, `r = exp(logprobs - old_logprobs)`; all [N].

    With `dual_clip` c the loss of a token with A < 0 is at most `-c A`.
    Source: PPO (arXiv 1707.06347) eq. 7; separate bounds as in DAPO (arXiv 2503.14476) eq. 10; dual clip (1912.09729) eq. 5.
    """
    ratio = torch.exp(torch.clamp(logprobs - old_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    plain = ratio * advantages
    bounded = torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
    objective, clipped = torch.minimum(plain, bounded), bounded < plain
    if dual_clip is not None:
        floor = torch.where(advantages < 0, dual_clip * advantages, -torch.inf)
        clipped = clipped | (floor > objective)
        objective = torch.maximum(objective, floor)
    return Surrogate(loss=-objective, ratio=ratio.detach(), clipped=clipped.detach())


def weighted_logprobs(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Surrogate:
    """CISPO's `-sg(clip(r, 1 - clip_low, 1 + clip_high)) A logprobs` per token; all [N]. No token loses its gradient.

    Source: MiniMax-M1 (arXiv 2506.13585) eqs. 4 and 5.
    """
    ratio = torch.exp(torch.clamp(logprobs - old_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)).detach()
    weight = torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return Surrogate(loss=-weight * advantages * logprobs, ratio=ratio, clipped=weight != ratio)


def sequence_means(values: Tensor, lengths: Tensor) -> Tensor:
    """The mean of each sequence's values, repeated for its tokens: [N] -> [N]; `lengths` int64 [S] sum to N.

    For `values` = log ratios, its exponential is GSPO's importance ratio (arXiv 2507.18071, eq. 7).
    """
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    sums = torch.zeros(len(lengths), dtype=values.dtype, device=values.device).index_add(0, sequence, values)
    return (sums / lengths.clamp(min=1)).index_select(0, sequence)


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


@dataclass(frozen=True)
class Denominators:
    """What the loss of a mini batch is divided by: its sequences and tokens, and the longest response there may be."""

    num_sequences: int
    num_tokens: int
    max_tokens: int


def token_weights(lengths: Tensor, aggregation: Aggregation, whole: Denominators) -> Tensor:
    """Weight [N] of each token, so that the loss is `sum(weight * token loss)` over all ranks and micro batches.

    `lengths` int64 [S] are those at hand; `whole` counts the mini batch over all ranks. seq-mean-token-mean (NExt, arXiv
    2604.11446, eq. 1): 1 / (length * num_sequences); token-mean (DAPO, 2503.14476, eq. 8): 1 / num_tokens; seq-mean-token-sum
    (RLOO, 2402.14740): 1 / num_sequences; seq-mean-token-sum-norm (Dr.GRPO, 2503.20783): 1 / (max_tokens * num_sequences).
    """
    if aggregation == "seq-mean-token-mean":
        per_sequence = 1.0 / (lengths.clamp(min=1).to(torch.float32) * max(1, whole.num_sequences))
        return torch.repeat_interleave(per_sequence, lengths)
    denominator = {
        "token-mean": whole.num_tokens,
        "seq-mean-token-sum": whole.num_sequences,
        "seq-mean-token-sum-norm": whole.num_sequences * whole.max_tokens,
    }[aggregation]
    return torch.full((int(lengths.sum()),), 1.0 / max(1, denominator), dtype=torch.float32, device=lengths.device)
