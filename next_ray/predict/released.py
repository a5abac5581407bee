"""NExt's predictor as the paper's authors released it, to compare with.

Encoders are Lin(D,256) Lin(256,D) ReLU Lin(D,256) Lin(256,D), the decoder takes 2D; sigma goes through the same network with D = 1.
AdamW, 2e-5 falling to 2e-6 on a cosine, weight decay 0.01, 1000 full-batch steps, L1 summed over vectors and entries and divided by the
number of checkpoints; u and v are normalised (arXiv 2604.11446, eq. 8, 9 and 11).

Shape legend: N examples, D dimension of a vector, k horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from next_ray.config import PredictorSection
from next_ray.predict.facts import RELEASED_HIDDEN, RELEASED_STEPS
from next_ray.predict.fit import Examples, fit
from next_ray.predict.network import NextNetwork
from next_ray.threads import one_thread
from next_ray.types import CheckpointTriplets, Triplet

Part = Literal["u", "v", "sigma"]


class GroupKey(NamedTuple):
    """Parts of triplets that share a network: a dimension and an orientation."""

    part: Part
    dimension: int


@dataclass(frozen=True)
class Member:
    """A part of one module's triplets at one checkpoint, float32 [D] each; the target of the last checkpoint is unknown."""

    module: str
    global_: np.ndarray
    local: np.ndarray
    target: np.ndarray | None


def foretell(
    triplets: Sequence[CheckpointTriplets], horizon: int, seed: int, steps: int = RELEASED_STEPS, hidden: int = RELEASED_HIDDEN
) -> dict[str, Triplet]:
    """T_c of the last checkpoint for the modules that moved, from networks fitted to all earlier checkpoints; signs as they come.

    Args:
        triplets: of checkpoints 1..c, c > k.
        horizon: k.
        seed: of the initialisation.
        steps: full-batch steps.
        hidden: width of the bottlenecks.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, dict[str, np.ndarray]] = {}
    with one_thread():
        for key, members in sorted(groups(triplets, horizon).items()):
            network = NextNetwork(key.dimension, hidden, generator)
            known, asked = [m for m in members if m.target is not None], [m for m in members if m.target is None]
            if not known or not asked:
                continue
            cfg = PredictorSection(lr=2e-5, weight_decay=0.01)
            examples = Examples(*_inputs(known), _rows([m.target for m in known if m.target is not None]))
            fit([(network, examples)], len(triplets) - horizon, steps, cfg)
            with torch.no_grad():
                found = network(*_inputs(asked)).double().numpy()
            for member, row in zip(asked, found, strict=True):
                parts.setdefault(member.module, {})[key.part] = row
    return {name: _triplet(found) for name, found in parts.items()}


def groups(triplets: Sequence[CheckpointTriplets], horizon: int) -> dict[GroupKey, list[Member]]:
    """The members of each network's training set, and of the last checkpoint; modules that did not move are left out."""
    result: dict[GroupKey, list[Member]] = {}
    last = len(triplets) - 1
    for position in (*range(last + 1 - horizon), last):
        later: Mapping[str, Triplet | None] = {}
        if position < last:
            later = {name: module.target for name, module in triplets[position + horizon].modules.items()}
        for name in sorted(triplets[position].modules):
            g, local, target = triplets[position].modules[name].global_, triplets[position].modules[name].local, later.get(name)
            if g.sigma == 0.0 or local.sigma == 0.0 or (target is not None and target.sigma == 0.0):
                continue
            for part in ("u", "v", "sigma"):
                member = Member(name, _part(g, part), _part(local, part), None if target is None else _part(target, part))
                result.setdefault(GroupKey(part, len(member.global_)), []).append(member)
    return result


def num_parameters(keys: Sequence[GroupKey], hidden: int = RELEASED_HIDDEN) -> int:
    """How many numbers the networks of these groups have."""
    networks = (NextNetwork(key.dimension, hidden, torch.Generator()) for key in keys)
    return sum(p.numel() for network in networks for p in network.parameters())


def _part(triplet: Triplet, part: Part) -> np.ndarray:
    return np.array([triplet.sigma], dtype=np.float32) if part == "sigma" else {"u": triplet.u, "v": triplet.v}[part]


def _inputs(members: Sequence[Member]) -> tuple[torch.Tensor, torch.Tensor]:
    return _rows([m.global_ for m in members]), _rows([m.local for m in members])


def _rows(vectors: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(vectors).astype(np.float32))


def _triplet(parts: Mapping[str, np.ndarray]) -> Triplet:
    """Unit u and v (eq. 11); a negative sigma turns u around."""
    u, v = (parts[name] / max(float(np.linalg.norm(parts[name])), 1e-30) for name in ("u", "v"))
    sigma = float(parts["sigma"][0])
    return Triplet(abs(sigma), (u if sigma >= 0 else -u).astype(np.float32), v.astype(np.float32))
