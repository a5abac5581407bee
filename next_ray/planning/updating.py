"""How long an update takes: 6 operations a parameter and token for full weights, 4 with an adapter, and what they wait for."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from next_ray.config import Config
from next_ray.estimate import batch_sizes, width_of
from next_ray.learn.packing import SHORT_TOKENS
from next_ray.model_facts import ModelFacts
from next_ray.planning.devices import DEVICES_PER_NODE, NETWORK_BYTES_PER_S, Device
from next_ray.planning.workload import Workload


@dataclass(frozen=True)
class Updated:
    """Seconds of an RL step's update, what bounds them, and the micro batches of a rank in an optimizer step."""

    seconds: float
    bound: str
    micro_batches: int


def update_s(config: Config, facts: ModelFacts, device: Device, work: Workload) -> Updated:
    """An RL step's update over `learner.ranks` devices. The busiest rank counts, and all of its sequences are of mean length."""
    learner, rates = config.learner, device.rates
    sizes, threads = batch_sizes(config), 1 if device.is_gpu else learner.threads
    per_rank = ceil(sizes.completions_per_mini_batch * work.signal / learner.ranks)
    length = work.prompt_tokens + work.response_tokens
    per_micro = max(1, int(learner.micro_batch_tokens / length))
    micro_batches = ceil(per_rank / per_micro)
    prompts = micro_batches * _prompts_in(config, min(per_rank, per_micro), work)
    operations = _operations(config, facts, work, per_rank, prompts)
    steps = sizes.optimizer_steps_per_step
    ratios = (steps - 1) / steps * _forward(facts, work, per_rank, prompts)  # log-probabilities before the first step, for all but it
    overhead = rates.update_s + micro_batches * facts.num_layers * rates.layer_s
    compute = (operations + ratios) / (threads * device.flops_per_s * rates.update) + overhead
    gathered, reduced = _moved_s(config, facts, device, micro_batches)
    parts = {"arithmetic": compute, "gathering weights (ZeRO 3)": gathered}
    return Updated(steps * (max(parts.values()) + reduced), max(parts, key=lambda name: parts[name]), micro_batches)


def _prompts_in(config: Config, sequences: float, work: Workload) -> float:
    """Different prompts in a micro batch: short samples are laid beside each other by prompt, long ones by length alone."""
    if config.data.max_prompt_tokens + work.longest_response <= SHORT_TOKENS:
        return max(1.0, sequences / config.rollout.samples_per_prompt)
    groups = max(1.0, batch_sizes(config).completions_per_mini_batch / config.rollout.samples_per_prompt * work.signal)
    return groups * (1 - (1 - 1 / groups) ** sequences)


def _forward(facts: ModelFacts, work: Workload, sequences: float, prompts: float) -> float:
    """Operations of a forward pass: every layer for all tokens, the output head for the completions' alone, and causal attention."""
    tokens = prompts * work.prompt_tokens + sequences * work.response_tokens
    length = work.prompt_tokens + work.response_tokens
    attention = 2 * facts.num_layers * facts.query_size * sequences * length * length
    return 2 * facts.linear_parameters * tokens + 2 * facts.head_parameters * sequences * work.response_tokens + attention


def _operations(config: Config, facts: ModelFacts, work: Workload, sequences: float, prompts: float) -> float:
    """Forward and backward, what checkpointing computes again, and the reference's forward pass of a KL term."""
    learner = config.learner
    forward = _forward(facts, work, sequences, prompts)
    tokens = prompts * work.prompt_tokens + sequences * work.response_tokens
    passes = (3.0 if learner.mode == "full" else 2.0) + learner.gradient_checkpointing + (config.algorithm.kl_coef > 0)
    attention = 2 * facts.num_layers * facts.query_size * sequences * (work.prompt_tokens + work.response_tokens) ** 2
    adapter = facts.lora_parameters(learner.lora.rank, learner.lora.target_modules) if learner.mode == "lora" else 0
    frozen = attention if learner.mode == "lora" else 0.0  # attention has no weights: its backward pass is two forward passes in any case
    return passes * forward + frozen + 6 * adapter * tokens


def _moved_s(config: Config, facts: ModelFacts, device: Device, micro_batches: int) -> tuple[float, float]:
    """Seconds of an optimizer step for gathering weights, beside the arithmetic, and for reducing gradients, behind it."""
    learner = config.learner
    if learner.ranks == 1:
        return 0.0, 0.0
    speed = device.link_bytes_per_s if learner.ranks <= DEVICES_PER_NODE else min(NETWORK_BYTES_PER_S, device.link_bytes_per_s)
    others = (learner.ranks - 1) / learner.ranks
    trained = facts.num_parameters if learner.mode == "full" else facts.lora_parameters(learner.lora.rank, learner.lora.target_modules)
    passes = 2 + learner.gradient_checkpointing
    gathered = passes * micro_batches * facts.num_parameters * width_of(learner.dtype) * others / speed if learner.zero_stage == 3 else 0.0
    return gathered, 2 * 4 * trained * others / speed
