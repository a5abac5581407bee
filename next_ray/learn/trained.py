"""What is trained: a LoRA adapter or all weights. Between DeepSpeed's masters and what is served, stored and extrapolated.

Every method is collective: all ranks call it, and iterate what it returns, together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from next_ray.config import LoraSection
from next_ray.errors import ConfigError
from next_ray.learn.lora import initial_weights
from next_ray.learn.masters import MOMENTS, Masters
from next_ray.learn.state import as_adapter, moments_of, weights_of
from next_ray.types import Adapter, FullPart, LearnerState, LoraFactors, Weights
from next_ray.weights import plan_parts, to_array, to_tensor

Shapes = Mapping[str, tuple[int, ...]]


class Trained(ABC):
    """The masters behind one of the two."""

    def __init__(self, masters: Masters, shapes: Shapes) -> None:
        self.masters = masters
        self.shapes = shapes

    @abstractmethod
    def policy(self) -> Any:
        """What engines serve."""

    @abstractmethod
    def snapshot(self, scalars: Mapping[str, float]) -> LearnerState:
        """Everything that `restore` needs."""

    @abstractmethod
    def restore(self, state: LearnerState) -> None:
        """Take over a state; `ConfigError` when it is another model's."""

    @abstractmethod
    def move(self, adapter: Adapter) -> float:
        """Go on from a candidate; returns the relative Frobenius error that this costs."""


class TrainedAdapter(Trained):
    """A LoRA adapter, started with B zero unless a state is restored. A candidate replaces it, recompressed to its rank."""

    def __init__(self, masters: Masters, shapes: Shapes, lora: LoraSection, seed: int) -> None:
        super().__init__(masters, shapes)
        self._rank, self._scale = lora.rank, lora.alpha / lora.rank
        masters.write_weights(initial_weights(shapes, seed))

    def policy(self) -> dict[str, LoraFactors]:
        """The float32 masters, on every rank."""
        return as_adapter(self.masters.weights(), self._scale)

    def snapshot(self, scalars: Mapping[str, float]) -> LearnerState:
        """Unpartitioned, on every rank."""
        moments = {name: value.numpy() for name, value in self.masters.moments().items()}
        return LearnerState(adapter=self.policy(), moments=moments, scalars=scalars)

    def restore(self, state: LearnerState) -> None:
        """Raises `ConfigError` when the state's adapter does not fit the configured one."""
        weights, moments = weights_of(state.adapter, self.shapes, self._scale), moments_of(state, self.shapes)
        self.masters.write_weights(weights)
        self.masters.write_moments(moments, int(state.scalars["adam_step"]))

    def move(self, adapter: Adapter) -> float:
        """Replace the adapter."""
        from next_ray.extrapolate.recompress import recompress

        recompressed = recompress(adapter, self._rank, self.policy())
        self.masters.write_weights(weights_of(recompressed.adapter, self.shapes, self._scale))
        return recompressed.truncation_error


class TrainedWeights(Trained):
    """All weights of the model, part by part: no rank but the first ever holds more of the whole model than one part.

    A candidate is an adapter beside the present weights and is added to them. `dtype` is the engines' number format.
    """

    def __init__(self, masters: Masters, shapes: Shapes, dtype: str, is_first: bool) -> None:
        super().__init__(masters, shapes)
        self._dtype, self._is_first = dtype, is_first
        self._plan = plan_parts(shapes)

    def policy(self) -> Iterator[Weights]:
        """The masters rounded to the engines' format, by parts; empty ones on all ranks but the first."""
        return self.beside({})

    def beside(self, adapter: Adapter) -> Iterator[Weights]:
        """The policy with an adapter added to it; the masters stay."""
        for names in self._plan:
            yield self._part((name, self._added(name, adapter)) for name in names)

    def snapshot(self, scalars: Mapping[str, float]) -> LearnerState:
        """The parts are gathered as they are iterated; they are empty on all ranks but the first."""
        return LearnerState(adapter={}, moments={}, scalars=scalars, parts=self._parts())

    def restore(self, state: LearnerState) -> None:
        """Raises `ConfigError`, with the learner in no state to go on, when the parts are not those of this model."""
        missing = set(self.shapes)
        self.masters.write_moments(None, int(state.scalars["adam_step"]))
        for part in state.parts:
            wanted = {f"{name}.{key}": self.shapes.get(name) for name in part.weights for key in MOMENTS}
            self._require({name: self.shapes.get(name) for name in part.weights}, part.weights)
            self._require(wanted, part.moments)
            self.masters.write_weights({name: to_tensor(values) for name, values in part.weights.items()})
            self.masters.update_moments(part.weights, {name: to_tensor(values) for name, values in part.moments.items()})
            missing -= set(part.weights)
        if missing:
            raise ConfigError(f"The learner state lacks {sorted(missing)[0]!r} and {len(missing) - 1} more parameters of the model.")

    def move(self, adapter: Adapter) -> float:
        """Add the candidate's delta to the weights; exact but for the rounding to float32."""
        for module in adapter:
            name = f"{module}.weight"
            if name not in self.shapes:
                raise ConfigError(f"The candidate moves {module!r}, which is no linear layer of the trained model.")
            self.masters.write_weights({name: self._added(name, adapter)})
        return 0.0

    def _added(self, name: str, adapter: Adapter) -> Tensor:
        value = self.masters.gathered(name)
        factors = adapter.get(name.removesuffix(".weight"))
        if factors is None:
            return value
        delta = factors.scale * (torch.from_numpy(factors.b.copy()) @ torch.from_numpy(factors.a.copy()))
        return value + delta.to(value.device)

    def _part(self, values: Iterable[tuple[str, Tensor]], dtype: str | None = None) -> Weights:
        part = {}
        for name, value in values:  # the others gather as well: it takes all ranks
            if self._is_first:
                part[name] = to_array(value, dtype or self._dtype)
        return part

    def _parts(self) -> Iterator[FullPart]:
        gathered = self.masters.gathered
        for names in self._plan:
            weights = self._part(((name, gathered(name)) for name in names), "float32")
            moments = self._part(((f"{name}.{key}", gathered(name, key)) for name in names for key in MOMENTS), "float32")
            yield FullPart(weights, moments)

    def _require(self, wanted: Mapping[str, tuple[int, ...] | None], found: Weights) -> None:
        for name in sorted(set(wanted) | set(found)):
            have = tuple(found[name].shape) if name in found else None
            if have is None or have != wanted.get(name):
                raise ConfigError(f"The learner state's {name} has shape {have}, the model's {wanted.get(name)}: it is another model's.")
