"""What an update reports, summed on the device and averaged over all ranks once at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from next_ray.learn.batches import TrainingBatch
from next_ray.learn.losses import MAX_LOG_RATIO
from next_ray.learn.objective import Outcome

SUMS = (
    "loss",
    "trained_tokens",
    "real_tokens",
    "padded_tokens",
    "kl",
    "clip_fraction",
    "clip_low_fraction",
    "clip_high_fraction",
    "corrected_fraction",
    "ratio_mean",
    "entropy",
    "mismatch_kl",
    "mismatch_abs",
)
PER_TOKEN = SUMS[4:]
MAXIMA = ("ratio_max", "negative_ratio_min", "mismatch_max")


class Meter:
    """Sums of one update on this rank."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self._maxima = torch.full((len(MAXIMA),), -torch.inf, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, batch: TrainingBatch, outcome: Outcome, entropy: Tensor, old: Tensor) -> None:
        """Count one micro batch; `old` [N] are the learner's log-probs while sampling.

        Clip fractions are of active clips, below and above ratio 1. The mismatch compares engine and learner on the
        engine's samples: k3 estimates KL(engine || learner).
        """
        if batch.is_empty or old.numel() == 0:
            return
        surrogate, kl = outcome.surrogate, outcome.kl
        difference = torch.clamp(old - batch.engine_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        values = (
            outcome.loss,
            torch.tensor(float(old.numel())),
            torch.tensor(float(batch.tokens.num_tokens)),
            torch.tensor(float(batch.tokens.input_ids.numel())),
            torch.zeros(()) if kl is None else kl.sum(),
            surrogate.clipped.sum(),
            (surrogate.clipped & (surrogate.ratio < 1.0)).sum(),
            (surrogate.clipped & (surrogate.ratio > 1.0)).sum(),
            outcome.corrected,
            surrogate.ratio.sum(),
            entropy.sum(),
            (torch.expm1(difference) - difference).sum(),
            difference.abs().sum(),
        )
        self._sums += torch.stack([v.detach().to(self._sums) for v in values])
        maxima = (surrogate.ratio.max(), -surrogate.ratio.min(), difference.abs().max())
        self._maxima = torch.maximum(self._maxima, torch.stack([v.to(self._maxima) for v in maxima]))

    def include(self, other: Meter) -> None:
        """Count what another one counted."""
        self._sums += other._sums
        self._maxima = torch.maximum(self._maxima, other._maxima)

    def result(self, num_steps: int) -> dict[str, float]:
        """Averages over all ranks (collective): the loss over `num_steps` mini batches, the others over trained tokens."""
        torch.distributed.all_reduce(self._sums)
        torch.distributed.all_reduce(self._maxima, op=torch.distributed.ReduceOp.MAX)
        sums = dict(zip(SUMS, self._sums.tolist(), strict=True))
        maxima = dict(zip(MAXIMA, self._maxima.tolist(), strict=True))
        tokens = max(1.0, sums["trained_tokens"])
        metrics = {name: sums[name] / tokens for name in PER_TOKEN}
        metrics["loss"] = sums["loss"] / max(1, num_steps)
        metrics["trained_tokens"] = sums["trained_tokens"]
        metrics["padding_fraction"] = 1.0 - sums["real_tokens"] / sums["padded_tokens"] if sums["padded_tokens"] else 0.0
        if sums["trained_tokens"]:
            metrics["ratio_max"] = maxima["ratio_max"]
            metrics["ratio_min"] = -maxima["negative_ratio_min"]
            metrics["mismatch_max"] = maxima["mismatch_max"]
        return metrics
