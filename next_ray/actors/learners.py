"""The learner gang: one DeepSpeed rank an actor, all of them in one placement group."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from next_ray.actors import parts
from next_ray.actors.cluster import answer, free_address
from next_ray.actors.observed import RunActor
from next_ray.actors.seats import Note, backoff_s, kill
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.config import AfterJumpSection, RecoverySection
from next_ray.errors import ActorLostError, LearnerLostError
from next_ray.estimate import FULL_PROBE_RANK
from next_ray.learn.deepspeed_learner import DeepSpeedLearner, LearnerSpec
from next_ray.rollout.probe import make_probe_adapter, probe_adapter
from next_ray.types import Adapter, Fault, FaultEvent, Group, LearnerState, LoraFactors, Ref, UpdatePlan, UpdateResult

LEARNERS = "the learners"
"""What the gang is called in messages."""
Policy = dict[str, LoraFactors] | list[parts.PartRefs]
"""What engines serve: an adapter, or references to full weights (none on all ranks but the first)."""


class LearnerActor(RunActor):
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
        return (self._policy(), None) if state is None else self.restore(state)

    def update(self, plan: UpdatePlan, *shards: list[Group]) -> tuple[Policy, dict[str, float]]:
        """Run this rank's part of an update."""
        metrics = self._learner.update(plan, shards)
        return self._policy(), metrics

    def snapshot(self) -> tuple[LearnerState, None]:
        """The unpartitioned state (complete on rank 0)."""
        state = self._learner.snapshot()
        return dataclasses.replace(state, parts=parts.put_parts(state.parts)), None

    def restore(self, state: LearnerState) -> tuple[Policy, None]:
        """Go back to where a state was taken, and return the policy there."""
        self._learner.restore(dataclasses.replace(state, parts=parts.FullParts(parts.refs_of(state))))
        return self._policy(), None

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
    """The `Learner` port over the gang; rank 0 speaks for all. When a rank dies, whatever was asked raises `LearnerLostError`.

    Args:
        hire: places and creates the actors of all ranks.
        spec: rank 0's, without address.
        after_jump: how to go on from a candidate.
        recovery: how often a gang that does not come up is started again.
        note: hears of every gang that did not.
    """

    hire: Callable[[], Awaitable[Sequence[Any]]]
    spec: LearnerSpec
    after_jump: AfterJumpSection
    recovery: RecoverySection
    note: Note
    ranks: Sequence[Any] = ()

    async def start(self, read: Callable[[], Awaitable[Ref[LearnerState]]] | None) -> Ref[Adapter]:
        """Start all ranks, from what is read or anew, and return what they go on from; a gang that there was is torn down.

        A gang that does not come up is started again, as often as `recovery.learner_restarts` says, from a state that is read again: what
        was read may have been lost with a node.
        """
        for failures in itertools.count(1):
            self.kill()
            try:
                return await self._start(await read() if read else None)
            except LearnerLostError as error:
                if failures > self.recovery.learner_restarts:
                    raise
                self.note(Fault(LEARNERS, FaultEvent.LOST, str(error)))
                await asyncio.sleep(backoff_s(failures, self.recovery.backoff_s))
        raise AssertionError("unreachable")

    async def _start(self, state: Ref[LearnerState] | None) -> Ref[Adapter]:
        self.ranks = await self.hire()
        host, port = await self._answer(self.ranks[0].address.remote())
        specs = [
            dataclasses.replace(self.spec, rank=i, world_size=len(self.ranks), master_addr=host, master_port=port)
            for i in range(len(self.ranks))
        ]
        given = state.value if state else None
        return await self._held([rank.start.options(num_returns=2).remote(s, given) for rank, s in zip(self.ranks, specs, strict=True)])

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

    async def restore(self, state: Ref[LearnerState]) -> Ref[Adapter]:
        """Collective over the gang; the reference is rank 0's."""
        return await self._held([rank.restore.options(num_returns=2).remote(state.value) for rank in self.ranks])

    async def probe_adapter(self, initial: Ref[Adapter], seed: int) -> Ref[Adapter]:
        """The start-up probe's adapter."""
        return await self._held([self.ranks[0].probe_adapter.options(num_returns=2).remote(initial.value, seed)])

    async def probe_weights(self, seed: int) -> tuple[Ref[Adapter], Ref[Any]]:
        """The start-up probe's adapter where all weights are trained, and the weights with it added. Collective over the gang."""
        calls = [rank.probe_weights.options(num_returns=3).remote(seed) for rank in self.ranks]
        await self._answers([done for _, _, done in calls])
        return Ref(calls[0][0]), Ref(calls[0][1])

    async def logprobs(self, groups: Ref[list[Group]], adapter: Ref[Adapter] | None) -> list[Any]:
        """Log-probabilities of completions, per completion float32 [T]; see `LearnerActor.logprobs`."""
        return (await self._answers([rank.logprobs.remote(groups.value, adapter.value if adapter else None) for rank in self.ranks]))[0]

    async def close(self) -> None:
        """Let every rank leave its process group."""
        await asyncio.gather(*(rank.close.remote() for rank in self.ranks), return_exceptions=True)

    def kill(self) -> None:
        """End all ranks at once: without one of them the others wait for it in vain."""
        for rank in self.ranks:
            kill(rank)
        self.ranks = ()

    async def _result(self, calls: Sequence[Any]) -> UpdateResult:
        metrics: list[Mapping[str, float]] = await self._answers([m for _, m in calls])
        return UpdateResult(adapter=Ref(calls[0][0]), metrics=metrics[0])

    async def _held(self, calls: Sequence[Any]) -> Ref[Any]:
        """Wait for all ranks; rank 0's value stays where it is, only the second return value comes to the driver."""
        await self._answers([done for _, done in calls])
        return Ref(calls[0][0])

    async def _answers(self, refs: Sequence[Any]) -> list[Any]:
        return list(await asyncio.gather(*(self._answer(ref, i) for i, ref in enumerate(refs))))

    async def _answer(self, ref: Any, rank: int = 0) -> Any:
        """A rank's answer. What a user can mend comes out as itself; any other error of one rank leaves no gang to go on with."""
        try:
            return await answer(ref, f"learner rank {rank}")
        except ActorLostError as error:
            raise LearnerLostError(str(error)) from error


LearnerRemote = ray.remote(LearnerActor)
