"""The batches a learner trains on: sampled when they are asked for, or ahead, beside its updates."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from next_ray.clock import Clock
from next_ray.config import Config
from next_ray.data.stream import Cursor, PromptStream
from next_ray.errors import ObjectGoneError
from next_ray.learn.resampling import num_equal, pick_groups
from next_ray.ports import Stages
from next_ray.progress import Progress
from next_ray.serving import Serving
from next_ray.types import Prompt, Scores, Shard


@dataclass(frozen=True)
class Batch:
    """Scored completions of one RL step, of the prompts at the positions `places` of the data stream, whose ids are `prompt_ids`.

    `drawn` are the rewards of all groups that were sampled for it, those that dynamic sampling replaced included; `accuracy` is the share
    of correct completions among them.
    """

    shards: Sequence[Shard]
    scores: Scores
    places: Sequence[int]
    prompt_ids: Sequence[str]
    drawn: Sequence[Sequence[float]]
    accuracy: float

    @property
    def oldest_version(self) -> int:
        """The oldest adapter version that a completion was sampled from."""
        return min(version for shard in self.shards for size in shard.sizes for version in size.versions)


@dataclass(frozen=True)
class _Ahead:
    """A batch that is being sampled: its task, and the position of its first prompt in the data stream."""

    task: asyncio.Task[Batch]
    start: int


@dataclass
class Feed:
    """Draws, samples and scores batches.

    With `rollout.max_staleness` n every batch is begun with the adapter that was in force n updates before it is trained on, so
    that engines and learners work at the same time: up to n + 1 batches are with the engines at once, which take batches and
    hand-overs in the order in which they were asked for. A batch that was sampled ahead and never trained on is dropped, by the
    engines too, counted in `dropped`, and its prompts are drawn again. What dynamic sampling draws for one batch lies behind the first
    prompts of those begun meanwhile; `trained` keeps track of it.
    """

    config: Config
    stages: Stages
    stream: PromptStream
    serving: Serving
    progress: Progress
    clock: Clock
    dropped: int = 0
    _ahead: deque[_Ahead] = field(default_factory=deque)

    async def next(self) -> Batch:
        """The next batch to train on. Those behind it are begun as far ahead as allowed, but never beyond the last step."""
        if not self._ahead:
            self._begin(self.progress.step + 1)
        with self._waiting():
            batch = await self._ahead[0].task
        self._ahead.popleft()
        first = self.progress.step + 2 + len(self._ahead)
        last = min(self.progress.step + 1 + self.config.rollout.max_staleness, self.config.run.steps)
        for step in range(first, last + 1):
            self._begin(step)
        await asyncio.sleep(0)  # they are with the engines before anything else is
        return batch

    async def discard(self) -> None:
        """Drop what was sampled ahead: the policy is another one now, or the run is over."""
        ahead, self._ahead = list(self._ahead), deque()
        self.dropped += len(ahead) * self.config.rollout.prompts_per_step
        for one in ahead:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in ahead), return_exceptions=True)
        self.stream.restore(Cursor(**self.progress.cursor))

    def trained(self, batch: Batch) -> Cursor:
        """Where the data stream goes on after `batch`: at the first prompt that was not trained on, without the later ones that were."""
        before = Cursor(**self.progress.cursor)
        start = min((one.start for one in self._ahead), default=self.stream.position)
        return self.stream.cursor_at(start, {*self.stream.used(before), *batch.places})

    def metrics(self, batch: Batch) -> dict[str, float]:
        """What is logged of a batch before its update, where batches are sampled ahead or groups drawn again."""
        found: dict[str, float] = {}
        if self.config.rollout.max_staleness:
            found |= {"staleness": float(self.progress.version - batch.oldest_version), "dropped_prompts": float(self.dropped)}
            if self.config.rollout.in_flight == "restart":
                found["restarted_prompts"] = float(sum(shard.restarts for shard in batch.shards))
        if self.config.algorithm.dynamic_sampling:
            flat = [reward for group in batch.drawn for reward in group]
            found |= {"drawn_groups": float(len(batch.drawn)), "drawn_reward_mean": sum(flat) / len(flat)}
        return found

    def _begin(self, step: int) -> None:
        start = self.stream.position
        prompts, places = self._draw(self.config.rollout.prompts_per_step)
        self._ahead.append(_Ahead(asyncio.create_task(self._sample(prompts, places, step)), start))

    def _draw(self, count: int) -> tuple[list[Prompt], list[int]]:
        """The next prompts, and their positions in the stream."""
        start, left_out = self.stream.position, self.stream.used(self.stream.cursor)
        prompts = self.stream.next(count)
        return prompts, [place for place in range(start, self.stream.position) if place not in left_out]

    async def _sample(self, prompts: Sequence[Prompt], places: list[int], step: int) -> Batch:
        wanted = len(prompts)
        rounds = [await self._scored(prompts, step, "train")]
        for i in range(self.config.algorithm.dynamic_sampling):
            missing = wanted - sum(len(found.rewards) - num_equal(found.rewards) for _, found in rounds)
            if missing <= 0:
                break
            again, drawn = self._draw(missing)
            prompts, places = [*prompts, *again], [*places, *drawn]
            rounds.append(await self._scored(again, step, f"train-again-{i}"))
        shards, scores = rounds[0] if len(rounds) == 1 else pick_groups(rounds, wanted)
        rewards = [group for _, found in rounds for group in found.rewards]
        correct = [value for _, found in rounds for group in found.accuracy for value in group]
        return Batch(shards, scores, places, [prompt.id for prompt in prompts], rewards, sum(correct) / len(correct))

    async def _scored(self, prompts: Sequence[Prompt], step: int, purpose: str) -> tuple[list[Shard], Scores]:
        """Sampled under the adapter in force now: the one that a batch was begun with may have left the engines."""
        rollout = self.config.rollout
        requests = self.serving.requests(prompts, self.progress.version, rollout.samples_per_prompt, purpose, step)
        for is_last in (False, True):
            with self._working("rollout"):
                shards = await self.stages.rollout.generate(requests, self.serving.sampling(rollout.temperature))
            try:
                with self._working("reward"):
                    return shards, await self.stages.rewards.score(shards, self.config.report.samples)
            except ObjectGoneError:  # with the node of the engine that sampled it: once more
                if is_last:
                    raise
        raise AssertionError("unreachable")

    def _waiting(self) -> AbstractContextManager[None]:
        """What is on the critical path when batches are sampled ahead: the wait for one."""
        return self.clock.phase("rollout") if self.config.rollout.max_staleness else nullcontext()

    def _working(self, phase: str) -> AbstractContextManager[None]:
        """What is on the critical path when they are not: the work itself."""
        return nullcontext() if self.config.rollout.max_staleness else self.clock.phase(phase)
