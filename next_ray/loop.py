"""The RLVR loop with extrapolation, over Protocols: it runs on Ray in a job and on fakes in a test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from next_ray.alarms import observe
from next_ray.clock import Clock
from next_ray.config import Config
from next_ray.data.splits import Splits
from next_ray.data.stream import Cursor, PromptStream
from next_ray.errors import StoppedError, TrainingError
from next_ray.evaluate.metrics import evaluation
from next_ray.feed import Feed
from next_ray.jump import Extrapolation
from next_ray.learn.advantages import batch_advantages
from next_ray.learn.packing import Versions, plan_update
from next_ray.learn.resampling import num_equal
from next_ray.nonfinite import out_of_numbers
from next_ray.ports import Reporter, Stages
from next_ray.progress import Progress, Schedule
from next_ray.rollback import Rollback
from next_ray.serving import Serving
from next_ray.stopping import Stop
from next_ray.types import (
    Adapter,
    CheckpointKind,
    EvaluationResult,
    LearnerState,
    NewCheckpoint,
    Ref,
    Scores,
    Shard,
    StepRecord,
    TrainedBatch,
    UpdateResult,
)
from next_ray.watch import Fall

Rows = Sequence[Mapping[str, Any]]


class TrainingLoop:
    """One run: trains from `progress` to the planned number of steps, jumping on the way when the gate lets it.

    `current` is the policy in force, an adapter or full weights, None while it is the untouched base.
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        stages: Stages,
        report: Reporter,
        progress: Progress | None = None,
        current: Ref[Adapter] | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.config, self.splits, self.stages, self.report = config, splits, stages, report
        self.progress, self.stop = progress or Progress(), stop or Stop()
        self.schedule = Schedule(config.extrapolation, config.run.steps)
        self.clock = Clock(report)
        self.serving = Serving(config, stages, self.progress, current)
        self.extrapolation = Extrapolation(config, stages, splits.gate, self.schedule, self.progress, self.serving, self.clock, self.stop)
        self.rollback = Rollback(config, stages, self.progress, self.serving, self.clock)
        stream = PromptStream(splits.train, config.run.seed, splits.mixture)
        stream.restore(Cursor(**self.progress.cursor))
        self.feed = Feed(config, stages, stream, self.serving, self.progress, self.clock)
        self._trained: list[dict[str, Any]] = []
        self._samples: list[dict[str, Any]] = []
        self._commit: asyncio.Task[None] | None = None
        self._kept = self._tabled = self.progress.step

    async def run(self) -> None:
        """Train to the last planned step; raises `TrainingError` when that made no update at all.

        When an end is asked for, the step is finished or abandoned and what is done is committed before `StoppedError` comes out.
        """
        try:
            await self.serving.serve()
            await self.rollback.amend_attempt(self.progress)
            await self.after_step()  # the last driver may have ended between a step and what follows it
            while self.progress.step < self.config.run.steps:
                await self.step()
                await self.after_step()
        except StoppedError:
            await self.feed.discard()
            if self.progress.step > self._kept:
                await self.checkpoint()
            raise
        finally:
            await self.feed.discard()
            await self._committed()
        if self.progress.updates == 0:
            raise TrainingError(
                f"{self.config.run.steps} steps made no update: in every group all answers earned the same reward. "
                "Take easier or harder problems (data.train), more samples (rollout.samples_per_prompt) or look at the verifier."
            )

    async def after_step(self) -> None:
        """What is due after the present step and was not done yet: going back, an evaluation, a checkpoint, an attempt to jump."""
        progress = self.progress
        if fall := self.rollback.due():
            await self.roll_back(fall)
        if self._evaluation_due():
            await self.evaluate({f"step {progress.step}": self.serving.current})
            progress.evaluated = progress.step
        is_due = progress.is_reverted or self.schedule.checkpoint_due(progress.step, progress.segment_start)
        if is_due and progress.step > self._kept:
            await self.checkpoint()
        if self.schedule.attempt_due(progress):
            await self.attempt()

    async def step(self) -> None:
        """One RL step: prompts, rollout, reward, advantage, update, hand-over to the engines.

        Raises `TrainingError` after too many steps in a row without finite numbers.
        """
        config, stages, progress, clock = self.config, self.stages, self.progress, self.clock
        started = time.perf_counter()
        async with self.stop.heeded():
            batch = await self.feed.next()
        with clock.phase("plan"):
            advantages = batch_advantages(batch.scores.rewards, batch.shards, config.algorithm, config.rollout.max_response_tokens)
            plan = plan_update(
                batch.shards,
                advantages,
                Versions(progress.version - config.rollout.max_staleness, progress.version),
                num_ranks=config.learner.ranks,
                prompts_per_mini_batch=config.learner.mini_batch_prompts,
                micro_batch_tokens=config.learner.micro_batch_tokens,
                drop_zero_advantage=not config.algorithm.needs_every_sample,
            )
        with clock.phase("update"):
            result = await stages.learner.update(plan)
        of_feed = self.feed.metrics(batch)
        progress.step += 1
        self._take(result)
        progress.cursor = asdict(self.feed.trained(batch))
        self._trained += [
            {"step": progress.step, "place": place, "prompt_id": name} for place, name in zip(batch.places, batch.prompt_ids, strict=True)
        ]
        self._samples += [{"step": progress.step, **asdict(sample)} for sample in batch.scores.samples]
        if self.schedule.observed(progress):
            progress.note(batch.accuracy)
        self.rollback.note(batch.accuracies)
        with clock.phase("load"):
            await self.serving.serve()
        times = clock.take()
        times["total"] = time.perf_counter() - started
        self._report(_step_record(progress.step, progress.version, batch.shards, batch.scores, times, {**result.metrics, **of_feed}))
        if progress.nonfinite >= config.recovery.nonfinite_steps and not self.rollback.due():
            raise await out_of_numbers(stages.archive, progress, TrainedBatch(tuple(batch.shards), batch.scores.rewards, advantages))

    def _take(self, result: UpdateResult) -> None:
        """The policy after an update is a new version, unless nothing was applied: then engines keep what they have."""
        applied, progress = int(result.metrics.get("optimizer_steps", 0)), self.progress
        progress.updates += applied
        if applied or self.serving.current is None:
            progress.version, self.serving.current = progress.version + 1, result.adapter
        if applied:
            progress.nonfinite = 0
        elif result.metrics.get("skipped_nonfinite", 0):
            progress.nonfinite += 1

    def _report(self, record: StepRecord) -> None:
        """Report a step, and what is alarming about the last ones."""
        found = observe(self.progress.alarms, record, self.config.recovery.alarms)
        self.progress.alarms = found.state
        self.report.step(replace(record, metrics={**record.metrics, "alarms": float(found.num_in_force)}))
        for alarm in found.alarms:
            self.report.alarm(record.step, alarm)

    async def checkpoint(self) -> None:
        """Snapshot the learner; storing it and observing the delta go on in the background."""
        await self._committed()
        with self.clock.phase("checkpoint"):
            state = await self.stages.learner.snapshot()
        self._kept = self.progress.step
        tables = {"metrics": self.report.take_rows(), "prompts": self._trained, "samples": self._samples}
        at, self._trained, self._samples = replace(self.progress), [], []
        self._commit = asyncio.create_task(self._store_and_observe(state, self.serving.adapter, at, tables))

    async def _store_and_observe(self, state: Ref[LearnerState], adapter: Ref[Adapter], at: Progress, tables: Mapping[str, Rows]) -> None:
        progress, archive = self.progress, self.stages.archive
        index = self.schedule.index(at.step, at.segment_start)
        observed = index is not None and self.schedule.observed(at)
        for name, rows in tables.items():  # what was evaluated after a step whose rows are committed is in the local log alone
            await archive.table(name, self._tabled + 1, at.step, [row for row in rows if row["step"] > self._tabled])
        self._tabled = at.step
        kind = CheckpointKind.REVERTED if at.is_reverted else CheckpointKind.TRAINED
        new = NewCheckpoint(at.step, kind, state, at.parents(), at.to_json(), tuple(at.kept()))
        checkpoint_id = await archive.commit(new)
        progress.last_checkpoint = checkpoint_id
        await self.rollback.amend_attempt(at)
        if observed and index is not None:
            progress.trajectory = [*progress.trajectory, checkpoint_id]
            point = state if self.serving.is_full else adapter
            self.stages.trajectory.observe(index, at.step, point, self.schedule.accuracy(at, index), checkpoint_id)

    async def _committed(self) -> None:
        """Wait for the checkpoint under way; its failure is the run's failure."""
        if self._commit is not None:
            commit, self._commit = self._commit, None
            await commit

    async def attempt(self) -> None:
        """Try to jump from the checkpoint under way."""
        with self.clock.phase("wait for commit"):
            await self._committed()
        record = await self.extrapolation.attempt()
        if record.method is not None:
            await self.feed.discard()  # the policy that sampled ahead is not the one that goes on
        self.report.jump(record)

    async def roll_back(self, fall: Fall) -> None:
        """Take the last jump back; what was sampled ahead goes, and the checkpoint of this step will be that which was gone back to."""
        with self.clock.phase("wait for commit"):
            await self._committed()
        await self.feed.discard()
        self.report.rollback(await self.rollback.go_back(fall))

    async def evaluate(self, models: Mapping[str, Ref[Adapter] | None]) -> list[EvaluationResult]:
        """Evaluate models (None: the base) side by side on the test prompts, then serve the adapter in force again."""
        samples, temperature = self.config.evaluation.samples, self.config.evaluation.temperature
        with self.clock.phase("evaluate"):
            async with self.stop.heeded():
                matrices = await self.serving.compare(models, self.splits.test, samples, temperature, samples)
            await self.serving.serve()
        results = []
        for label, matrix in matrices.items():
            result = evaluation(label, matrix, temperature, seed=self.config.run.seed)
            self.report.evaluation(self.progress.step, result)
            results.append(result)
        return results

    async def rebuild_trajectory(self) -> None:
        """After a resume: let delta workers and predictor see the stored checkpoints again, in order."""
        if not self.schedule.observed(self.progress):
            return
        stored = self.progress.trajectory
        latest = self.progress.last_checkpoint
        for index, checkpoint_id in enumerate(stored, start=1):
            step = self.progress.segment_start + index * self.config.extrapolation.interval_steps
            is_there = checkpoint_id == latest and not self.serving.is_full  # engines take full weights rounded
            adapter = self.serving.adapter if is_there else await self.stages.archive.adapter(checkpoint_id)
            self.stages.trajectory.observe(index, step, adapter, self.schedule.accuracy(self.progress, index), checkpoint_id)

    async def finish(self) -> list[EvaluationResult]:
        """Evaluate base, both ends of the first jump (when there was one) and the final model side by side."""
        models: dict[str, Ref[Adapter] | None] = {"base": None}
        if self.progress.jumps:
            jump = self.progress.jumps[0]
            models[f"before the jump (step {jump['step']})"] = await self.stages.archive.adapter(jump["from"])
            models[f"jumped ({jump['candidate']})"] = await self.stages.archive.adapter(jump["to"])
        models["final"] = self.serving.adapter
        return await self.evaluate(models)

    def _evaluation_due(self) -> bool:
        every, step = self.config.evaluation.every_steps, self.progress.step
        return every is not None and step % every == 0 and self.progress.evaluated < step < self.config.run.steps


def _step_record(
    step: int, version: int, shards: Sequence[Shard], scores: Scores, times: Mapping[str, float], metrics: Mapping[str, float]
) -> StepRecord:
    """What is logged of a step: rewards, lengths, verdicts and the learner's own numbers."""
    rewards = [r for group in scores.rewards for r in group]
    sizes = [size for shard in shards for size in shard.sizes]
    lengths = [n for size in sizes for n in size.completion_tokens]
    cut = [t for size in sizes for t in size.truncated]
    own = {
        "completion_tokens_mean": sum(lengths) / len(lengths),
        "truncated_fraction": sum(cut) / len(cut),
        "equal_reward_groups": num_equal(scores.rewards) / len(scores.rewards),
        **{f"verdict_{name}": float(count) for name, count in scores.verdicts.items()},
    }
    tokens = sum(lengths) + sum(size.prompt_tokens * len(size.completion_tokens) for size in sizes)
    return StepRecord(step, version, sum(rewards) / len(rewards), tokens, times, {**own, **metrics}, scores.samples)
