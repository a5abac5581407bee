"""Place and start all actors of a run, probe that engines and learner agree, and take everything down again."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray.util.placement_group import PlacementGroup, remove_placement_group

from next_ray.actors.archive import ArchiveRemote, RayArchive
from next_ray.actors.cluster import Device, OpenCluster, is_intact, place
from next_ray.actors.engines import EngineRemote, RayRollout
from next_ray.actors.learners import LEARNERS, LearnerRemote, RayLearner
from next_ray.actors.predictor import PredictorRemote
from next_ray.actors.seats import Seat
from next_ray.actors.shipping import ModelPlace, place_of, shipped
from next_ray.actors.starting import Whole, check_deltas_device, delta_shards, delta_worker, light, placed, stands
from next_ray.actors.trajectory import RayTrajectory
from next_ray.actors.verifiers import RayRewards, VerifierRemote
from next_ray.config import Config
from next_ray.errors import StoppedError
from next_ray.estimate import adapter_slots, delta_bundle, engine_bundle, learner_bundle, widest_adapter
from next_ray.learn.deepspeed_learner import LearnerSpec
from next_ray.models.resolve import PreparedModel
from next_ray.rollout.engine import EngineSpec
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import Adapter, Fault, Ref

CLOSE_S = 20.0
"""How long actors may take to leave their process group and remove their adapter folders."""


@dataclass(frozen=True)
class Launched:
    """The ports of a running set of actors, the policy the learner starts from, and the placement groups, by who lies there."""

    rollout: RayRollout
    rewards: RayRewards
    learner: RayLearner
    archive: RayArchive
    trajectory: RayTrajectory
    initial: Ref[Adapter]
    groups: Mapping[str, PlacementGroup]

    async def regroup(self, checkpoint_id: str | None) -> Ref[Adapter]:
        """Start the learner gang anew, from a committed checkpoint or from the beginning; returns the policy it goes on from."""
        return await self.learner.start(partial(self.archive.state, checkpoint_id) if checkpoint_id else None)


def engine_spec(config: Config, model: PreparedModel, device: Device) -> EngineSpec:
    """What an engine needs: room for the widest candidate and for all candidates side by side."""
    return EngineSpec(
        model_path=model.path,
        base_name=model.name,
        rollout=config.rollout,
        max_lora_rank=widest_adapter(config),
        max_adapters=adapter_slots(config),
        max_model_len=config.data.max_prompt_tokens + config.rollout.max_response_tokens,
        seed=config.run.seed,
        device=device,
        deterministic=config.run.deterministic,
        data=config.data,
        trust_remote_code=config.model.trust_remote_code,
    )


def learner_spec(config: Config, model: PreparedModel, device: Device) -> LearnerSpec:
    """What rank 0 needs; the gang fills in rank, world size and address."""
    per_step = config.rollout.prompts_per_step // (config.learner.mini_batch_prompts or config.rollout.prompts_per_step)
    return LearnerSpec(
        model_path=model.path,
        learner=config.learner,
        algorithm=config.algorithm,
        temperature=config.rollout.temperature,
        max_response_tokens=config.rollout.max_response_tokens,
        seed=config.run.seed,
        rank=0,
        world_size=config.learner.ranks,
        master_addr="127.0.0.1",
        master_port=0,
        total_optimizer_steps=config.run.steps * per_step,
        device=device,
        deterministic=config.run.deterministic,
        trust_remote_code=config.model.trust_remote_code,
        engine_dtype="float32" if config.rollout.dtype == "auto" else config.rollout.dtype,
    )


@dataclass(frozen=True)
class Job:
    """What a run's actors are started from. The learner continues checkpoint `resume_from` when there is one; `verifiers` are warmed up.

    `note` hears of every fault and of every recovery from one.
    """

    config: Config
    cluster: OpenCluster
    model: PreparedModel
    store: CheckpointStore
    resume_from: str | None
    lease_token: str | None
    verifiers: Sequence[str]
    say: Callable[[str], None]
    note: Callable[[Fault], None]


@asynccontextmanager
async def launch(job: Job) -> AsyncIterator[Launched]:
    """Start every actor, and take everything down at the end, however it comes."""
    crew = _Crew(job)
    try:
        launched = await crew.start()
        try:
            yield launched
        except StoppedError:
            await _leave(launched)
            raise
        await _leave(launched)
    finally:
        await crew.close()


async def _leave(launched: Launched) -> None:
    """Let actors clean up behind themselves; what is still busy after a while is killed by who comes next."""
    closing = asyncio.gather(launched.rollout.close(), launched.learner.close(), launched.rewards.close())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(closing, CLOSE_S)


@dataclass
class _Crew:
    """Seats, actors and placement groups as they come up: what has to be taken down."""

    job: Job
    seats: list[Seat] = field(default_factory=list)
    groups: dict[str, PlacementGroup] = field(default_factory=dict)
    learner: RayLearner | None = None
    trajectory: RayTrajectory | None = None
    _files: Any = None

    async def start(self) -> Launched:
        """Places first, which bring the nodes; then everything at once."""
        job, config, device = self.job, self.job.config, self.job.cluster.device
        check_deltas_device(config, device)
        shards = delta_shards(config, job.model)
        num_needed = config.rollout.min_engines or config.rollout.engines
        await self._reserve(num_needed, len(shards))
        archive = RayArchive(self._seat("the archive", self._archive))
        read = partial(archive.state, job.resume_from) if job.resume_from else None
        engines = [
            self._seat(engine_name(i), partial(self._engine, i, num_needed), is_late=i >= num_needed) for i in range(config.rollout.engines)
        ]
        judges = [self._seat(f"verifier {i}", partial(self._verifier, f"verifier {i}")) for i in range(config.reward.actors)]
        workers = [self._seat(f"delta worker {i}", partial(self._delta_worker, shards, i)) for i in range(len(shards))]
        predictor = self._seat("the predictor", self._predictor) if shards else None
        self.trajectory = RayTrajectory(workers, predictor, config.extrapolation, archive, beside=config.learner.mode == "full")
        self.learner = learner = RayLearner(
            self._gang, learner_spec(config, job.model, device), config.extrapolation.after_jump, config.recovery, job.note
        )
        rollout = RayRollout(engines, num_needed, config.run.deterministic, config.rollout.release_idle_s, self._vacate)
        others = asyncio.gather(rollout.ready(), self.trajectory.ready(), *(seat.up() for seat in judges))
        initial, _ = await asyncio.gather(learner.start(read), others)
        return Launched(rollout, RayRewards(judges), learner, archive, self.trajectory, initial, self.groups)

    async def close(self) -> None:
        """End everything, whatever it is doing, and give its places back."""
        if self.trajectory is not None:
            self.trajectory.close()
        await asyncio.gather(*(seat.close() for seat in self.seats))
        if self.learner is not None:
            self.learner.kill()
        for group in self.groups.values():
            remove_placement_group(group)

    def _seat(self, what: str, start: Callable[[], Awaitable[Any]], is_late: bool = False) -> Seat:
        seat = Seat(what, start, self.job.config.recovery, self.job.note, is_late)
        self.seats.append(seat)
        return seat

    async def _reserve(self, num_engines: int, num_delta_workers: int) -> None:
        """The gang's placement group, one for each engine that is needed, and last, so that whole GPUs go first, the delta workers'.

        All but the last are asked for at once: an autoscaler then starts their nodes side by side.
        """
        asked = [
            asyncio.ensure_future(one) for one in (self._gang_place(), *(self._engine_place(i, num_engines) for i in range(num_engines)))
        ]
        try:
            await asyncio.gather(*asked)
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        await self._deltas_place(num_delta_workers)

    async def _gang_place(self) -> PlacementGroup:
        config = self.job.config
        bundles = [learner_bundle(on_gpu=self._on_gpu)] * config.learner.ranks
        return await self._place(LEARNERS, bundles, config.cluster.learner_labels)

    async def _engine_place(self, index: int, num_needed: int) -> PlacementGroup:
        """An engine's place; one that is not needed is waited for as long as it takes."""
        config = self.job.config
        bundle = engine_bundle(config, on_gpu=self._on_gpu)
        return await self._place(engine_name(index), [bundle], config.cluster.engine_labels, is_needed=index < num_needed)

    async def _deltas_place(self, num_workers: int) -> PlacementGroup | None:
        share = delta_bundle(self.job.config)
        return await self._place("the delta workers", [share] * num_workers, {}) if share else None

    async def _place(self, what: str, bundles: list[dict[str, float]], labels: Mapping[str, str], is_needed: bool = True) -> PlacementGroup:
        """The placement group that `what` has, or another one when it has none or a part of it is lost or about to be."""
        old = self.groups.get(what)
        if old is not None:
            if await asyncio.to_thread(is_intact, old):
                return old
            self._vacate(what)
        wait_s = self.job.config.cluster.wait_s if is_needed else math.inf
        self.groups[what] = group = await place(bundles, labels, what, wait_s, self.job.say)
        return group

    def _vacate(self, what: str) -> None:
        """Give the place of `what` back, if it has one."""
        if (group := self.groups.pop(what, None)) is not None:
            remove_placement_group(group)

    async def _archive(self) -> Any:
        job = self.job
        remote = self._light(ArchiveRemote, "archive")
        return await stands(
            remote.remote(job.store, job.model.fingerprint, job.config.store.keep_checkpoints, job.lease_token), "the archive"
        )

    async def _verifier(self, what: str) -> Any:
        return await stands(self._light(VerifierRemote, what).remote(self.job.config.reward, self.job.verifiers), what)

    async def _predictor(self) -> Any:
        config = self.job.config
        return await stands(self._light(PredictorRemote, "predictor").remote(config.extrapolation, config.run.seed), "the predictor")

    async def _delta_worker(self, shards: Sequence[Sequence[str]], index: int) -> Any:
        job, config = self.job, self.job.config
        model = Whole(job.model.linear_shapes, self._model_place, self._shipped()) if config.learner.mode == "full" else None
        worker = delta_worker(config, shards[index], index, await self._deltas_place(len(shards)), job.cluster.device, model)
        return await stands(worker, f"delta worker {index}")

    async def _engine(self, index: int, num_needed: int) -> Any:
        """An engine in its place, once it stands; it brings the model's files along where its node lacks them."""
        job, config, device = self.job, self.job.config, self.job.cluster.device
        group = await self._engine_place(index, num_needed)
        bundle, threads = engine_bundle(config, on_gpu=self._on_gpu), config.rollout.threads
        remote = placed(EngineRemote, group, 0, bundle, device, threads, engine_name(index))
        engine = remote.remote(engine_spec(config, job.model, device), self._model_place, self._shipped())
        return await stands(engine, engine_name(index), engine.ready)

    async def _gang(self) -> Sequence[Any]:
        """The actors of all learner ranks, in their places."""
        config, device = self.job.config, self.job.cluster.device
        group, bundle = await self._gang_place(), learner_bundle(on_gpu=self._on_gpu)
        return [
            placed(LearnerRemote, group, i, bundle, device, config.learner.threads, f"learner rank {i}").remote(
                self._model_place, self._shipped()
            )
            for i in range(config.learner.ranks)
        ]

    def _light(self, remote: Any, what: str) -> Any:
        return light(remote, self.job.cluster.device, what, self.job.config.cluster.learner_labels)

    def _shipped(self) -> Any:
        """The model's files for nodes that lack them, put into the object store once it is known that there are several nodes."""
        if self._files is None:
            self._files = shipped(self.job.model)
        return self._files

    @property
    def _model_place(self) -> ModelPlace:
        return place_of(self.job.config.model, self.job.model)

    @property
    def _on_gpu(self) -> bool:
        return self.job.cluster.device == "gpu"


def engine_name(index: int) -> str:
    """What an engine is called in messages."""
    return f"rollout engine {index}"
