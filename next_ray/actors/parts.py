"""Full weights in the object store: a value of their own for every part, so that nobody holds a whole model to pass it on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from next_ray.types import FullPart, LearnerState, Weights


@dataclass(frozen=True)
class PartRefs:
    """References to one part's weights and, in a learner state, moments."""

    names: tuple[str, ...]
    weights: Any
    moments: Any = None


def put_weights(parts: Iterable[Weights]) -> list[PartRefs]:
    """Store parts one by one as they are made; empty ones, as all ranks but the first have, are left out."""
    return [PartRefs(tuple(part), ray.put(part)) for part in parts if part]


def put_parts(parts: Iterable[FullPart]) -> list[PartRefs]:
    """The same with moments."""
    return [PartRefs(tuple(part.weights), ray.put(part.weights), ray.put(part.moments)) for part in parts if part.weights]


def refs_of(policy: Sequence[PartRefs] | LearnerState) -> list[PartRefs]:
    """The references of a policy, or of the state of a learner that trains all weights."""
    return list(policy.parts) if isinstance(policy, LearnerState) else list(policy)  # type: ignore[arg-type]  # what actors put there


def weights(parts: Iterable[PartRefs]) -> Iterator[Weights]:
    """The parts' weights, one part in memory at a time."""
    for part in parts:
        yield _get(part.weights)


@dataclass(frozen=True)
class FullParts(Sequence[FullPart]):
    """The parts with their moments, one part in memory at a time; they can be gone through as often as need be."""

    refs: Sequence[PartRefs]

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: Any) -> Any:
        part = self.refs[index]
        return FullPart(_get(part.weights), {} if part.moments is None else _get(part.moments))


def _get(ref: Any) -> Any:
    return ray.get(ref)


class Reader:
    """Single parameters of several checkpoints; of each checkpoint the part that was read last stays mapped."""

    def __init__(self) -> None:
        self._parts: dict[int, list[PartRefs]] = {}
        self._open: dict[int, tuple[PartRefs, Weights]] = {}

    def hold(self, index: int, policy: Sequence[PartRefs] | LearnerState) -> None:
        """Keep the weights of a checkpoint alive; moments are let go."""
        self._parts[index] = [PartRefs(part.names, part.weights) for part in refs_of(policy)]

    def drop_before(self, index: int) -> None:
        """Let go of the checkpoints before `index`, and of every part that is mapped."""
        self._open = {}
        self._parts = {i: parts for i, parts in self._parts.items() if i >= index}

    def read(self, index: int, name: str) -> np.ndarray:
        """A parameter of checkpoint `index`, float32; KeyError when it has none of that name."""
        found, values = self._open.get(index, (None, {}))
        if found is None or name not in values:
            found = next((part for part in self._parts[index] if name in part.names), None)
            if found is None:
                raise KeyError(name)
            values = _get(found.weights)
            self._open[index] = (found, values)
        return values[name]
