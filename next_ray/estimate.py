"""What a configuration amounts to: batch sizes, schedule, placement and memory, as numbers.

Level 1: pure. All memory figures are estimates from shapes; what each includes is said where it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from next_ray.config import Config
from next_ray.delta.sharding import GRAM_BATCH_BYTES
from next_ray.extrapolate.screening import num_evaluations
from next_ray.model_facts import ModelFacts
from next_ray.progress import Progress, Schedule
from next_ray.rollout.spec import LORA_RANKS

FULL_PROBE_RANK = 8
"""Rank of the random adapter with which the start-up probe moves full weights; candidates beside them have rank 1."""

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def width_of(dtype: str) -> int:
    """Bytes of a number in a format that has been decided (`precision.resolve_dtypes`)."""
    return _BYTES[dtype]


@dataclass(frozen=True)
class BatchSizes:
    """Sizes of one RL step; token counts and micro batches are upper bounds (every sequence of full length)."""

    completions_per_step: int
    max_tokens_per_step: int
    max_response_tokens_per_step: int
    optimizer_steps_per_step: int
    optimizer_steps_in_all: int
    completions_per_mini_batch: int
    sequences_per_micro_batch: int
    max_micro_batches_per_rank: int


@dataclass(frozen=True)
class RunSchedule:
    """Steps of checkpoints and of attempted jumps, and what one gate costs."""

    checkpoint_steps: tuple[int, ...]
    jump_steps: tuple[int, ...]
    first_jump_step: int
    num_candidates: int
    gate_completions: int
    evaluation_completions: int


@dataclass(frozen=True)
class Placed:
    """One kind of actor: how many, what one of them reserves (nothing: it yields to the others), and its node's labels."""

    actor: str
    count: int
    bundle: Mapping[str, float]
    labels: Mapping[str, str]

    def total(self, resource: str) -> float:
        """What all of them reserve of a resource."""
        return self.count * self.bundle.get(resource, 0)


@dataclass(frozen=True)
class Memory:
    """One line of a memory estimate of one device, in bytes."""

    part: str
    num_bytes: float


def batch_sizes(config: Config) -> BatchSizes:
    """Derive the sizes of one RL step."""
    rollout, learner = config.rollout, config.learner
    sequence = config.data.max_prompt_tokens + rollout.max_response_tokens
    completions = rollout.prompts_per_step * rollout.samples_per_prompt
    mini_prompts = learner.mini_batch_prompts or rollout.prompts_per_step
    optimizer_steps = rollout.prompts_per_step // mini_prompts
    per_mini = mini_prompts * rollout.samples_per_prompt
    per_micro = learner.micro_batch_tokens // sequence
    return BatchSizes(
        completions_per_step=completions,
        max_tokens_per_step=completions * sequence,
        max_response_tokens_per_step=completions * rollout.max_response_tokens,
        optimizer_steps_per_step=optimizer_steps,
        optimizer_steps_in_all=optimizer_steps * config.run.steps,
        completions_per_mini_batch=per_mini,
        sequences_per_micro_batch=per_micro,
        max_micro_batches_per_rank=ceil(ceil(per_mini / learner.ranks) / per_micro),
    )


def run_schedule(config: Config) -> RunSchedule:
    """Derive at which steps checkpoints are taken and jumps are tried, as if every gate refused (a jump starts the count anew)."""
    plan, steps = config.extrapolation, config.run.steps
    due = Schedule(plan, steps)
    candidates = len(plan.proposals)
    paired = plan.gate.kind == "paired"
    return RunSchedule(
        checkpoint_steps=tuple(step for step in range(1, steps + 1) if due.checkpoint_due(step, 0)),
        jump_steps=tuple(step for step in range(1, steps + 1) if due.attempt_due(Progress(step=step))),
        first_jump_step=plan.interval_steps * plan.checkpoints,
        num_candidates=candidates,
        gate_completions=num_evaluations(candidates, config.data.gate_prompts, plan.gate.screening) * plan.gate.samples if paired else 0,
        evaluation_completions=config.data.test_prompts * config.evaluation.samples,
    )


def engine_bundle(config: Config, *, on_gpu: bool) -> dict[str, float]:
    """One engine's bundle. On CPU it is one core whatever its threads: rollout and update take turns."""
    return {"CPU": 1, "GPU": config.rollout.tensor_parallel_size} if on_gpu else {"CPU": 1}


def learner_bundle(*, on_gpu: bool) -> dict[str, float]:
    """One learner rank's bundle."""
    return {"CPU": 1, "GPU": 1} if on_gpu else {"CPU": 1}


def delta_bundle(config: Config) -> dict[str, float]:
    """One delta worker's bundle: its share of a GPU where it wants one, else nothing."""
    plan = config.extrapolation
    return {"GPU": plan.gpus_per_delta_worker} if plan.enabled and plan.gpus_per_delta_worker > 0 else {}


def placement(config: Config, *, on_gpu: bool) -> tuple[Placed, ...]:
    """What the run asks of the cluster, actor by actor."""
    cluster = config.cluster
    engine, learner = engine_bundle(config, on_gpu=on_gpu), learner_bundle(on_gpu=on_gpu)
    rows = [
        Placed("rollout engine (a group each)", config.rollout.engines, engine, cluster.engine_labels),
        Placed("learner rank (one gang)", config.learner.ranks, learner, cluster.learner_labels),
        Placed(f"verifier, {config.reward.workers} process(es) each", config.reward.actors, {}, {}),
        Placed("checkpoint archive", 1, {}, {}),
    ]
    if config.extrapolation.enabled:
        rows.append(Placed("delta worker", config.extrapolation.delta_workers, delta_bundle(config), {}))
        rows.append(Placed("predictor", 1, {}, {}))
    return tuple(rows)


def engine_memory(config: Config, facts: ModelFacts, *, on_gpu: bool) -> tuple[Memory, ...]:
    """Memory of one device of a rollout engine: its share of weights, adapter slots and key-value cache.

    On CPU the cache is the configured size; on GPU vLLM takes all that `gpu_memory_utilization` leaves, so the least it needs is
    given: one full sequence. Workspace and CUDA graphs are not included.
    """
    rollout, width = config.rollout, width_of(config.rollout.dtype)
    spans = rollout.tensor_parallel_size
    adapters = adapter_slots(config)
    slot = facts.lora_parameters(lora_slot_rank(config), config.learner.lora.target_modules) * width
    if on_gpu:
        sequence = config.data.max_prompt_tokens + rollout.max_response_tokens
        cache = Memory(f"key-value cache of one full sequence ({sequence:,} tokens)", sequence * kv_bytes_per_token(facts, width) / spans)
    else:
        cache = Memory("key-value cache (rollout.kv_cache_gib)", rollout.kv_cache_gib * 2**30)
    slots = Memory(f"{adapters} adapter slot{'s' if adapters > 1 else ''} of rank {lora_slot_rank(config)}", adapters * slot / spans)
    return (Memory("weights", facts.num_parameters * width / spans), *((slots,) if adapters else ()), cache)


def adapter_slots(config: Config) -> int:
    """Adapters an engine holds at once: the one in force and all candidates, or what the final evaluation compares.

    Beside them those that requests in flight were begun under: one for every update that they may lie behind, or, where they are begun
    anew, the one in force before it was loaded again. Where all weights are trained the candidates alone, beside the weights.
    """
    candidates = run_schedule(config).num_candidates if config.extrapolation.enabled else 0
    if config.learner.mode == "full":
        return candidates
    in_use = config.rollout.max_staleness if config.rollout.in_flight == "finish" else min(1, config.rollout.max_staleness)
    return in_use + max(4, 1 + candidates)


def advice(config: Config) -> tuple[str, ...]:
    """What a configuration allows and its user may not have meant."""
    ahead = config.rollout.max_staleness
    if not ahead or config.algorithm.correction != "none":
        return ()
    return (
        f"Completions may be {ahead} update{'s' if ahead > 1 else ''} old (rollout.max_staleness) and are trained on as if they were the "
        "policy's own (algorithm.correction: none). algorithm.correction=token-tis weighs their tokens by how likely they still are.",
    )


def widest_adapter(config: Config) -> int:
    """The largest rank an engine must serve: candidates are recompressed to twice the trained one, or go beside full weights."""
    if config.learner.mode == "full":
        return FULL_PROBE_RANK
    return config.learner.lora.rank * (2 if config.extrapolation.enabled else 1)


def lora_slot_rank(config: Config) -> int:
    """The smallest `max_lora_rank` of vLLM that holds the widest adapter."""
    return next((rank for rank in LORA_RANKS if rank >= widest_adapter(config)), LORA_RANKS[-1])


def kv_bytes_per_token(facts: ModelFacts, width: int) -> int:
    """Keys and values of one token over all layers, in bytes."""
    return 2 * facts.num_layers * facts.kv_size * width


def learner_memory(config: Config, facts: ModelFacts) -> tuple[Memory, ...]:
    """Memory of one learner rank; ZeRO 1 divides masters and moments by the ranks, 2 gradients too, 3 weights too."""
    learner, width = config.learner, width_of(config.learner.dtype)
    shares = [learner.ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)]
    return (
        *(_full_memory(config, facts, shares) if learner.mode == "full" else _adapter_memory(config, facts, shares)),
        Memory("activations of a full micro batch", learner.micro_batch_tokens * activation_bytes_per_token(config, facts)),
        Memory("logits and their gradient", learner.micro_batch_tokens * facts.vocab_size * (width + 2 * 4)),
    )


def _adapter_memory(config: Config, facts: ModelFacts, shares: Sequence[int]) -> tuple[Memory, ...]:
    learner, width = config.learner, width_of(config.learner.dtype)
    adapter = facts.lora_parameters(learner.lora.rank, learner.lora.target_modules)
    return (
        Memory("base weights, frozen", facts.num_parameters * width / shares[2]),
        Memory("adapter", adapter * width / shares[2]),
        Memory("adapter gradients, float32", adapter * 4 / shares[1]),
        Memory("adapter masters and Adam moments, float32", adapter * 12 / shares[0]),
    )


def _full_memory(config: Config, facts: ModelFacts, shares: Sequence[int]) -> tuple[Memory, ...]:
    """In float32 the weights are their own masters at stage 0."""
    learner, width, num = config.learner, width_of(config.learner.dtype), facts.num_parameters
    own_masters = learner.dtype == "float32" and learner.zero_stage == 0
    reference = (Memory("frozen base weights for the KL term", num * width),) if config.algorithm.kl_coef > 0 else ()
    return (
        Memory("weights", num * width / shares[2]),
        Memory("gradients, float32", num * 4 / shares[1]),
        Memory("masters and Adam moments, float32", num * (8 if own_masters else 12) / shares[0]),
        *reference,
    )


def delta_memory(config: Config, facts: ModelFacts) -> tuple[Memory, ...]:
    """Memory of one delta worker: of its GPU where it has a share of one, else of the host.

    On a GPU a module is in work at a time, with its origin, previous and current checkpoint in float64. On a CPU a portion of the
    modules is, with deltas of 5R columns; the factors that a worker remembers are in the host's memory in both cases.
    """
    plan, lora = config.extrapolation, config.learner.lora
    if delta_bundle(config) and config.learner.mode == "lora":
        longest = max((shape.out_features + shape.in_features for shape in facts.targeted(lora.target_modules)), default=0)
        return (Memory("three checkpoints of the largest module, float64", 8 * 3 * lora.rank * longest),)
    if config.learner.mode == "full":
        largest = max((shape.out_features * shape.in_features for shape in facts.targeted("all-linear")), default=0)
        return (Memory("four matrices of the largest module, float32", 16 * largest),)
    share = facts.lora_parameters(lora.rank, lora.target_modules) / plan.delta_workers
    return (
        Memory(f"factors of the last {plan.horizon + 1} checkpoints, float32", 4 * (plan.horizon + 1) * share),
        Memory("deltas in work, float64, and their copies by shape", 2 * min(8 * 5 * share, GRAM_BATCH_BYTES)),
    )


def activation_bytes_per_token(config: Config, facts: ModelFacts) -> float:
    """Bytes kept for the backward pass, per token, without attention matrices (fused attention).

    A layer keeps two norms (input and output, one of them in float32), queries, keys, values, the attention's output, the inputs of
    each adapter and the four inner tensors of a gated MLP. With gradient checkpointing: every layer's input, and one whole layer.
    """
    width, rank = width_of(config.learner.dtype), config.learner.lora.rank
    per_layer = facts.hidden_size * (8 * width + 2 * 4) + (3 * facts.kv_size + 4 * facts.intermediate_size) * width + 7 * rank * width
    if config.learner.gradient_checkpointing:
        return facts.num_layers * facts.hidden_size * width + per_layer
    return facts.num_layers * per_layer
