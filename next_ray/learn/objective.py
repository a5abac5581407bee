"""From log-probabilities to the loss of one micro batch, as `algorithm` says; blind to how the advantages were made. Pure torch.

Shape legend: S sequences, N completion tokens of all sequences, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from next_ray.config import AlgorithmSection
from next_ray.learn.corrections import correction_weights, num_corrected
from next_ray.learn.losses import Clips, Surrogate, kl_penalty, policy_loss

WHITENING_EPSILON = 1e-8


@dataclass(frozen=True)
class Inputs:
    """Per token [N]: advantages, the learner's and the engine's log-probs while sampling, and the token's weight in the loss.

    `reference` [N] are the base model's log-probs, None without a KL term in the loss; `lengths` int64 [S] sum to N.
    """

    advantages: Tensor
    old: Tensor
    engine: Tensor
    weights: Tensor
    lengths: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """The share of the global loss (scalar, with gradient), and what is logged of it; `corrected` counts tokens."""

    loss: Tensor
    surrogate: Surrogate
    kl: Tensor | None
    corrected: Tensor


def micro_batch_loss(cfg: AlgorithmSection, logprobs: Tensor, entropy: Tensor, inputs: Inputs) -> Outcome:
    """`sum(weight (correction policy_loss + kl_coef KL - entropy_coef entropy))` over the tokens; `logprobs`, `entropy` [N]."""
    recipe = cfg.recipe
    clips = Clips(recipe.clip_low, recipe.clip_high, cfg.dual_clip)
    surrogate = policy_loss(recipe.loss, logprobs, inputs.old, inputs.advantages, inputs.lengths, clips)
    correction = correction_weights(cfg, inputs.old, inputs.engine, inputs.lengths)
    per_token, kl = surrogate.loss if correction is None else correction * surrogate.loss, None
    if inputs.reference is not None:
        kl = kl_penalty(logprobs, inputs.reference, cfg.kl_estimator)
        per_token = per_token + cfg.kl_coef * kl
    if cfg.entropy_coef > 0:
        per_token = per_token - cfg.entropy_coef * entropy
    return Outcome((inputs.weights * per_token).sum(), surrogate, kl, num_corrected(cfg, correction))


def sums_to_go(values: Tensor, lengths: Tensor) -> Tensor:
    """Each token's value and those after it in its sequence, summed; `values` [N], `lengths` int64 [S] sum to N."""
    return torch.cat([part.flip(0).cumsum(0).flip(0) for part in torch.split(values, lengths.tolist())])


def whitened(values: Sequence[Tensor], counts: Sequence[bool], device: torch.device) -> list[Tensor]:
    """`(value - mean) / std` (population) over the tokens of all tensors that count, of all ranks; the others pass. Collective.

    Source: REINFORCE++ (arXiv 2501.03262), eq. 3. Values that are all equal become 0.
    """
    kept = [v.double() for v, does in zip(values, counts, strict=True) if does]
    total = torch.tensor([sum(v.numel() for v in kept), sum(v.sum().item() for v in kept)], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    mean = total[1] / total[0].clamp(min=1)
    squares = torch.tensor(sum(((v - mean) ** 2).sum().item() for v in kept), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(squares)
    deviation = (squares / total[0].clamp(min=1)).sqrt() + WHITENING_EPSILON
    return [((v.double() - mean) / deviation).float() if does else v for v, does in zip(values, counts, strict=True)]
