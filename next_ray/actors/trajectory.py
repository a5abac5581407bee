"""Delta workers and the predictor: everything between a committed checkpoint and the candidates of a jump."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from next_ray.actors.cluster import result
from next_ray.actors.observed import RunActor
from next_ray.actors.parts import Reader
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.checkpoints.models import open_model_folder
from next_ray.config import ExtrapolationSection
from next_ray.delta.dense_window import DenseWindow
from next_ray.delta.sharding import merge_shards
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.delta.window import DeltaWindow
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.methods.next import from_last_along
from next_ray.extrapolate.plan import Fitted, Setting
from next_ray.extrapolate.proposals import WINDOWED, candidate_name, make_candidates
from next_ray.predict.predictor import TrajectoryPredictor
from next_ray.types import Adapter, BacktestScore, Candidate, CheckpointTriplets, LoraFactors, Proposal, Ref, Triplet

BACKGROUND_NICENESS = 10
"""On a CPU machine trajectory work yields to rollout and update."""


@dataclass(frozen=True)
class Seen:
    """What is known of an observed checkpoint beside its adapter: index (1-based), training step, and accuracy where there is one."""

    index: int
    step: int
    accuracy: float | None


@dataclass(frozen=True)
class Findings:
    """What the predictor says beside the candidates: abstentions, back test, truncation error per candidate, fit statistics."""

    abstained: Mapping[str, str]
    backtest: tuple[BacktestScore, ...]
    evidence: str
    truncation: Sequence[float]
    stats: Mapping[str, float]


class DeltaActor(RunActor):
    """Computes the triplets of its shard of modules, on a device of torch or (None) by numpy; holds the last k+1 checkpoints' factors."""

    def __init__(self, horizon: int, modules: Sequence[str], device: str | None) -> None:
        os.nice(BACKGROUND_NICENESS)
        self._horizon, self._modules, self._device = horizon, tuple(modules), device
        self.restart()

    def restart(self) -> None:
        """Forget the trajectory."""
        self._window = DeltaWindow(self._horizon, self._modules, self._device)

    def observe(self, index: int, step: int, adapter: Adapter) -> tuple[CheckpointTriplets, float]:
        """Triplets of checkpoint `index`, and the seconds they took."""
        started = time.perf_counter()
        return self._window.observe(index, step, adapter), time.perf_counter() - started


class DenseDeltaActor(RunActor):
    """The same where all weights are trained: holds references to the last k+1 checkpoints and reads them module by module."""

    def __init__(self, horizon: int, shapes: Mapping[str, tuple[int, int]], device: str | None, place: ModelPlace, files: Any) -> None:
        os.nice(BACKGROUND_NICENESS)
        self._horizon, self._shapes, self._device = horizon, shapes, device or "cpu"
        self._base = open_model_folder(Path(localize(place, files)))
        self.restart()

    def restart(self) -> None:
        """Forget the trajectory."""
        self._window = DenseWindow(self._horizon, self._shapes, self._device)
        self._reader = Reader()

    def observe(self, index: int, step: int, policy: Any) -> tuple[CheckpointTriplets, float]:
        """Triplets of checkpoint `index`, a learner state or references to float32 weights, and the seconds they took."""
        started = time.perf_counter()
        self._reader.hold(index, policy)
        triplets = self._window.observe(index, step, self._read)
        self._reader.drop_before(index - self._horizon + 1)
        return triplets, time.perf_counter() - started

    def _read(self, index: int, name: str) -> np.ndarray:
        return self._reader.read(index, name) if index else self._base.read(name)


class PredictorActor(RunActor):
    """Holds the predictor; observes checkpoints in order and turns the last ones into candidates."""

    def __init__(self, config: ExtrapolationSection, seed: int) -> None:
        os.nice(BACKGROUND_NICENESS)
        self._config, self._seed = config, seed
        self.restart()

    def restart(self) -> None:
        """Forget the trajectory and the fit."""
        self._predictor = TrajectoryPredictor(self._config.predictor, self._config.horizon, self._seed, self._config.abstain)
        self._observed: dict[int, CheckpointTriplets] = {}

    def observe(self, *parts: CheckpointTriplets) -> float:
        """Join the workers' shards, back-test, fit; returns the seconds that took."""
        started = time.perf_counter()
        triplets = merge_shards(parts)
        self._predictor.observe(triplets)
        if any(method == "alpharl" for method, _ in self._config.proposals):
            self._observed[triplets.index] = triplets
        return time.perf_counter() - started

    def propose(self, wanted: Sequence[tuple[str, float]], seen: Sequence[Seen], *adapters: Adapter) -> tuple[Any, ...]:
        """Findings, then one adapter (or None) per wanted (method, alpha); `adapters` are the last checkpoints, described by `seen`."""
        trajectory = self._trajectory(seen, adapters)
        setting = Setting(self._config.horizon, self._seed)
        fitted, reason = self._next(trajectory) if any(method == "next" for method, _ in wanted) else ({}, None)
        offered = [(method, alpha) for method, alpha in wanted if method != "next" or reason is None]
        made = make_candidates(offered, trajectory, setting, fitted, rank=2 * max(f.rank for f in adapters[-1].values()))
        abstained = {**made.abstained, **({} if reason is None else {"next": reason})}
        by_name = dict(zip(offered, made.adapters, strict=True))
        found = [by_name.get(name) for name in wanted]
        truncation = [0.0 if one is None else one.truncation_error for one in found]
        findings = Findings(abstained, self._predictor.backtest, self._predictor.evidence, truncation, self._predictor.stats)
        return (findings, *(None if one is None else one.adapter for one in found))

    def propose_beside(self, wanted: Sequence[tuple[str, float]]) -> tuple[Any, ...]:
        """`propose` where all weights are trained: NExt's steps alone, adapters of rank 1 that go beside the last checkpoint."""
        reason = self._predictor.abstention
        steps: Mapping[str, Triplet] = {}
        if reason is None:
            try:
                steps = self._predictor.predict()
            except ExtrapolationError as error:
                reason = str(error)
        findings = Findings(
            {} if reason is None else {"next": reason},
            self._predictor.backtest,
            self._predictor.evidence,
            [0.0] * len(wanted),
            self._predictor.stats,
        )
        return (findings, *(None if reason else as_adapter(steps, alpha) for _, alpha in wanted))

    def _trajectory(self, seen: Sequence[Seen], adapters: Sequence[Adapter]) -> WeightTrajectory:
        """With the workers' triplets where all of them are at hand, so that nothing is computed twice."""
        known = [one.accuracy for one in seen if one.accuracy is not None]
        trajectory = from_adapters([one.step for one in seen], adapters, known if len(known) == len(seen) else None)
        if sorted(self._observed) != [one.index for one in seen]:
            return trajectory
        modules = {name: [self._observed[one.index].modules[name] for one in seen] for name in trajectory.modules}
        return replace(trajectory, computed={self._config.horizon: modules})

    def _next(self, trajectory: WeightTrajectory) -> tuple[dict[str, Fitted], str | None]:
        """What NExt has learned beside training, or why it says nothing."""
        if self._predictor.abstention is not None:
            return {}, self._predictor.abstention
        try:
            return {"next": from_last_along(trajectory, self._predictor.predict(), {})}, None
        except ExtrapolationError as error:
            return {}, str(error)


@dataclass
class RayTrajectory:
    """The `Trajectory` port: fans checkpoints out to the delta workers and their triplets into the predictor.

    Without extrapolation there are no workers and no predictor, and the loop never asks. With `beside` all weights are trained, and
    candidates are adapters that go beside the last checkpoint's.
    """

    workers: Sequence[Any]
    predictor: Any
    config: ExtrapolationSection
    beside: bool = False
    _seen: dict[int, tuple[Seen, Ref[Adapter]]] = field(default_factory=dict)
    _parts: dict[int, list[Any]] = field(default_factory=dict)
    _fits: dict[int, Any] = field(default_factory=dict)
    _seconds: list[tuple[str, Any]] = field(default_factory=list)
    _totals: dict[str, float] = field(default_factory=lambda: {"delta": 0.0, "fit": 0.0})

    @property
    def actors(self) -> list[Any]:
        """All actors behind this port."""
        return [*self.workers, *([] if self.predictor is None else [self.predictor])]

    def observe(self, index: int, step: int, policy: Ref[Any], accuracy: float | None) -> None:
        """Start the work on a checkpoint; nothing is waited for."""
        if index in self._fits:
            return
        parts = [worker.observe.options(num_returns=2).remote(index, step, policy.value) for worker in self.workers]
        fit = self.predictor.observe.remote(*(triplets for triplets, _ in parts))
        self._seconds += [("delta", seconds) for _, seconds in parts] + [("fit", fit)]
        self._parts[index], self._fits[index] = [seconds for _, seconds in parts], fit
        if self.beside:  # the workers hold what they still need
            return
        self._seen[index] = (Seen(index, step, accuracy), policy)
        if all(method in WINDOWED for method, _ in self.config.proposals):
            self._seen = {i: seen for i, seen in self._seen.items() if i >= index - self.config.horizon}

    async def propose(self, index: int) -> Proposal:
        """Wait for checkpoint `index` to be digested, then make the candidates of all methods and alphas."""
        if index not in self._fits:
            raise ExtrapolationError(f"Checkpoint {index} of the trajectory was never observed; observed: {sorted(self._fits)}.")
        started = time.perf_counter()
        for i, seconds in enumerate(self._parts[index]):  # the predictor waits for them, and who hangs shall be named
            await result(seconds, f"delta worker {i}")
        await result(self._fits[index], "the predictor")
        waited = time.perf_counter() - started
        names = self.config.proposals
        seen, adapters = [one for one, _ in self._seen.values()], [ref.value for _, ref in self._seen.values()]
        num_returns = 1 + len(names)
        head, *refs = (
            self.predictor.propose_beside.options(num_returns=num_returns).remote(names)
            if self.beside
            else self.predictor.propose.options(num_returns=num_returns).remote(names, seen, *adapters)
        )
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
        self._seen, self._parts, self._fits = {}, {}, {}

    async def background_s(self) -> Mapping[str, float]:
        """Seconds of delta work and fitting, waited for to the last."""
        pending, self._seconds = self._seconds, []
        for kind, ref in pending:
            self._totals[kind] += await result(ref, "the trajectory")
        return dict(self._totals)


def as_adapter(steps: Mapping[str, Triplet], alpha: float) -> dict[str, LoraFactors]:
    """alpha sigma u v^T of every module as an adapter of rank 1 (NExt, arXiv 2604.11446, eq. 10)."""
    return {
        name: LoraFactors(a=step.v[None].astype(np.float32), b=(alpha * step.sigma * step.u)[:, None].astype(np.float32), scale=1.0)
        for name, step in steps.items()
    }


DeltaRemote = ray.remote(DeltaActor)
DenseDeltaRemote = ray.remote(DenseDeltaActor)
PredictorRemote = ray.remote(PredictorActor)
