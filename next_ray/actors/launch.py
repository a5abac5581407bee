"""Place and start all actors of a run, probe that engines and learner agree, and take everything down again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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
from next_ray.actors.observed import NAME_VARIABLE
from next_ray.actors.shipping import ModelPlace, place_of, shipped
from next_ray.actors.trajectory import DeltaRemote, DenseDeltaRemote, PredictorRemote, RayTrajectory
from next_ray.actors.verifiers import RayRewards, VerifierRemote
from next_ray.config import Config
from next_ray.delta.sharding import dense_cost, module_cost, shard_modules
from next_ray.errors import PlacementError
from next_ray.estimate import adapter_slots, delta_bundle, engine_bundle, learner_bundle, widest_adapter
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


@dataclass(frozen=True)
class _Places:
    """The placement groups of what reserves something; delta workers without a share of a GPU do not."""

    gang: PlacementGroup
    engines: Sequence[PlacementGroup]
    deltas: PlacementGroup | None


@dataclass
class _Crew:
    """Actors and placement groups as they come up: what has to be taken down."""

    job: Job
    actors: list[Any] = field(default_factory=list)
    groups: list[PlacementGroup] = field(default_factory=list)

    async def start(self) -> Launched:
        """The archive first, for the state to resume from; then places; then everything at once."""
        job, config, device = self.job, self.job.config, self.job.cluster.device
        check_deltas_device(config, device)
        keep = config.store.keep_checkpoints
        archive = RayArchive(_light(ArchiveRemote, device, "archive").remote(job.store, job.model.fingerprint, keep, job.lease_token))
        self.actors.append(archive.actor)
        state: Ref[LearnerState] | None = await archive.state(job.resume_from) if job.resume_from else None
        shards = delta_shards(config, job.model)
        places = await self._reserve(len(shards))
        where, files = place_of(config.model, job.model), shipped(job.model)
        engines, ranks = self._placed_actors(places, where, files)
        judges = [_light(VerifierRemote, device, f"verifier {i}").remote(config.reward, job.verifiers) for i in range(config.reward.actors)]
        whole = Whole(job.model.linear_shapes, where, files) if config.learner.mode == "full" else None
        workers = delta_workers(config, shards, places.deltas, device, whole)
        predictor = _light(PredictorRemote, device, "predictor").remote(config.extrapolation, config.run.seed) if workers else None
        trajectory = RayTrajectory(workers, predictor, config.extrapolation, beside=config.learner.mode == "full")
        self.actors += [*engines, *ranks, *judges, *trajectory.actors]
        rollout, learner = RayRollout(engines), RayLearner(ranks, config.extrapolation.after_jump)
        initial, _ = await asyncio.gather(learner.start(learner_spec(config, job.model, device), state), rollout.ready())
        return Launched(rollout, RayRewards(judges), learner, archive, trajectory, initial)

    async def _reserve(self, num_delta_workers: int) -> _Places:
        """The gang's placement group, one for each engine, and last, so that whole GPUs go first, the delta workers'."""
        config, cluster, on_gpu = self.job.config, self.job.config.cluster, self.job.cluster.device == "gpu"
        gang = await self._place([learner_bundle(on_gpu=on_gpu)] * config.learner.ranks, cluster.learner_labels, "the learners")
        engines = [
            await self._place([engine_bundle(config, on_gpu=on_gpu)], cluster.engine_labels, f"rollout engine {i}")
            for i in range(config.rollout.engines)
        ]
        share = delta_bundle(config)
        deltas = await self._place([share] * num_delta_workers, {}, "the delta workers") if share else None
        return _Places(gang, engines, deltas)

    async def _place(self, bundles: list[dict[str, float]], labels: Mapping[str, str], what: str) -> PlacementGroup:
        group = await place(bundles, labels, what, self.job.config.cluster.wait_s, self.job.say)
        self.groups.append(group)
        return group

    def _placed_actors(self, places: _Places, model_place: ModelPlace, files: Any) -> tuple[list[Any], list[Any]]:
        """Engines and learner ranks in their places; both bring the model's files along where their node lacks them."""
        job, config, device = self.job, self.job.config, self.job.cluster.device
        on_gpu = device == "gpu"
        engine, bundle = engine_bundle(config, on_gpu=on_gpu), learner_bundle(on_gpu=on_gpu)
        spec = engine_spec(config, job.model, device)
        engines = [
            _placed(EngineRemote, group, 0, engine, device, config.rollout.threads, f"rollout engine {i}").remote(spec, model_place, files)
            for i, group in enumerate(places.engines)
        ]
        ranks = [
            _placed(LearnerRemote, places.gang, i, bundle, device, config.learner.threads, f"learner rank {i}").remote(model_place, files)
            for i in range(config.learner.ranks)
        ]
        return engines, ranks


def check_deltas_device(config: Config, device: Device) -> None:
    """Raise `PlacementError`, before anything is waited for, when delta workers want GPUs and the run found none."""
    if device == "cpu" and delta_bundle(config):
        raise PlacementError(
            f"No place for the delta workers: extrapolation.gpus_per_delta_worker={config.extrapolation.gpus_per_delta_worker:g} asks for "
            "GPUs, and the cluster has none. Set it to 0, or add nodes with GPUs."
        )


def delta_shards(config: Config, model: PreparedModel) -> list[list[str]]:
    """The modules of each delta worker, balanced by cost; none when the run does not extrapolate."""
    if not config.extrapolation.enabled:
        return []
    learner = config.learner
    costs = {
        name: module_cost(out, inner, learner.lora.rank) if learner.mode == "lora" else dense_cost(out, inner, 1)
        for name, (out, inner) in model.linear_shapes.items()
    }
    return [shard for shard in shard_modules(costs, config.extrapolation.delta_workers) if shard]


@dataclass(frozen=True)
class Whole:
    """What delta workers need of a model that is trained whole: (O, I) of its modules, and where its base weights are."""

    shapes: Mapping[str, tuple[int, int]]
    place: ModelPlace
    files: Any

    def part(self, shard: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The shapes of a shard's modules, in the model's order, in which they are read."""
        mine = set(shard)
        return {name: shape for name, shape in self.shapes.items() if name in mine}


def delta_workers(
    config: Config, shards: Sequence[Sequence[str]], group: PlacementGroup | None, device: Device, whole: Whole | None = None
) -> list[Any]:
    """A delta worker a shard: in the group's places and computing on their GPUs, or without a group on the CPU, reserving nothing."""
    horizon, share = config.extrapolation.horizon, delta_bundle(config)

    def start(remote: Any, shard: Sequence[str], where: str | None) -> Any:
        if whole is None:
            return remote(DeltaRemote).remote(horizon, shard, where)
        return remote(DenseDeltaRemote).remote(horizon, whole.part(shard), where, whole.place, whole.files)

    if group is None:
        return [start(lambda actor, i=i: _light(actor, device, f"delta worker {i}"), shard, None) for i, shard in enumerate(shards)]
    places = group
    return [
        start(lambda actor, i=i: _placed(actor, places, i, share, device, 1, f"delta worker {i}"), shard, "cuda")
        for i, shard in enumerate(shards)
    ]


def _placed(remote: Any, group: PlacementGroup, index: int, bundle: dict[str, float], device: str, threads: int, what: str) -> Any:
    return remote.options(
        num_cpus=bundle.get("CPU", 0),
        num_gpus=bundle.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        runtime_env=actor_environment(device, threads, {NAME_VARIABLE: what}),
    )


def _light(remote: Any, device: str, what: str) -> Any:
    """An actor that reserves nothing: its work is small or yields to the others."""
    return remote.options(num_cpus=0, runtime_env=actor_environment(device, 1, {NAME_VARIABLE: what}))
