"""Checkpoints in, triplets out: the ring buffer of the last k + 1 checkpoints' factors (NExt, arXiv 2604.11446, eq. 6 and 7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from next_ray.delta.factors import difference, from_base, spectra
from next_ray.delta.gauge import align
from next_ray.delta.sharding import GRAM_BATCH_BYTES
from next_ray.delta.trajectory_triplets import factor_triplets
from next_ray.errors import ExtrapolationError
from next_ray.types import Adapter, CheckpointTriplets, LoraFactors, ModuleTriplets, Triplet


class DeltaWindow:
    """Turns a trajectory of adapters, given one by one from index 1, into the triplets of G_i, L_i and T_{i-k}.

    Args:
        horizon: k, how many checkpoints ahead the target delta looks.
        modules: this worker's share of the modules; None takes all of the first checkpoint's.
        device: where torch computes, one module at a time; None: numpy on the CPU, many modules at a time.
    """

    def __init__(self, horizon: int, modules: Sequence[str] | None = None, device: str | None = None) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        self.horizon = horizon
        self._modules = tuple(modules) if modules is not None else None
        self._device = device
        self._factors: dict[int, dict[str, LoraFactors]] = {}
        self._results: dict[int, CheckpointTriplets] = {}
        self._last = 0

    def observe(self, index: int, step: int, adapter: Adapter) -> CheckpointTriplets:
        """Take checkpoint `index` and return its triplets, signs aligned; the same index again returns the same result.

        L_1 is G_1, and modules have a target T_{i-k} = W_i - W_{i-k} once i > k. The arrays of `adapter` are kept, not copied.

        Raises:
            ExtrapolationError: a gap in the indices, another trajectory's step, a checkpoint older than the window,
                other modules or shapes than before, or factors that are not finite.
        """
        if index <= self._last:
            return self._repeated(index, step)
        if index != self._last + 1:
            raise ExtrapolationError(
                f"Checkpoint {index} (step {step}) came after checkpoint {self._last}; the trajectory has a gap. "
                f"Hand over checkpoint {self._last + 1} first (replay from checkpoint 1 after a restart)."
            )
        current = self._checked(index, adapter)
        previous, origin = self._factors.get(index - 1), self._factors.get(index - self.horizon)
        found = _batched(current, previous, origin) if self._device is None else _one_by_one(current, previous, origin, self._device)
        result = CheckpointTriplets(index, step, {name: self._in_gauge(index, name, module) for name, module in found.items()})
        self._keep(index, current, result)
        return result

    def _repeated(self, index: int, step: int) -> CheckpointTriplets:
        if index not in self._results:
            raise ExtrapolationError(
                f"Checkpoint {index} (step {step}) is older than the window of {self.horizon + 1} ending at {self._last}; "
                "start a new window to replay the trajectory."
            )
        known = self._results[index]
        if known.step != step:
            raise ExtrapolationError(
                f"Checkpoint {index} was observed at step {known.step} and is now said to be step {step}: two trajectories are "
                "mixed. Use one window per trajectory."
            )
        return known

    def _checked(self, index: int, adapter: Adapter) -> dict[str, LoraFactors]:
        if self._modules is None:
            self._modules = tuple(adapter)
        missing = [name for name in self._modules if name not in adapter]
        if missing:
            raise ExtrapolationError(f"Checkpoint {index} lacks the modules {missing[:3]} that the trajectory is made of.")
        current = {name: adapter[name] for name in self._modules}
        previous = self._factors.get(index - 1, {})
        for name, f in current.items():
            if f.a.ndim != 2 or f.b.ndim != 2 or f.b.shape[1] != f.a.shape[0]:
                raise ExtrapolationError(f"Checkpoint {index}, module {name!r}: a {f.a.shape} and b {f.b.shape} are no LoRA pair.")
            if name in previous and (previous[name].a.shape[1], previous[name].b.shape[0]) != (f.a.shape[1], f.b.shape[0]):
                raise ExtrapolationError(f"Checkpoint {index}, module {name!r}: the module's size changed; it is another model's.")
            if not (np.isfinite(f.a).all() and np.isfinite(f.b).all() and np.isfinite(f.scale)):
                raise ExtrapolationError(f"Checkpoint {index}, module {name!r}: NaN or infinity. Training has diverged; lower learner.lr.")
        return current

    def _in_gauge(self, index: int, name: str, found: ModuleTriplets) -> ModuleTriplets:
        global_ = align(found.global_, self._global(index - 1, name))
        target = None if found.target is None else align(found.target, self._global(index - self.horizon, name))
        return replace(found, global_=global_, local=align(found.local, global_), target=target)

    def _global(self, index: int, name: str) -> Triplet | None:
        return self._results[index].modules[name].global_ if index in self._results else None

    def _keep(self, index: int, current: dict[str, LoraFactors], result: CheckpointTriplets) -> None:
        self._factors[index], self._results[index], self._last = current, result, index
        for old in [i for i in self._factors if i < index - self.horizon]:
            del self._factors[old], self._results[old]


def _batched(current: Adapter, previous: Adapter | None, origin: Adapter | None) -> dict[str, ModuleTriplets]:
    """Triplets of a checkpoint in any sign, many modules at once: for small ones a call costs more than its work."""
    result: dict[str, ModuleTriplets] = {}
    for names in _portions(current):
        pairs = {f"global:{name}": from_base(current[name]) for name in names}
        if previous is not None:
            pairs |= {f"local:{name}": difference(current[name], previous[name]) for name in names}
        if origin is not None and origin is not previous:
            pairs |= {f"target:{name}": difference(current[name], origin[name]) for name in names}
        found = spectra(pairs)
        for name in names:
            own = found[f"global:{name}"]
            local = found.get(f"local:{name}", own).top
            target = None if origin is None else found.get(f"target:{name}", found[f"local:{name}"]).top
            result[name] = ModuleTriplets(own.top, local, target, own.energy, own.frobenius_energy)
    return result


def _portions(adapter: Adapter) -> Iterator[list[str]]:
    """The modules in runs whose deltas, of R, 2R and 2R float64 columns, stay below `GRAM_BATCH_BYTES`."""
    names: list[str] = []
    held = 0
    for name, factors in adapter.items():
        own = 8 * 5 * factors.rank * (factors.b.shape[0] + factors.a.shape[1])
        if names and held + own > GRAM_BATCH_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += own
    if names:
        yield names


def _one_by_one(current: Adapter, previous: Adapter | None, origin: Adapter | None, device: str) -> dict[str, ModuleTriplets]:
    """The same on a device: each module's origin, previous and current checkpoint are a short trajectory of their own."""
    before = [adapter for adapter in (origin, previous) if adapter is not None]
    before = before[-1:] if origin is previous else before
    result: dict[str, ModuleTriplets] = {}
    for name, factors in current.items():
        chain = [*(adapter[name] for adapter in before), factors]
        last = factor_triplets(chain, max(1, len(before)), device)[-1]
        result[name] = last if origin is not None else replace(last, target=None)
    return result
