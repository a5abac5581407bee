"""States with known content, and storages that fail on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np

from next_ray.store import CheckpointStore, Storage
from next_ray.store.backend import Backend
from next_ray.types import CheckpointKind, LearnerState, LoraFactors, Manifest

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")
FINGERPRINT = "base-0123"


def make_state(seed: int = 0, scale: float = 0.5, rank: int = 4) -> LearnerState:
    """Two modules with moments and scalars, different for each seed."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    adapter = {module: LoraFactors(a=matrix(rank, 8), b=matrix(6, rank), scale=scale) for module in MODULES}
    moments = {}
    for module, factors in adapter.items():
        for letter, factor in (("A", factors.a), ("B", factors.b)):
            moments[f"{module}.lora_{letter}.exp_avg"] = matrix(*factor.shape)
            moments[f"{module}.lora_{letter}.exp_avg_sq"] = np.abs(matrix(*factor.shape))
    return LearnerState(adapter=adapter, moments=moments, scalars={"optimizer_steps": 7 + seed, "warmup_start": 0.25})


def commit(store: CheckpointStore, step: int, seed: int | None = None, kind: CheckpointKind = CheckpointKind.TRAINED) -> Manifest:
    return store.commit(step, kind, make_state(step if seed is None else seed), [], FINGERPRINT, {"step": step})


def assert_same_state(got: LearnerState, expected: LearnerState) -> None:
    assert set(got.adapter) == set(expected.adapter)
    for name, factors in expected.adapter.items():
        np.testing.assert_array_equal(got.adapter[name].a, factors.a)
        np.testing.assert_array_equal(got.adapter[name].b, factors.b)
        assert got.adapter[name].scale == factors.scale
    assert set(got.moments) == set(expected.moments)
    for name, moment in expected.moments.items():
        assert got.moments[name].dtype == np.float32
        np.testing.assert_array_equal(got.moments[name], moment)
    assert dict(got.scalars) == dict(expected.scalars)


class Crash(BaseException):
    """The process dies here: nothing in the package may catch it."""


class CrashingBackend:
    """A real backend that dies before, or after, its n-th changing operation (counted from 0)."""

    CHANGING = frozenset({"put", "create", "replace", "delete", "sweep_torn"})

    def __init__(self, backend: Backend, plan: CrashPlan) -> None:
        self._backend = backend
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        if name == "close":
            return lambda: None
        operation = getattr(self._backend, name)
        if name not in self.CHANGING:
            return operation

        def crashing(*arguments: Any) -> Any:
            index, self._plan.seen = self._plan.seen, self._plan.seen + 1
            if index == self._plan.at and not self._plan.after:
                raise Crash
            result = operation(*arguments)
            if index == self._plan.at:
                raise Crash
            return result

        return crashing


class CrashPlan:
    """Which changing operation dies, and whether it has taken effect by then; counts what it sees."""

    def __init__(self, at: int = -1, after: bool = False) -> None:
        self.at = at
        self.after = after
        self.seen = 0


class CrashingStorage(Storage):
    """The storage of `like`, its connections included, with a crash planned."""

    def __init__(self, like: Storage, plan: CrashPlan) -> None:
        super().__init__(like.url, like.endpoint_url)
        self.like = like
        self.plan = plan

    def _connect(self) -> Any:
        return CrashingBackend(self.like._connected(), self.plan)
