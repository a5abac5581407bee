"""A job on a layout of devices: memory, every phase's time, the bottleneck and the cost of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf, log2

from next_ray import estimate
from next_ray.config import Config
from next_ray.delta.sharding import dense_cost
from next_ray.model_facts import ModelFacts
from next_ray.planning import rates
from next_ray.planning.devices import DEVICES_PER_NODE, NODE_BYTES_PER_S, Device
from next_ray.planning.sampling import WORKSPACE_BYTES, EngineModel, cache_bytes, slots_for
from next_ray.planning.updating import update_s
from next_ray.planning.workload import Workload

USABLE = 0.95
"""Assumed: the share of a learner's memory that its allocator can give out."""


@dataclass(frozen=True)
class Layout:
    """Who gets what: `engines` of `spans` devices each, and `ranks` of learners at a ZeRO stage."""

    engines: int
    spans: int
    engine_device: Device
    ranks: int
    zero_stage: int
    learner_device: Device

    @property
    def num_devices(self) -> int:
        """Devices in use."""
        return self.engines * self.spans + self.ranks

    @property
    def price_per_hour(self) -> float:
        """Dollars for the devices in use."""
        return self.engines * self.spans * self.engine_device.price_per_hour + self.ranks * self.learner_device.price_per_hour

    def apply(self, config: Config) -> Config:
        """The job with this layout."""
        rollout = config.rollout.model_copy(update={"engines": self.engines, "tensor_parallel_size": self.spans, "min_engines": None})
        learner = config.learner.model_copy(update={"ranks": self.ranks, "zero_stage": self.zero_stage})
        return config.model_copy(update={"rollout": rollout, "learner": learner})

    @property
    def settings(self) -> str:
        """The overrides that make a job so."""
        return (
            f"rollout.engines={self.engines} rollout.tensor_parallel_size={self.spans} "
            f"learner.ranks={self.ranks} learner.zero_stage={self.zero_stage}"
        )


@dataclass(frozen=True)
class Phase:
    """One phase: seconds each time, how often in a step, whether training waits for it, and what bounds it."""

    name: str
    seconds: float
    per_step: float
    is_waited_for: bool
    bound: str

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, on average."""
        return self.seconds * self.per_step


@dataclass(frozen=True)
class Needs:
    """Bytes that one device of a kind must hold, part by part, and bytes that it has."""

    who: str
    parts: tuple[estimate.Memory, ...]
    has: float

    @property
    def num_bytes(self) -> float:
        """All parts together."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether it can hold them."""
        return self.num_bytes <= self.has


@dataclass(frozen=True)
class Plan:
    """What a layout amounts to; `phases` are empty where it does not fit."""

    layout: Layout
    needs: tuple[Needs, ...]
    slots: int
    phases: tuple[Phase, ...]
    step_s: float

    @property
    def fits(self) -> bool:
        """Whether every device can hold its part, with room for a sequence in every engine."""
        return self.slots > 0 and all(need.fits for need in self.needs)

    def seconds(self, name: str) -> float:
        """A phase's seconds each time; 0 when there is none of the name."""
        return sum(phase.seconds for phase in self.phases if phase.name == name)

    @property
    def bottleneck(self) -> Phase:
        """The phase that training waits for most."""
        return max((phase for phase in self.phases if phase.is_waited_for), key=lambda phase: phase.step_seconds)

    def cost(self, steps: float) -> float:
        """Dollars for so many steps."""
        return self.step_s * steps / 3600 * self.layout.price_per_hour


def plan(config: Config, facts: ModelFacts, layout: Layout, work: Workload) -> Plan:
    """What a job (its number formats decided) amounts to on a layout."""
    config = layout.apply(config)
    left = cache_bytes(config, facts, layout.engine_device, layout.spans)
    slots = slots_for(config, facts, left, work)
    needs = _needs(config, facts, layout)
    if slots == 0 or not all(need.fits for need in needs):
        return Plan(layout, needs, slots, (), float("inf"))
    engine = EngineModel(config, facts, layout.engine_device, layout.spans, slots)
    phases = [*_training(engine, layout, work), *_beside(config, facts, layout), *_judging(engine, layout, work)]
    phases = tuple(phase for phase in phases if phase.per_step > 0)
    return Plan(layout, needs, slots, phases, _step_s(config, phases))


def _needs(config: Config, facts: ModelFacts, layout: Layout) -> tuple[Needs, ...]:
    engine, on_gpu = layout.engine_device, layout.engine_device.is_gpu
    share = config.rollout.gpu_memory_utilization if on_gpu else 1.0
    workspace = (estimate.Memory("vLLM's workspace (assumed)", WORKSPACE_BYTES),) if on_gpu else ()
    return (
        Needs("rollout engine", (*estimate.engine_memory(config, facts, on_gpu=on_gpu), *workspace), engine.memory_bytes * share),
        Needs("learner rank", estimate.learner_memory(config, facts), layout.learner_device.memory_bytes * USABLE),
    )


def _training(engine: EngineModel, layout: Layout, work: Workload) -> tuple[Phase, ...]:
    """What every step does."""
    config, facts, rollout = engine.config, engine.facts, engine.config.rollout
    sampled = engine.sample_s(ceil(rollout.prompts_per_step / layout.engines), rollout.samples_per_prompt, work)
    update = update_s(config, facts, layout.learner_device, work)
    judged_s = _judged_s(config, estimate.batch_sizes(config).completions_per_step)
    return (
        Phase("rollout", sampled.seconds, 1, True, sampled.bound),
        Phase("reward", judged_s, 1, True, "verifier processes"),
        Phase("update", update.seconds, 1, True, update.bound),
        Phase("hand-over", _hand_over_s(config, facts, layout), 1, True, "copies of what is trained"),
        Phase("driver", rates.DRIVER_S + rates.DRIVER_ENGINE_S * layout.engines, 1, True, "calls of actors"),
    )


def _beside(config: Config, facts: ModelFacts, layout: Layout) -> tuple[Phase, ...]:
    """What every checkpoint of the trajectory does, for the most part beside training."""
    every = 1 / config.extrapolation.interval_steps
    stored_s = _state_bytes(config, facts) / rates.STORE_BYTES_PER_S
    return (
        Phase("checkpoint", _snapshot_s(config, facts, layout), every, True, "a copy of weights and moments"),
        Phase("store", stored_s, every, False, "the store"),
        Phase("delta", delta_s(config, facts), every if config.extrapolation.enabled else 0, False, "delta workers' cores"),
    )


def _judging(engine: EngineModel, layout: Layout, work: Workload) -> tuple[Phase, ...]:
    """What samples outside of training, spread over the run's steps: attempts to jump, and evaluations on the way."""
    config, times = engine.config, estimate.run_schedule(engine.config)

    def phase(name: str, completions: int, samples: int, per_step: float) -> Phase:
        found = engine.sample_s(ceil(ceil(completions / samples) / layout.engines), samples, work)
        return Phase(name, found.seconds + _judged_s(config, completions), per_step if completions else 0, True, found.bound)

    return (
        phase("gate", times.gate_completions, config.extrapolation.gate.samples, len(times.jump_steps) / config.run.steps),
        phase("evaluation", times.evaluation_completions, config.evaluation.samples, 1 / (config.evaluation.every_steps or inf)),
    )


def _judged_s(config: Config, completions: int) -> float:
    return completions / (rates.VERIFIED_PER_S * config.reward.actors * config.reward.workers)


def _step_s(config: Config, phases: tuple[Phase, ...]) -> float:
    """A step on average: one phase after the other, or with batches sampled ahead the longer of sampling and update.

    What goes on beside training counts where it takes longer than the steps between two checkpoints.
    """
    seconds: Mapping[str, float] = {phase.name: phase.step_seconds for phase in phases if phase.is_waited_for}
    together = seconds["rollout"] + seconds["reward"], seconds["update"]
    rest = sum(seconds.values()) - sum(together)
    step = (max(together) if config.rollout.max_staleness else sum(together)) + rest
    return max(step, *(phase.step_seconds for phase in phases if not phase.is_waited_for), 0.0)


def _is_lora(config: Config) -> bool:
    return config.learner.mode == "lora"


def _state_bytes(config: Config, facts: ModelFacts) -> float:
    """Weights and two moments, float32."""
    lora = config.learner.lora
    return 12 * (facts.lora_parameters(lora.rank, lora.target_modules) if _is_lora(config) else facts.num_parameters)


def _hand_over_s(config: Config, facts: ModelFacts, layout: Layout) -> float:
    """Into the object store, from node to node, out of it, and into the engine; nodes that have it pass it on."""
    lora = config.learner.lora
    moved = 4 * facts.lora_parameters(lora.rank, lora.target_modules) if _is_lora(config) else 4 * facts.num_parameters
    engine, learner = layout.engine_device.rates, layout.learner_device.rates
    nodes = ceil(layout.engines * layout.spans / DEVICES_PER_NODE)
    hops = ceil(log2(nodes + 1)) if layout.num_devices > DEVICES_PER_NODE else 0
    return engine.load_s + moved * (1 / learner.copy_bytes_per_s + hops / NODE_BYTES_PER_S + 2 / engine.copy_bytes_per_s)


def _snapshot_s(config: Config, facts: ModelFacts, layout: Layout) -> float:
    """The learner's state into the object store; the way from there to the store is training's no more."""
    learner = layout.learner_device.rates
    return learner.snapshot_s + _state_bytes(config, facts) / learner.copy_bytes_per_s


def delta_s(config: Config, facts: ModelFacts) -> float:
    """Triplets of one checkpoint over the delta workers, a core each. For full weights: reading and products of every matrix."""
    lora, seconds = config.learner.lora, 0.0
    for shape in facts.targeted(lora.target_modules if _is_lora(config) else "all-linear"):
        if _is_lora(config):
            factors = (shape.out_features + shape.in_features) * lora.rank
            one = rates.DELTA_MODULE_S + rates.DELTA_CORE_S * lora.rank**3 + rates.DELTA_FEATURE_S * factors
        else:
            one = rates.DELTA_MODULE_S + rates.DENSE_UNIT_S * dense_cost(shape.out_features, shape.in_features, 1)
        seconds += shape.count * one
    return seconds / config.extrapolation.delta_workers
