"""Weights for samples whose engine and learner disagree on their probability. Pure torch.

Shape legend: S sequences, N completion tokens of all sequences, one after another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from next_ray.config import AlgorithmSection
from next_ray.learn.losses import MAX_LOG_RATIO, sequence_means


def correction_weights(cfg: AlgorithmSection, learner: Tensor, engine: Tensor, lengths: Tensor) -> Tensor | None:
    """Weight [N] of each token's policy loss, None for all 1; `learner` and `engine` [N] are log-probs while sampling.

    token-tis: `min(p_learner / p_engine, correction_cap)`. sequence-mask: 1 for the tokens of a completion whose mean log
    ratio is within `correction_band` of 0, else 0. `lengths` int64 [S] sum to N. No gradient.
    Source: truncated importance sampling (Ionides 2008) as in Yao et al., "Your efficient RL framework secretly brings you
    off-policy RL training" (2025); the mask's mean log ratio is the log of the geometric mean of token ratios.
    """
    if cfg.correction == "none":
        return None
    log_ratio = torch.clamp(learner - engine, -MAX_LOG_RATIO, MAX_LOG_RATIO).detach()
    if cfg.correction == "token-tis":
        return torch.exp(log_ratio).clamp(max=cfg.correction_cap)
    return (sequence_means(log_ratio, lengths).abs() <= cfg.correction_band).to(log_ratio.dtype)


def num_corrected(cfg: AlgorithmSection, weights: Tensor | None) -> Tensor:
    """How many tokens were capped (token-tis) or left out (sequence-mask)."""
    if weights is None:
        return torch.zeros(())
    return (weights >= cfg.correction_cap if cfg.correction == "token-tis" else weights == 0).sum()
