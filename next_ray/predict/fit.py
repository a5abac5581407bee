"""Fitting networks: full-batch L1, AdamW, cosine (NExt, arXiv 2604.11446, eq. 9), reproducible on CPU.

Shape legend: N examples, C coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from next_ray.config import PredictorSection
from next_ray.predict.network import NextNetwork

FINAL_LR = 0.1
"""The cosine ends at this share of the peak learning rate, as released (2e-5 to 2e-6)."""


@dataclass(frozen=True)
class Examples:
    """Inputs and targets [N, C], float32; `target` is empty when only a prediction is asked for."""

    global_: Tensor
    local: Tensor
    target: Tensor


def fit(networks: Sequence[tuple[NextNetwork, Examples]], num_checkpoints: int, steps: int, cfg: PredictorSection) -> float:
    """Minimise sum |D(E_G(s_G), E_L(s_L)) - s_T| / num_checkpoints over all examples at once; returns the last loss.

    The networks share nothing but the optimizer's steps, which are dearer than the arithmetic of small networks: each comes out
    as if it were fitted alone.
    """
    parameters = [p for network, _ in networks for p in network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    loss = torch.zeros(())
    for step in range(steps):
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = cfg.lr * (FINAL_LR + (1.0 - FINAL_LR) * cosine)
        losses = [(network(x.global_, x.local) - x.target).abs().sum() for network, x in networks]
        loss = torch.stack(losses).sum() / num_checkpoints
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return float(loss.detach())
