"""The learner gang: one DeepSpeed rank an actor, all of them in one placement group."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from next_ray.actors import parts
from next_ray.actors.cluster import free_address, result
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.config import AfterJumpSection
from next_ray.estimate import FULL_PROBE_RANK
from next_ray.learn.deepspeed_learner import DeepSpeedLearner, LearnerSpec
from next_ray.rollout.probe import make_probe_adapter, probe_adapter
from next_ray.types import Adapter, Group, LearnerState, LoraFactors, Ref, UpdatePlan, UpdateResult

Policy = dict[str, LoraFactors] | list[parts.PartRefs]
"""What engines serve: an adapter, or references to full weights (none on all ranks but the first)."""


class LearnerActor:
    """Holds one `DeepSpeedLearner`; `start` is called on all ranks together, once rank 0's address is known."""

    _learner: DeepSpeedLearner

    def __init__(self, place: ModelPlace, files: dict[str, bytes] | None) -> None:
        self._model_path = localize(place, files)

    def address(self) -> tuple[str, int]:
        """This node's address and a free port, for the process group."""
        return free_address()

    def start(self, spec: LearnerSpec, state: LearnerState | None) -> tuple[Policy, None]:
        """Build the rank, restore its state when there is one, and return the policy it starts from."""
        self._learner = DeepSpeedLearner(dataclasses.replace(spec, model_path=self._model_path))
        if state is not None:
            self._learner.restore(dataclasses.replace(state, parts=parts.full_parts(parts.refs_of(state))))
        return self._policy(), None

    def update(self, plan: UpdatePlan, *shards: list[Group]) -> tuple[Policy, dict[str, float]]:
        """Run this rank's part of an update."""
        metrics = self._learner.update(plan, shards)
        return self._policy(), metrics

    def snapshot(self) -> tuple[LearnerState, None]:
        """The unpartitioned state (complete on rank 0)."""
        state = self._learner.snapshot()
        return dataclasses.replace(state, parts=parts.put_parts(state.parts)), None

    def adopt(self, adapter: Adapter, after: AfterJumpSection) -> tuple[Policy, dict[str, float]]:
        """Go on from a candidate."""
        metrics = self._learner.adopt(adapter, after.moments, after.warmup_steps)
        return self._policy(), metrics

    def probe_adapter(self, initial: Adapter, seed: int) -> tuple[dict[str, LoraFactors], None]:
        """A random adapter of the trained one's shapes, with an effect that cannot be missed."""
        return make_probe_adapter(initial, seed), None

    def probe_weights(self, seed: int) -> tuple[dict[str, LoraFactors], list[parts.PartRefs], None]:
        """A random adapter for the linear layers of a model that is trained whole, and the present weights with it added."""
        adapter = probe_adapter(self._learner.linear_shapes, FULL_PROBE_RANK, 1.0, seed)
        return adapter, parts.put_weights(self._learner.policy_beside(adapter)), None

    def logprobs(self, groups: list[Group], adapter: Adapter | None) -> list[Any]:
        """Log-probabilities of the groups' completions for the start-up probe.

        Under the base (None) or an adapter, never the trained one; in mode full, under the present weights and an adapter beside them.
        """
        pairs = [(g.prompt_token_ids, c.token_ids) for g in groups for c in g.completions]
        return self._learner.logprobs([p for p, _ in pairs], [c for _, c in pairs], adapter or {})

    def _policy(self) -> Policy:
        policy = self._learner.policy()
        return policy if isinstance(policy, dict) else parts.put_weights(policy)

    def close(self) -> None:
        """Leave the process group."""
        if hasattr(self, "_learner"):
            self._learner.close()


@dataclass
class RayLearner:
    """The `Learner` port over the gang; rank 0 speaks for all."""

    ranks: Sequence[Any]
    after_jump: AfterJumpSection

    async def start(self, spec: LearnerSpec, state: Ref[LearnerState] | None) -> Ref[Adapter]:
        """Start all ranks of the gang; `spec` is rank 0's, without address."""
        host, port = await result(self.ranks[0].address.remote(), "learner rank 0")
        specs = [
            dataclasses.replace(spec, rank=i, world_size=len(self.ranks), master_addr=host, master_port=port)
            for i in range(len(self.ranks))
        ]
        return await self._held(
            [rank.start.options(num_returns=2).remote(s, state.value if state else None) for rank, s in zip(self.ranks, specs, strict=True)]
        )

    async def update(self, plan: UpdatePlan) -> UpdateResult:
        """Send every rank the plan and the references it resolves to completions."""
        bare = dataclasses.replace(plan, shards=())
        calls = [rank.update.options(num_returns=2).remote(bare, *(shard.value for shard in plan.shards)) for rank in self.ranks]
        return await self._result(calls)

    async def snapshot(self) -> Ref[LearnerState]:
        """Collective over the gang; the reference is rank 0's."""
        return await self._held([rank.snapshot.options(num_returns=2).remote() for rank in self.ranks])

    async def adopt(self, adapter: Ref[Adapter]) -> UpdateResult:
        """Collective over the gang."""
        return await self._result([rank.adopt.options(num_returns=2).remote(adapter.value, self.after_jump) for rank in self.ranks])

    async def probe_adapter(self, initial: Ref[Adapter], seed: int) -> Ref[Adapter]:
        """The start-up probe's adapter."""
        return await self._held([self.ranks[0].probe_adapter.options(num_returns=2).remote(initial.value, seed)])

    async def probe_weights(self, seed: int) -> tuple[Ref[Adapter], Ref[Any]]:
        """The start-up probe's adapter where all weights are trained, and the weights with it added. Collective over the gang."""
        calls = [rank.probe_weights.options(num_returns=3).remote(seed) for rank in self.ranks]
        await asyncio.gather(*(result(done, "a learner") for _, _, done in calls))
        return Ref(calls[0][0]), Ref(calls[0][1])

    async def logprobs(self, groups: Ref[list[Group]], adapter: Ref[Adapter] | None) -> list[Any]:
        """Log-probabilities of completions, per completion float32 [T]; see `LearnerActor.logprobs`."""
        calls = [rank.logprobs.remote(groups.value, adapter.value if adapter else None) for rank in self.ranks]
        return (await asyncio.gather(*(result(call, "a learner") for call in calls)))[0]

    async def close(self) -> None:
        """Let every rank leave its process group."""
        await asyncio.gather(*(rank.close.remote() for rank in self.ranks), return_exceptions=True)

    async def _result(self, calls: Sequence[Any]) -> UpdateResult:
        metrics: list[Mapping[str, float]] = await asyncio.gather(*(result(m, "a learner") for _, m in calls))
        return UpdateResult(adapter=Ref(calls[0][0]), metrics=metrics[0])

    async def _held(self, calls: Sequence[Any]) -> Ref[Any]:
        """Wait for all ranks; rank 0's value stays where it is, only the second return value comes to the driver."""
        await asyncio.gather(*(result(done, "a learner") for _, done in calls))
        return Ref(calls[0][0])


LearnerRemote = ray.remote(LearnerActor)
