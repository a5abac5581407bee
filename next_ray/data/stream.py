"""Training prompts, of one source or several by weight, in an order that a cursor of two integers brings back exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from next_ray.errors import DataError
from next_ray.types import Prompt


@dataclass(frozen=True)
class Cursor:
    """Where a stream stands: `offset` prompts of epoch `epoch` have been handed out (both from 0).

    `beyond` counts on from there: places whose prompts have been handed out too, and do not come again.
    """

    epoch: int = 0
    offset: int = 0
    beyond: Sequence[int] = ()


@dataclass(frozen=True)
class Mixture:
    """Sources by name, their weights (any scale), and the source of each prompt by the prompt's id."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    source_of: Mapping[str, int]

    def members(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Positions in `prompts` by source; prompts of no source are in none."""
        members: list[list[int]] = [[] for _ in self.names]
        for position, prompt in enumerate(prompts):
            members[self.source_of[prompt.id]].append(position)
        return members

    def count(self, prompts: Sequence[Prompt]) -> str:
        """`12 name, 3 other`: prompts by source."""
        counted = zip(self.members(prompts), self.names, strict=True)
        return ", ".join(f"{len(positions)} {name}" for positions, name in counted)


class PromptStream:
    """An endless stream: every epoch hands out every prompt once, in an order drawn from seed and epoch.

    With a mixture an epoch is as many prompts as there are; each source has its share of them by weight, to the nearest prompt and
    at least one, spread evenly over the epoch. Each source hands out all of its prompts before any of them comes again.

    Args:
        prompts: at least one, of each source if there is a mixture; the order matters for reproducibility.
        seed: of the permutations.
        mixture: whose prompts come how often; None: all prompts equally.

    Raises:
        DataError: no prompt, or a source without one.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, mixture: Mixture | None = None) -> None:
        if not prompts:
            raise DataError("there are no prompts to train on; check data.train and data.max_prompt_tokens.")
        self._prompts = list(prompts)
        self._seed = seed
        self._cursor = Cursor()
        self._used: frozenset[int] = frozenset()
        self._weights = mixture.weights if mixture else ()
        self._members = [np.array(positions, np.int64) for positions in mixture.members(prompts)] if mixture else []
        for name, positions in zip(mixture.names if mixture else (), self._members, strict=True):
            if not len(positions):
                raise DataError(f"{name}: no prompt of this source is left to train on. Take it out of data.train.sources, or mend it.")
        self._order = self._epoch(0)

    @property
    def cursor(self) -> Cursor:
        """The position after everything handed out so far."""
        return self.cursor_at(self.position, self._used)

    @property
    def position(self) -> int:
        """The same as one number: prompts of all epochs before it."""
        return self._cursor.epoch * len(self._prompts) + self._cursor.offset

    def cursor_at(self, position: int, used: Iterable[int]) -> Cursor:
        """The cursor of a stream that goes on at `position`, without the positions of `used`."""
        return Cursor(*divmod(position, len(self._prompts)), tuple(sorted(place - position for place in used if place >= position)))

    def used(self, cursor: Cursor) -> frozenset[int]:
        """The positions that are left out behind a cursor."""
        first = cursor.epoch * len(self._prompts) + cursor.offset
        return frozenset(first + place for place in cursor.beyond)

    def restore(self, cursor: Cursor) -> None:
        """Go on from a cursor of a stream over the same prompts and seed; raises `DataError` when it cannot be one."""
        if cursor.epoch < 0 or not 0 <= cursor.offset < len(self._prompts) or any(place < 0 for place in cursor.beyond):
            raise DataError(
                f"the checkpoint's data cursor (epoch {cursor.epoch}, offset {cursor.offset}) does not fit {len(self._prompts)} prompts; "
                "the training data changed since. Restore the data, or start a run of another name."
            )
        self._order = self._epoch(cursor.epoch)
        self._cursor = Cursor(cursor.epoch, cursor.offset)
        self._used = self.used(cursor)

    def next(self, count: int) -> list[Prompt]:
        """The next `count` prompts; crosses as many epoch boundaries as it takes, without loss or repetition within an epoch."""
        batch: list[Prompt] = []
        epoch, offset = self._cursor.epoch, self._cursor.offset
        while len(batch) < count:
            taken = self._order[offset : offset + count - len(batch)]
            first = epoch * len(self._prompts) + offset
            batch.extend(self._prompts[index] for place, index in enumerate(taken, start=first) if place not in self._used)
            offset += len(taken)
            if offset == len(self._prompts):
                epoch, offset = epoch + 1, 0
                self._order = self._epoch(epoch)
        self._cursor = Cursor(epoch, offset)
        return batch

    def _epoch(self, epoch: int) -> np.ndarray:
        if not self._members:
            return permutation(len(self._prompts), self._seed, epoch)
        return mixed(self._members, self._weights, self._seed, epoch)


def quotas(weights: Sequence[float], total: int) -> list[int]:
    """How many of `total` prompts each source gives: in proportion, at least 1, `total` together; the largest remainders round up.

    `total` is at least the number of sources.
    """
    shares = [weight / math.fsum(weights) * total for weight in weights]
    counts = [max(1, math.floor(share)) for share in shares]
    while (missing := total - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        changeable = [index for index, count in enumerate(counts) if count + step >= 1]
        furthest = max(changeable, key=lambda index: step * (shares[index] - counts[index]))
        counts[furthest] += step
    return counts


def mixed(members: Sequence[np.ndarray], weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Positions int64 [total] that epoch `epoch` of a mixture hands out, `total` being the prompts of all sources together.

    Source i draws prompts q_i * epoch to q_i * (epoch + 1) - 1 of its own endless sequence of permutations, and its k-th stands at
    (k + u) / q_i of the epoch, u drawn uniformly: any stretch of the epoch is close to the weights (stratified sampling).

    Args:
        members: positions of each source's prompts, int64 [n_i], none of them empty.
        weights: one a source, positive.
    """
    drawn, places = [], []
    for number, (positions, quota) in enumerate(zip(members, quotas(weights, sum(map(len, members))), strict=True)):
        first = quota * epoch
        cycles = range(first // len(positions), (first + quota - 1) // len(positions) + 1)
        orders = np.concatenate([positions[permutation(len(positions), seed, cycle, number)] for cycle in cycles])
        start = first % len(positions)
        drawn.append(orders[start : start + quota])
        jitter = np.random.Philox(np.random.SeedSequence([seed, epoch, number, 1])).random_raw(quota) / 2.0**64
        places.append((np.arange(quota) + jitter) / quota)
    return np.concatenate(drawn)[np.argsort(np.concatenate(places), kind="stable")]


def permutation(size: int, seed: int, epoch: int, source: int | None = None) -> np.ndarray:
    """Permutation int64 [size] of epoch `epoch` (of a mixture's source `source`): the ranks of Philox's raw output.

    numpy guarantees the bit generator's stream across versions, not the one of `Generator.permutation`.
    """
    entropy = [seed, epoch] if source is None else [seed, epoch, source, 0]
    keys = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(size)
    return np.argsort(keys, kind="stable")
