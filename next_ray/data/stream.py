"""Training prompts in an order that a cursor of two integers brings back exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from next_ray.errors import DataError
from next_ray.types import Prompt


@dataclass(frozen=True)
class Cursor:
    """Where a stream stands: `offset` prompts of epoch `epoch` have been handed out (both from 0)."""

    epoch: int = 0
    offset: int = 0


class PromptStream:
    """An endless stream: every epoch hands out every prompt once, in an order drawn from seed and epoch.

    Args:
        prompts: at least one; the order matters for reproducibility.
        seed: of the permutations.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise DataError("there are no prompts to train on; check data.train and data.max_prompt_tokens.")
        self._prompts = list(prompts)
        self._seed = seed
        self._cursor = Cursor()
        self._order = permutation(len(self._prompts), seed, 0)

    @property
    def cursor(self) -> Cursor:
        """The position after everything handed out so far."""
        return self._cursor

    def restore(self, cursor: Cursor) -> None:
        """Go on from a cursor of a stream over the same prompts and seed; raises `DataError` when it cannot be one."""
        if cursor.epoch < 0 or not 0 <= cursor.offset < len(self._prompts):
            raise DataError(
                f"the checkpoint's data cursor (epoch {cursor.epoch}, offset {cursor.offset}) does not fit {len(self._prompts)} prompts; "
                "the training data changed since. Restore the data, or start a run of another name."
            )
        self._order = permutation(len(self._prompts), self._seed, cursor.epoch)
        self._cursor = cursor

    def next(self, count: int) -> list[Prompt]:
        """The next `count` prompts; crosses as many epoch boundaries as it takes, without loss or repetition within an epoch."""
        batch: list[Prompt] = []
        epoch, offset = self._cursor.epoch, self._cursor.offset
        while len(batch) < count:
            taken = self._order[offset : offset + count - len(batch)]
            batch.extend(self._prompts[index] for index in taken)
            offset += len(taken)
            if offset == len(self._prompts):
                epoch, offset = epoch + 1, 0
                self._order = permutation(len(self._prompts), self._seed, epoch)
        self._cursor = Cursor(epoch, offset)
        return batch


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation int64 [size] of epoch `epoch`: the ranks of Philox's raw output.

    numpy guarantees the bit generator's stream across versions, not the one of `Generator.permutation`.
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(size)
    return np.argsort(keys, kind="stable")
