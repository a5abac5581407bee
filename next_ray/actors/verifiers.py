"""Verifier actors: each owns a pool of disposable processes that judge answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray

from next_ray.actors.observed import RunActor
from next_ray.actors.seats import Seat, asked
from next_ray.config import RewardSection
from next_ray.reward.pool import VerifierPool
from next_ray.types import Group, Sample, Scores, Shard


class VerifierActor(RunActor):
    """Holds one `VerifierPool`."""

    def __init__(self, config: RewardSection, kinds: Sequence[str]) -> None:
        self._pool = VerifierPool(config)
        self._pool.preload(kinds)

    def score(self, groups: list[Group], num_samples: int) -> Scores:
        """Judge every completion of the groups; the first completions of the first groups are returned as text."""
        items = [(c.text, g.prompt) for g in groups for c in g.completions]
        judged = iter(self._pool.score(items))
        rewards, correct, verdicts, samples = [], [], Counter[str](), []
        for group in groups:
            row = [next(judged) for _ in group.completions]
            rewards.append(tuple(j.reward for j in row))
            correct.append(tuple(float(j.is_correct) for j in row))
            verdicts.update(str(j.verdict) for j in row)
            if len(samples) < num_samples:
                samples.append(_sample(group, row[0].reward))
        return Scores(tuple(rewards), dict(verdicts), tuple(samples), tuple(correct))

    def close(self) -> None:
        """End the pool's processes."""
        self._pool.close()


def _sample(group: Group, reward: float) -> Sample:
    return Sample(group.prompt.id, group.prompt.messages[-1]["content"], group.completions[0].text, group.prompt.answer, reward)


@dataclass
class RayRewards:
    """The `Rewards` port over verifier actors; one that dies is started anew and asked again."""

    seats: Sequence[Seat]

    async def score(self, shards: Sequence[Shard], num_samples: int = 0) -> Scores:
        """Spread the shards over the actors; results keep the shards' order."""
        calls = [
            asked(self.seats[i % len(self.seats)], lambda actor, shard=shard: [actor.score.remote(shard.groups.value, num_samples)])
            for i, shard in enumerate(shards)
        ]
        parts: list[Scores] = [scores for _, scores in await asyncio.gather(*calls)]
        scores = Scores.joined(parts)
        return replace(scores, samples=scores.samples[:num_samples])

    async def close(self) -> None:
        """End all verifier processes."""
        await asyncio.gather(*(seat.actor.close.remote() for seat in self.seats if seat.actor is not None), return_exceptions=True)


VerifierRemote = ray.remote(VerifierActor)
