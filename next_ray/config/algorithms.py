"""What the algorithms' names stand for: advantage, loss and aggregation, each of which a job can override by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AlgorithmName = Literal["grpo", "dr-grpo", "rloo", "reinforce++", "reinforce++-baseline", "dapo", "gspo", "cispo"]
Advantage = Literal["group-std", "group-mean", "leave-one-out", "whitened-return", "whitened-group-mean"]
LossKind = Literal["clip", "sequence-clip", "cispo"]
Aggregation = Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


@dataclass(frozen=True)
class Recipe:
    """An algorithm taken apart. `overlong_share` is the part of the response limit in which length is punished (0: none)."""

    advantage: Advantage = "group-std"
    loss: LossKind = "clip"
    aggregation: Aggregation = "seq-mean-token-mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    overlong_share: float = 0.0

    @property
    def is_whitened(self) -> bool:
        """Whether advantages are brought to mean 0 and variance 1 over the batch's tokens."""
        return self.advantage in ("whitened-return", "whitened-group-mean")


RECIPES: dict[AlgorithmName, Recipe] = {
    "grpo": Recipe(),
    "dr-grpo": Recipe(advantage="group-mean", aggregation="seq-mean-token-sum-norm"),
    "rloo": Recipe(advantage="leave-one-out", aggregation="seq-mean-token-sum"),
    "reinforce++": Recipe(advantage="whitened-return", aggregation="token-mean"),
    "reinforce++-baseline": Recipe(advantage="whitened-group-mean", aggregation="token-mean"),
    "dapo": Recipe(aggregation="token-mean", clip_high=0.28, overlong_share=0.2),
    "gspo": Recipe(loss="sequence-clip", clip_low=3e-4, clip_high=4e-4),
    "cispo": Recipe(loss="cispo", aggregation="token-mean", clip_low=1.0, clip_high=4.0),
}
"""Sources: GRPO arXiv 2402.03300 (its aggregation: NExt, 2604.11446, eq. 1), Dr.GRPO 2503.20783, RLOO 2402.14740,
REINFORCE++ 2501.03262, DAPO 2503.14476, GSPO 2507.18071 (clips: section 5.1), CISPO 2506.13585 (which names no bound)."""
