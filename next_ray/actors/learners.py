"""The learner gang: one DeepSpeed rank an actor, all of them in one placement group."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from next_ray.actors.cluster import result
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.config import AfterJumpSection
from next_ray.learn.deepspeed_learner import DeepSpeedLearner, LearnerSpec
from next_ray.rollout.probe import make_probe_adapter
from next_ray.types import Adapter, Group, LearnerState, LoraFactors, Ref, UpdatePlan, UpdateResult


class LearnerActor:
    """Holds one `DeepSpeedLearner`; `start` is called on all ranks together, once rank 0's address is known."""

    _learner: DeepSpeedLearner

    def __init__(self, place: ModelPlace, files: dict[str, bytes] | None) -> None:
        self._model_path = localize(place, files)

    def address(self) -> tuple[str, int]:
        """This node's address and a free port, for the process group."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, spec: LearnerSpec, state: LearnerState | None) -> tuple[dict[str, LoraFactors], None]:
        """Build the rank, restore its state when there is one, and return the adapter it starts from."""
        self._learner = DeepSpeedLearner(dataclasses.replace(spec, model_path=self._model_path))
        if state is not None:
            self._learner.restore(state)
        return self._learner.adapter(), None

    def update(self, plan: UpdatePlan, *shards: list[Group]) -> tuple[dict[str, LoraFactors], dict[str, float]]:
        """Run this rank's part of an update."""
        metrics = self._learner.update(plan, shards)
        return self._learner.adapter(), metrics

    def snapshot(self) -> tuple[LearnerState, None]:
        """The unpartitioned state (complete on rank 0)."""
        return self._learner.snapshot(), None

    def adopt(self, adapter: Adapter, after: AfterJumpSection) -> tuple[dict[str, LoraFactors], dict[str, float]]:
        """Go on from another adapter."""
        metrics = self._learner.adopt(adapter, after.moments, after.warmup_steps)
        return self._learner.adapter(), metrics

    def probe_adapter(self, initial: Adapter, seed: int) -> tuple[dict[str, LoraFactors], None]:
        """A random adapter of the trained one's shapes, with an effect that cannot be missed."""
        return make_probe_adapter(initial, seed), None

    def logprobs(self, groups: list[Group], adapter: Adapter | None) -> list[Any]:
        """Log-probabilities of the groups' completions under the base (None) or an adapter, never the trained one: the start-up probe."""
        pairs = [(g.prompt_token_ids, c.token_ids) for g in groups for c in g.completions]
        return self._learner.logprobs([p for p, _ in pairs], [c for _, c in pairs], adapter or {})

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

    async def logprobs(self, groups: Ref[list[Group]], adapter: Ref[Adapter] | None) -> list[Any]:
        """Log-probabilities of completions under the base (None) or an adapter, per completion float32 [T]."""
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
