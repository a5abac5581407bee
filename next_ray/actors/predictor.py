"""The predictor: from the triplets of the checkpoints seen so far to candidates."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from next_ray.actors.deltas import BACKGROUND_NICENESS
from next_ray.actors.metrics import count_seconds, show_trajectory
from next_ray.actors.observed import RunActor
from next_ray.config import ExtrapolationSection
from next_ray.delta.sharding import merge_shards
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.methods.next import from_last_along
from next_ray.extrapolate.plan import Fitted, Setting
from next_ray.extrapolate.proposals import make_candidates
from next_ray.predict.predictor import TrajectoryPredictor
from next_ray.types import Adapter, BacktestScore, CheckpointTriplets, LoraFactors, Triplet


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
        seconds = time.perf_counter() - started
        show_trajectory(triplets)
        count_seconds("next_ray_fit_seconds", seconds)
        return seconds

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


def as_adapter(steps: Mapping[str, Triplet], alpha: float) -> dict[str, LoraFactors]:
    """alpha sigma u v^T of every module as an adapter of rank 1 (NExt, arXiv 2604.11446, eq. 10)."""
    return {
        name: LoraFactors(a=step.v[None].astype(np.float32), b=(alpha * step.sigma * step.u)[:, None].astype(np.float32), scale=1.0)
        for name, step in steps.items()
    }


PredictorRemote = ray.remote(PredictorActor)
