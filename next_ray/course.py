"""A run from its last committed checkpoint to its end: begun once, and begun again whenever the learners are lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from next_ray.actors.draining import Drains
from next_ray.actors.launch import Launched
from next_ray.actors.learners import LEARNERS
from next_ray.actors.probing import probe
from next_ray.actors.seats import backoff_s
from next_ray.config import Config
from next_ray.data.splits import Splits
from next_ray.errors import ActorLostError, LearnerLostError, StoppedError
from next_ray.loop import TrainingLoop
from next_ray.ports import Reporter, Stages
from next_ray.progress import progress_at
from next_ray.report.report import Report
from next_ray.stopping import Stop
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import BASE_VERSION, Adapter, EvaluationResult, Fault, FaultEvent, Manifest, Ref


@dataclass(frozen=True)
class Course:
    """What every beginning of a run's loop has in common."""

    config: Config
    splits: Splits
    store: CheckpointStore
    launched: Launched
    report: Report
    reporters: Reporter
    stop: Stop
    resume: str

    async def run(self, latest: Manifest | None) -> tuple[list[EvaluationResult], Sequence[Mapping[str, Any]]]:
        """Train to the end and evaluate; returns the evaluations and the accepted jumps.

        Raises `ActorLostError` when the learners were lost more than `recovery.learner_restarts` times without a new checkpoint in between,
        `StoppedError` when an end was asked for.
        """
        launched, recovery = self.launched, self.config.recovery
        drains = Drains(LEARNERS, list(launched.rollout.seats), launched.groups, self.resume)
        watch = asyncio.create_task(drains.watch(self.stop, recovery.drain_poll_s, self.report.say))
        try:
            return await self._run(latest)
        finally:
            watch.cancel()

    async def _run(self, latest: Manifest | None) -> tuple[list[EvaluationResult], Sequence[Mapping[str, Any]]]:
        policy, failures, is_probed = self.launched.initial, 0, False
        while True:
            loop = self._loop(latest, policy)
            try:
                if not is_probed:
                    await self._probe(policy)
                    is_probed = True
                if latest:
                    await loop.rebuild_trajectory()
                if loop.progress.step < self.config.run.steps:  # else the last driver ended before its final evaluation
                    await loop.run()
                return await loop.finish(), loop.progress.jumps
            except StoppedError as stop:
                if not stop.goes_on:
                    raise
                self.stop.forget()
                reason: Exception = stop
            except ActorLostError as error:
                reason = error
            before, latest = latest, await asyncio.to_thread(self.store.latest)
            failures = (failures if latest == before else 0) + isinstance(reason, ActorLostError)
            policy = await self._regrouped(latest, reason, failures)

    def _loop(self, latest: Manifest | None, policy: Ref[Adapter]) -> TrainingLoop:
        launched = self.launched
        stages = Stages(launched.rollout, launched.rewards, launched.learner, launched.archive, launched.trajectory)
        progress = progress_at(latest, self.config)
        return TrainingLoop(self.config, self.splits, stages, self.reporters, progress, policy if latest else None, self.stop)

    async def _regrouped(self, latest: Manifest | None, reason: Exception, failures: int) -> Ref[Adapter]:
        """The gang anew from `latest`, the trajectory and the logs as they were then."""
        started = time.monotonic()
        self.reporters.fault(Fault(LEARNERS, FaultEvent.LOST, str(reason)))
        if failures > self.config.recovery.learner_restarts:
            raise reason
        await asyncio.sleep(backoff_s(failures, self.config.recovery.backoff_s))
        policy = await self.launched.regroup(latest.id if latest else None)
        if latest is None and self.config.learner.mode == "full":
            await self.launched.rollout.reload(BASE_VERSION, None)
        await self.launched.trajectory.restart()
        progress = progress_at(latest, self.config)
        stored = await asyncio.to_thread(self.store.read_table, "metrics", progress.step) if latest else []
        self.report.resume(progress.step, stored, progress.jumps)
        where = f"step {progress.step} ({latest.id})" if latest else "the beginning"
        self.reporters.fault(Fault(LEARNERS, FaultEvent.BACK, f"training goes on from {where}", time.monotonic() - started))
        return policy

    async def _probe(self, policy: Ref[Adapter]) -> None:
        """Compare engines and learner before anything is trained; an engine that dies over it is compared when it is back."""
        self.report.phase("probing")
        prompts = self.splits.gate[:4]
        try:
            found = await probe(self.launched, policy, prompts, self.config)
        except LearnerLostError:
            raise
        except ActorLostError:
            found = await probe(self.launched, policy, prompts, self.config)
        self.report.probe(found)
