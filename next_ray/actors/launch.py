"""Place and start all actors of a run, probe that engines and learner agree, and take everything down again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from next_ray.actors.archive import ArchiveRemote, RayArchive
from next_ray.actors.cluster import Device, OpenCluster, actor_environment, place
from next_ray.actors.engines import EngineRemote, RayRollout
from next_ray.actors.learners import LearnerRemote, RayLearner
from next_ray.actors.shipping import place_of, shipped
from next_ray.actors.trajectory import DeltaRemote, PredictorRemote, RayTrajectory
from next_ray.actors.verifiers import RayRewards, VerifierRemote
from next_ray.config import Config
from next_ray.delta.sharding import module_cost, shard_modules
from next_ray.estimate import adapter_slots, engine_bundle, learner_bundle, widest_adapter
from next_ray.learn.deepspeed_learner import LearnerSpec
from next_ray.models.resolve import PreparedModel
from next_ray.rollout.engine import EngineSpec
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import Adapter, LearnerState, Ref

CLOSE_S = 20.0
"""How long actors may take to leave their process group and remove their adapter folders."""


@dataclass(frozen=True)
class Launched:
    """The ports of a running set of actors, and the adapter the learner starts from."""

    rollout: RayRollout
    rewards: RayRewards
    learner: RayLearner
    archive: RayArchive
    trajectory: RayTrajectory
    initial: Ref[Adapter]


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
        seed=config.run.seed,
        rank=0,
        world_size=config.learner.ranks,
        master_addr="127.0.0.1",
        master_port=0,
        total_optimizer_steps=config.run.steps * per_step,
        device=device,
        deterministic=config.run.deterministic,
        trust_remote_code=config.model.trust_remote_code,
    )


@dataclass(frozen=True)
class Job:
    """What a run's actors are started from. The learner continues checkpoint `resume_from` when there is one; `verifiers` are warmed up."""

    config: Config
    cluster: OpenCluster
    model: PreparedModel
    store: CheckpointStore
    resume_from: str | None
    lease_token: str | None
    verifiers: Sequence[str]
    say: Callable[[str], None]


@asynccontextmanager
async def launch(job: Job) -> AsyncIterator[Launched]:
    """Start every actor, and take everything down at the end, however it comes."""
    crew = _Crew(job)
    try:
        launched = await crew.start()
        yield launched
        closing = asyncio.gather(launched.rollout.close(), launched.learner.close(), launched.rewards.close())
        with contextlib.suppress(TimeoutError):  # what is still busy then is killed below
            await asyncio.wait_for(closing, CLOSE_S)
    finally:
        for actor in crew.actors:
            ray.kill(actor)
        for group in crew.groups:
            remove_placement_group(group)


@dataclass
class _Crew:
    """Actors and placement groups as they come up: what has to be taken down."""

    job: Job
    actors: list[Any] = field(default_factory=list)
    groups: list[PlacementGroup] = field(default_factory=list)

    async def start(self) -> Launched:
        """The archive first, for the state to resume from; then places; then everything at once."""
        job, config, device = self.job, self.job.config, self.job.cluster.device
        keep = config.store.keep_checkpoints
        archive = RayArchive(_light(ArchiveRemote, device).remote(job.store, job.model.fingerprint, keep, job.lease_token))
        self.actors.append(archive.actor)
        state: Ref[LearnerState] | None = await archive.state(job.resume_from) if job.resume_from else None
        await self._reserve()
        job.say("starting engines and learners")
        engines, ranks = self._placed_actors()
        judges = [_light(VerifierRemote, device).remote(config.reward, job.verifiers) for _ in range(config.reward.actors)]
        trajectory = _trajectory(config, job.model, device)
        self.actors += [*engines, *ranks, *judges, *trajectory.actors]
        rollout, learner = RayRollout(engines), RayLearner(ranks, config.extrapolation.after_jump)
        initial, _ = await asyncio.gather(learner.start(learner_spec(config, job.model, device), state), rollout.ready())
        return Launched(rollout, RayRewards(judges), learner, archive, trajectory, initial)

    async def _reserve(self) -> None:
        """The gang's placement group, then one for each engine."""
        config, cluster, on_gpu = self.job.config, self.job.config.cluster, self.job.cluster.device == "gpu"
        gang = [learner_bundle(on_gpu=on_gpu)] * config.learner.ranks
        self.groups.append(await place(gang, cluster.learner_labels, "the learners", cluster.wait_s, self.job.say))
        for i in range(config.rollout.engines):
            bundle = [engine_bundle(config, on_gpu=on_gpu)]
            self.groups.append(await place(bundle, cluster.engine_labels, f"rollout engine {i}", cluster.wait_s, self.job.say))

    def _placed_actors(self) -> tuple[list[Any], list[Any]]:
        """Engines and learner ranks in their places; both bring the model's files along where their node lacks them."""
        job, config, device = self.job, self.job.config, self.job.cluster.device
        gang, *engine_groups = self.groups
        model_place, files = place_of(config.model, job.model), shipped(job.model)
        on_gpu = device == "gpu"
        engine, bundle = engine_bundle(config, on_gpu=on_gpu), learner_bundle(on_gpu=on_gpu)
        spec = engine_spec(config, job.model, device)
        engines = [
            _placed(EngineRemote, group, 0, engine, device, config.rollout.threads).remote(spec, model_place, files)
            for group in engine_groups
        ]
        ranks = [
            _placed(LearnerRemote, gang, i, bundle, device, config.learner.threads).remote(model_place, files)
            for i in range(config.learner.ranks)
        ]
        return engines, ranks


def _trajectory(config: Config, model: PreparedModel, device: str) -> RayTrajectory:
    extra = config.extrapolation
    if not extra.enabled:
        return RayTrajectory([], None, extra)
    costs = {name: module_cost(out, inner, config.learner.lora.rank) for name, (out, inner) in model.linear_shapes.items()}
    shards = [shard for shard in shard_modules(costs, extra.delta_workers) if shard]
    workers = [_light(DeltaRemote, device).remote(extra.horizon, shard) for shard in shards]
    return RayTrajectory(workers, _light(PredictorRemote, device).remote(extra, config.run.seed), extra)


def _placed(remote: Any, group: PlacementGroup, index: int, bundle: dict[str, float], device: str, threads: int) -> Any:
    return remote.options(
        num_cpus=bundle["CPU"],
        num_gpus=bundle.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        runtime_env=actor_environment(device, threads),
    )


def _light(remote: Any, device: str) -> Any:
    """An actor that reserves nothing: its work is small or yields to the others."""
    return remote.options(num_cpus=0, runtime_env=actor_environment("cpu" if device == "cpu" else device, threads=1))
