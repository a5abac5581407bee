"""Engines that answer at once, several in a process; a module of its own, so that their processes import little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from next_ray.types import Completion, FinishReason, Group, GroupSize, RolloutRequest, Sampling

SAMPLES, TOKENS, PROMPT_TOKENS = 8, 16, 32


@dataclass(frozen=True)
class Made:
    """What a driver reads of `actors.engines.Sampled`."""

    sizes: list[GroupSize]
    restarts: int = 0


class Engines:
    """Toy engines of one process; `call` names engine and batch."""

    def __init__(self) -> None:
        self._calls: dict[str, Sequence[RolloutRequest]] = {}

    async def ready(self) -> None:
        """Return at once."""

    async def load(self, versions: Sequence[int], in_force: int, *adapters: Any) -> None:
        """Take the adapters, as an engine would, and forget them."""
        assert len(versions) == len(adapters) and all(adapters)

    async def begin(self, call: str, requests: Sequence[RolloutRequest], sampling: Sampling) -> None:
        """Note the batch."""
        self._calls[call] = requests

    async def collect(self, call: str) -> tuple[list[Group], Made]:
        """Groups of made-up tokens and their sizes."""
        groups = [_group(request) for request in self._calls.pop(call)]
        sizes = [GroupSize(PROMPT_TOKENS, (TOKENS,) * SAMPLES, tuple(c.version for c in g.completions), (False,) * SAMPLES) for g in groups]
        return groups, Made(sizes)

    async def abort(self, call: str) -> None:
        """Forget the batch."""
        self._calls.pop(call, None)

    async def close(self) -> None:
        """Nothing to clean up."""


def _group(request: RolloutRequest) -> Group:
    ids, logprobs = np.zeros(TOKENS, np.int32), np.zeros(TOKENS, np.float32)
    completion = Completion(ids, logprobs, "0", FinishReason.STOP, request.version)
    return Group(request.prompt, np.zeros(PROMPT_TOKENS, np.int32), (completion,) * request.num_samples)
