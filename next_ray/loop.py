"""The RLVR loop with extrapolation, over Protocols: it runs on Ray in a job and on fakes in a test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from next_ray.config import Config
from next_ray.data.splits import Splits
from next_ray.data.stream import Cursor, PromptStream
from next_ray.errors import TrainingError
from next_ray.evaluate.metrics import evaluation
from next_ray.extrapolate.gate import decide
from next_ray.learn.advantages import group_advantages
from next_ray.learn.packing import plan_update
from next_ray.ports import Archive, Learner, Reporter, Rewards, Rollout, Trajectory
from next_ray.progress import Progress, Schedule, derive_seed
from next_ray.types import (
    BASE_VERSION,
    Adapter,
    Candidate,
    CheckpointKind,
    EvaluationResult,
    GateDecision,
    JumpRecord,
    LearnerState,
    Prompt,
    Ref,
    RolloutRequest,
    Sampling,
    Scores,
    Shard,
    StepRecord,
)

FIRST_PASSING_VERSION = 1 << 30
"""Versions from here on name adapters that are served for one evaluation only; training versions stay far below."""


@dataclass(frozen=True)
class Stages:
    """The stages of the loop, as ports."""

    rollout: Rollout
    rewards: Rewards
    learner: Learner
    archive: Archive
    trajectory: Trajectory


class Clock:
    """Seconds on the critical path, by phase, of the present step."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self.times: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what runs inside to `name`."""
        self._report.phase(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The times since the last call."""
        times, self.times = self.times, {}
        return times


@dataclass
class TrainingLoop:
    """One run: trains from `progress` to the planned number of steps, jumping on the way when the gate lets it.

    `current` is the adapter in force, None while it is the untouched base.
    """

    config: Config
    splits: Splits
    stages: Stages
    report: Reporter
    progress: Progress = field(default_factory=Progress)
    current: Ref[Adapter] | None = None

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.config.extrapolation, self.config.run.steps)
        self.clock = Clock(self.report)
        self.stream = PromptStream(self.splits.train, self.config.run.seed)
        self.stream.restore(Cursor(**self.progress.cursor))
        self._commit: asyncio.Task[None] | None = None
        self._served: set[int] = set()
        self._tabled = self.progress.step

    async def run(self) -> None:
        """Train to the last planned step; raises `TrainingError` when that made no update at all."""
        try:
            await self._serve()
            if self.schedule.attempt_due(self.progress):  # the last driver died between a checkpoint and its jump
                await self.attempt()
            while self.progress.step < self.config.run.steps:
                await self.step()
                if self._evaluation_due():
                    await self.evaluate({f"step {self.progress.step}": self.current})
                if self.schedule.checkpoint_due(self.progress.step, self.progress.segment_start):
                    await self.checkpoint()
                if self.schedule.attempt_due(self.progress):
                    await self.attempt()
        finally:
            await self._committed()
        if self.progress.updates == 0:
            raise TrainingError(
                f"{self.config.run.steps} steps made no update: in every group all answers earned the same reward. "
                "Take easier or harder problems (data.train), more samples (rollout.samples_per_prompt) or look at the verifier."
            )

    async def step(self) -> None:
        """One RL step: prompts, rollout, reward, advantage, update, hand-over to the engines."""
        config, stages, progress, clock = self.config, self.stages, self.progress, self.clock
        started = time.perf_counter()
        step = progress.step + 1
        requests = self._requests(
            self.stream.next(config.rollout.prompts_per_step), progress.version, config.rollout.samples_per_prompt, "train", step
        )
        with clock.phase("rollout"):
            shards = await stages.rollout.generate(requests, self._sampling(config.rollout.temperature))
        with clock.phase("reward"):
            scores = await stages.rewards.score(shards, config.report.samples)
        with clock.phase("plan"):
            plan = plan_update(
                shards,
                group_advantages(scores.rewards, config.algorithm),
                expected_version=progress.version,
                num_ranks=config.learner.ranks,
                prompts_per_mini_batch=config.learner.mini_batch_prompts,
                micro_batch_tokens=config.learner.micro_batch_tokens,
                drop_zero_advantage=config.algorithm.kl_coef == 0.0,
            )
        with clock.phase("update"):
            result = await stages.learner.update(plan)
        progress.step, progress.version, self.current = step, progress.version + 1, result.adapter
        progress.updates += int(result.metrics.get("optimizer_steps", 0))
        progress.cursor = self.stream.cursor.to_json()
        with clock.phase("load"):
            await self._serve()
        times = clock.take()
        times["total"] = time.perf_counter() - started
        self.report.step(_step_record(step, progress.version, shards, scores, times, result.metrics))

    async def checkpoint(self) -> None:
        """Snapshot the learner; storing it and observing the delta go on in the background."""
        await self._committed()
        with self.clock.phase("checkpoint"):
            state = await self.stages.learner.snapshot()
        self._commit = asyncio.create_task(self._store_and_observe(state, self._adapter(), replace(self.progress), self.report.take_rows()))

    async def _store_and_observe(self, state: Ref[LearnerState], adapter: Ref[Adapter], at: Progress, rows: list[dict[str, Any]]) -> None:
        progress, archive = self.progress, self.stages.archive
        index = self.schedule.index(at.step, at.segment_start)
        observed = index is not None and self.schedule.observed(at)
        await archive.table("metrics", self._tabled + 1, at.step, rows)
        self._tabled = at.step
        parents = [at.last_checkpoint] if at.last_checkpoint else []
        checkpoint_id = await archive.commit(at.step, CheckpointKind.TRAINED, state, parents, at.to_json(), at.kept())
        progress.last_checkpoint = checkpoint_id
        if observed and index is not None:
            progress.trajectory = [*progress.trajectory, checkpoint_id]
            self.stages.trajectory.observe(index, at.step, adapter)

    async def _committed(self) -> None:
        """Wait for the checkpoint under way; its failure is the run's failure."""
        if self._commit is not None:
            commit, self._commit = self._commit, None
            await commit

    async def attempt(self) -> None:
        """Predict, put the candidates side by side with the last checkpoint, and jump if the gate accepts one."""
        progress, stages = self.progress, self.stages
        with self.clock.phase("wait for commit"):
            await self._committed()
        index = self.schedule.index(progress.step, progress.segment_start)
        assert index is not None
        with self.clock.phase("candidates"):
            proposal = await stages.trajectory.propose(index)
        progress.tried = progress.step
        with self.clock.phase("gate"):
            decision = await self._gate(proposal.candidates)
        chosen = next((c for c in proposal.candidates if c.name == decision.accepted), None)
        stats = dict(proposal.stats)
        if chosen is None:
            with self.clock.phase("load"):
                await self._serve()
        else:
            with self.clock.phase("adopt"):
                stats["truncation_error"] = await self._jump(chosen)
        record = JumpRecord(
            step=progress.step,
            decision=decision,
            backtest=proposal.backtest,
            evidence=proposal.evidence,
            abstained=proposal.abstained,
            times=self.clock.take(),
            stats=stats,
            method=chosen.method if chosen else None,
            alpha=chosen.alpha if chosen else None,
        )
        self.report.jump(record)

    async def _gate(self, candidates: Sequence[Candidate]) -> GateDecision:
        """Judge the candidates against the adapter in force on the gate prompts."""
        gate = self.config.extrapolation.gate
        if not candidates:
            return GateDecision(None, "No extrapolator proposed anything.", float("nan"), ())
        if gate.kind == "none":
            return decide((), {c.name: () for c in candidates}, gate, seed=0)
        versions = {c.name: FIRST_PASSING_VERSION + i for i, c in enumerate(candidates)}
        await self._serve({versions[c.name]: c.adapter for c in candidates})
        names = {"": self.progress.version, **versions}
        matrices = await self._sample_accuracy(
            self.splits.gate, names, gate.samples, self.config.rollout.temperature, "gate", self.progress.step
        )
        baseline = matrices.pop("")
        return decide(baseline, matrices, gate, seed=derive_seed(self.config.run.seed, "gate-test", self.progress.step))

    async def _jump(self, chosen: Candidate) -> float:
        """Adopt the candidate in learner and engines and commit it; returns the recompression's truncation error."""
        progress, stages = self.progress, self.stages
        before = progress.last_checkpoint
        result = await stages.learner.adopt(chosen.adapter)
        progress.version, self.current = progress.version + 1, result.adapter
        await self._serve()
        jump = {"step": progress.step, "candidate": chosen.name, "method": chosen.method, "alpha": chosen.alpha, "from": before}
        jump |= {"parents": list(progress.trajectory), "moments": self.config.extrapolation.after_jump.moments}
        progress.segment_start, progress.trajectory = progress.step, []
        progress.jumps = [*progress.jumps, jump]
        await stages.trajectory.restart()
        state = await stages.learner.snapshot()
        parents = [before] if before else []
        jumped = await stages.archive.commit(progress.step, CheckpointKind.JUMPED, state, parents, progress.to_json(), progress.kept())
        progress.last_checkpoint = jump["to"] = jumped
        return result.metrics.get("truncation_error", 0.0)

    async def evaluate(self, models: Mapping[str, Ref[Adapter] | None]) -> list[EvaluationResult]:
        """Evaluate models (None: the base) side by side on the test prompts, then serve the adapter in force again."""
        config = self.config
        versions = {label: self._version_of(ref, FIRST_PASSING_VERSION + i) for i, (label, ref) in enumerate(models.items())}
        with self.clock.phase("evaluate"):
            await self._serve({versions[label]: ref for label, ref in models.items() if ref is not None})
            matrices = await self._sample_accuracy(
                self.splits.test, versions, config.evaluation.samples, config.evaluation.temperature, "test", config.evaluation.samples
            )
            await self._serve()
        results = []
        for label, matrix in matrices.items():
            result = evaluation(label, matrix, config.evaluation.temperature, seed=config.run.seed)
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
            adapter = self._adapter() if checkpoint_id == latest else await self.stages.archive.adapter(checkpoint_id)
            self.stages.trajectory.observe(index, step, adapter)

    async def finish(self) -> list[EvaluationResult]:
        """Evaluate base, both ends of the first jump (when there was one) and the final model side by side."""
        models: dict[str, Ref[Adapter] | None] = {"base": None}
        if self.progress.jumps:
            jump = self.progress.jumps[0]
            models[f"before the jump (step {jump['step']})"] = await self.stages.archive.adapter(jump["from"])
            models[f"jumped ({jump['candidate']})"] = await self.stages.archive.adapter(jump["to"])
        models["final"] = self._adapter()
        return await self.evaluate(models)

    async def _sample_accuracy(
        self, prompts: Sequence[Prompt], versions: Mapping[str, int], num_samples: int, temperature: float, purpose: str, salt: int
    ) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Rewards [P][S] of each version on the same prompts with the same seeds."""
        requests = [r for version in versions.values() for r in self._requests(prompts, version, num_samples, purpose, salt)]
        scores = await self.stages.rewards.score(await self.stages.rollout.generate(requests, self._sampling(temperature)))
        num = len(prompts)
        return {label: scores.rewards[i * num : (i + 1) * num] for i, label in enumerate(versions)}

    def _version_of(self, adapter: Ref[Adapter] | None, passing: int) -> int:
        if adapter is None:
            return BASE_VERSION
        return self.progress.version if adapter is self.current else passing

    async def _serve(self, passing: Mapping[int, Ref[Adapter]] | None = None) -> None:
        """Make the engines serve the adapter in force and the passing ones, and nothing else."""
        adapters = dict(passing or {})
        if self.current is not None:
            adapters[self.progress.version] = self.current
        if set(adapters) != self._served:
            await self.stages.rollout.load(adapters)
            self._served = set(adapters)

    def _requests(self, prompts: Sequence[Prompt], version: int, num_samples: int, purpose: str, salt: int) -> list[RolloutRequest]:
        seed = self.config.run.seed
        return [RolloutRequest(p, version, derive_seed(seed, purpose, salt, i), num_samples) for i, p in enumerate(prompts)]

    def _sampling(self, temperature: float) -> Sampling:
        return Sampling(temperature=temperature, top_p=self.config.rollout.top_p, max_tokens=self.config.rollout.max_response_tokens)

    def _adapter(self) -> Ref[Adapter]:
        assert self.current is not None, "no update was made yet"
        return self.current

    def _evaluation_due(self) -> bool:
        every = self.config.evaluation.every_steps
        return every is not None and self.progress.step % every == 0 and self.progress.step < self.config.run.steps


def _step_record(
    step: int, version: int, shards: Sequence[Shard], scores: Scores, times: Mapping[str, float], metrics: Mapping[str, float]
) -> StepRecord:
    """What is logged of a step: rewards, lengths, verdicts and the learner's own numbers."""
    rewards = [r for group in scores.rewards for r in group]
    sizes = [size for shard in shards for size in shard.sizes]
    lengths = [n for size in sizes for n in size.completion_tokens]
    cut = [t for size in sizes for t in size.truncated]
    solved = sum(len(set(group)) == 1 for group in scores.rewards)
    own = {
        "completion_tokens_mean": sum(lengths) / len(lengths),
        "truncated_fraction": sum(cut) / len(cut),
        "equal_reward_groups": solved / len(scores.rewards),
        **{f"verdict_{name}": float(count) for name, count in scores.verdicts.items()},
    }
    tokens = sum(lengths) + sum(size.prompt_tokens * len(size.completion_tokens) for size in sizes)
    return StepRecord(step, version, sum(rewards) / len(rewards), tokens, times, {**own, **metrics}, scores.samples)
