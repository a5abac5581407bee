"""Checkpoints in, triplets out: the ring buffer of the last k + 1 checkpoints' factors (NExt, arXiv 2604.11446, eq. 6 and 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from next_ray.delta.factors import FactorPair, Spectrum, difference, from_base, spectra
from next_ray.delta.gauge import align
from next_ray.errors import ExtrapolationError
from next_ray.types import Adapter, CheckpointTriplets, LoraFactors, ModuleTriplets, Triplet


class DeltaWindow:
    """Turns a trajectory of adapters, given one by one from index 1, into the triplets of G_i, L_i and T_{i-k}.

    Args:
        horizon: k, how many checkpoints ahead the target delta looks.
        modules: this worker's share of the modules; None takes all of the first checkpoint's.
    """

    def __init__(self, horizon: int, modules: Sequence[str] | None = None) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        self.horizon = horizon
        self._modules = tuple(modules) if modules is not None else None
        self._factors: dict[int, dict[str, LoraFactors]] = {}
        self._results: dict[int, CheckpointTriplets] = {}
        self._last = 0

    @property
    def last_index(self) -> int:
        """Index of the newest checkpoint seen, 0 before the first."""
        return self._last

    def factors(self, index: int) -> Mapping[str, LoraFactors]:
        """The factors of a checkpoint that is still in the window (the last k + 1)."""
        if index not in self._factors:
            raise ExtrapolationError(f"Checkpoint {index} is not among the last {self.horizon + 1} (newest {self._last}).")
        return self._factors[index]

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
        pairs: dict[tuple[str, str], FactorPair] = {}
        for name, factors in current.items():
            pairs["global", name] = from_base(factors)
            if index > 1:
                pairs["local", name] = difference(factors, self._factors[index - 1][name])
            if index > self.horizon and self.horizon > 1:
                pairs["target", name] = difference(factors, self._factors[index - self.horizon][name])
        found = spectra({f"{kind}:{name}": pair for (kind, name), pair in pairs.items()})
        result = CheckpointTriplets(index, step, {name: self._module(index, name, found) for name in current})
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

    def _module(self, index: int, name: str, found: Mapping[str, Spectrum]) -> ModuleTriplets:
        own = found[f"global:{name}"]
        before = self._global(index - 1, name)
        global_ = align(own.top, before)
        local = align(found[f"local:{name}"].top, global_) if index > 1 else global_
        target = None
        if index > self.horizon:
            kind = "target" if self.horizon > 1 else "local"
            target = align(found[f"{kind}:{name}"].top, self._global(index - self.horizon, name))
        return ModuleTriplets(global_, local, target, own.energy, own.frobenius_energy)

    def _global(self, index: int, name: str) -> Triplet | None:
        return self._results[index].modules[name].global_ if index in self._results else None

    def _keep(self, index: int, current: dict[str, LoraFactors], result: CheckpointTriplets) -> None:
        self._factors[index], self._results[index], self._last = current, result, index
        for old in [i for i in self._factors if i < index - self.horizon]:
            del self._factors[old], self._results[old]
