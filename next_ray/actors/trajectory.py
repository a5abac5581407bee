"""Delta workers and the predictor: everything between a committed checkpoint and the candidates of a jump."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from next_ray.actors.cluster import result
from next_ray.config import ExtrapolationSection
from next_ray.delta.sharding import merge_shards
from next_ray.delta.window import DeltaWindow
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.candidates import candidate_name, next_candidate, two_point_candidate
from next_ray.predict.predictor import TrajectoryPredictor
from next_ray.types import Adapter, BacktestScore, Candidate, CheckpointTriplets, LoraFactors, Proposal, Ref, Triplet

BACKGROUND_NICENESS = 10
"""On a CPU machine trajectory work yields to rollout and update."""


@dataclass(frozen=True)
class Findings:
    """What the predictor says beside the candidates: abstentions, back test, truncation error per candidate, fit statistics."""

    abstained: Mapping[str, str]
    backtest: tuple[BacktestScore, ...]
    evidence: str
    truncation: Sequence[float]
    stats: Mapping[str, float]


class DeltaActor:
    """Computes the triplets of its shard of modules; holds the factors of the last k+1 checkpoints."""

    def __init__(self, horizon: int, modules: Sequence[str]) -> None:
        os.nice(BACKGROUND_NICENESS)
        self._horizon, self._modules = horizon, tuple(modules)
        self.restart()

    def restart(self) -> None:
        """Forget the trajectory."""
        self._window = DeltaWindow(self._horizon, self._modules)

    def observe(self, index: int, step: int, adapter: Adapter) -> tuple[CheckpointTriplets, float]:
        """Triplets of checkpoint `index`, and the seconds they took."""
        started = time.perf_counter()
        return self._window.observe(index, step, adapter), time.perf_counter() - started


class PredictorActor:
    """Holds the predictor; observes checkpoints in order and turns the last ones into candidates."""

    def __init__(self, config: ExtrapolationSection, seed: int) -> None:
        os.nice(BACKGROUND_NICENESS)
        self._config, self._seed = config, seed
        self.restart()

    def restart(self) -> None:
        """Forget the trajectory and the fit."""
        self._predictor = TrajectoryPredictor(self._config.predictor, self._config.horizon, self._seed, self._config.abstain)

    def observe(self, *parts: CheckpointTriplets) -> float:
        """Join the workers' shards, back-test, fit; returns the seconds that took."""
        started = time.perf_counter()
        self._predictor.observe(merge_shards(parts))
        return time.perf_counter() - started

    def propose(self, names: Sequence[tuple[str, float]], last: Adapter, earlier: Adapter) -> tuple[Any, ...]:
        """One summary and one adapter (or None) per wanted (method, alpha): `last` is W_c, `earlier` W_{c-k}."""
        wants_next = any(method == "next" for method, _ in names)
        triplets, reason = self._prediction() if wants_next else (None, None)
        abstained = {} if reason is None else {"next": reason}
        adapters: list[dict[str, LoraFactors] | None] = []
        truncation: list[float] = []
        for method, alpha in names:
            error = 0.0
            if method == "two-point":
                made = two_point_candidate(last, earlier, alpha, rank=_double_rank(last))
                adapters.append(dict(made.adapter))
                error = made.truncation_error
            else:
                adapters.append(None if triplets is None else dict(next_candidate(last, triplets, alpha)))
            truncation.append(error)
        return (Findings(abstained, self._predictor.backtest, self._predictor.evidence, truncation, self._predictor.stats), *adapters)

    def _prediction(self) -> tuple[Mapping[str, Triplet] | None, str | None]:
        """What NExt says, or why it says nothing: a trajectory that does not move is no reason to stop training."""
        if self._predictor.abstention is not None:
            return None, self._predictor.abstention
        try:
            return self._predictor.predict(), None
        except ExtrapolationError as error:
            return None, str(error)


def _double_rank(adapter: Adapter) -> int:
    return 2 * max(f.rank for f in adapter.values())


@dataclass
class RayTrajectory:
    """The `Trajectory` port: fans checkpoints out to the delta workers and their triplets into the predictor.

    Without extrapolation there are no workers and no predictor, and the loop never asks.
    """

    workers: Sequence[Any]
    predictor: Any
    config: ExtrapolationSection
    _adapters: dict[int, Ref[Adapter]] = field(default_factory=dict)
    _fits: dict[int, Any] = field(default_factory=dict)
    _seconds: list[tuple[str, Any]] = field(default_factory=list)
    _totals: dict[str, float] = field(default_factory=lambda: {"delta": 0.0, "fit": 0.0})

    @property
    def actors(self) -> list[Any]:
        """All actors behind this port."""
        return [*self.workers, *([] if self.predictor is None else [self.predictor])]

    def observe(self, index: int, step: int, adapter: Ref[Adapter]) -> None:
        """Start the work on a checkpoint; nothing is waited for."""
        if index in self._fits:
            return
        parts = [worker.observe.options(num_returns=2).remote(index, step, adapter.value) for worker in self.workers]
        fit = self.predictor.observe.remote(*(triplets for triplets, _ in parts))
        self._seconds += [("delta", seconds) for _, seconds in parts] + [("fit", fit)]
        self._fits[index], self._adapters[index] = fit, adapter
        self._adapters = {i: ref for i, ref in self._adapters.items() if i >= index - self.config.horizon}

    async def propose(self, index: int) -> Proposal:
        """Wait for checkpoint `index` to be digested, then make the candidates of all methods and alphas."""
        if index not in self._fits:
            raise ExtrapolationError(f"Checkpoint {index} of the trajectory was never observed; observed: {sorted(self._fits)}.")
        started = time.perf_counter()
        await result(self._fits[index], "the predictor")
        waited = time.perf_counter() - started
        names = [(method, alpha) for method in self.config.methods for alpha in self.config.alphas]
        pair = self._adapters[index].value, self._adapters[index - self.config.horizon].value
        head, *refs = self.predictor.propose.options(num_returns=1 + len(names)).remote(names, *pair)
        found: Findings = await result(head, "the predictor")
        candidates = tuple(
            Candidate(candidate_name(method, alpha), method, alpha, Ref(ref), error)
            for (method, alpha), ref, error in zip(names, refs, found.truncation, strict=True)
            if method not in found.abstained
        )
        stats = {"digest_wait_s": waited, **found.stats}
        return Proposal(candidates, found.backtest, found.evidence, found.abstained, stats)

    async def restart(self) -> None:
        """Forget the trajectory everywhere."""
        await self.background_s()
        await asyncio.gather(*(result(actor.restart.remote(), "the trajectory") for actor in self.actors))
        self._adapters, self._fits = {}, {}

    async def background_s(self) -> Mapping[str, float]:
        """Seconds of delta work and fitting, waited for to the last."""
        pending, self._seconds = self._seconds, []
        for kind, ref in pending:
            self._totals[kind] += await result(ref, "the trajectory")
        return dict(self._totals)


DeltaRemote = ray.remote(DeltaActor)
PredictorRemote = ray.remote(PredictorActor)
