"""How long engines sample: a roofline of arithmetic and memory traffic for every token, over a batch that shrinks at its end."""

from __future__ import annotations

from dataclasses import dataclass

from next_ray.config import Config
from next_ray.estimate import adapter_slots, kv_bytes_per_token, lora_slot_rank, width_of
from next_ray.model_facts import ModelFacts
from next_ray.planning.devices import DEVICES_PER_NODE, Device
from next_ray.planning.rates import Rates
from next_ray.planning.workload import Workload
from next_ray.rollout.spec import CPU_BLOCK_TOKENS

GPU_BLOCK_TOKENS = 16
"""vLLM's own choice: a prompt's full blocks are computed once for its samples."""
LATENCY_S = 20e-6
"""Assumed: what an all-reduce over an engine's devices takes at least; there are two a layer."""
WORKSPACE_BYTES = 3 * 10**9
"""Assumed: what vLLM keeps beside weights, adapters and cache on a GPU: activations, CUDA graphs, the context."""
TAIL_POINTS = 24
"""Batch sizes for which the end of a batch is computed."""


@dataclass(frozen=True)
class Sampled:
    """Seconds, and what they were mostly bound by."""

    seconds: float
    bound: str


@dataclass(frozen=True)
class EngineModel:
    """One engine: a model on `spans` devices, with room for `slots` sequences at once."""

    config: Config
    facts: ModelFacts
    device: Device
    spans: int
    slots: int

    @property
    def rates(self) -> Rates:
        """Of its devices."""
        return self.device.rates

    @property
    def _width(self) -> int:
        return width_of(self.config.rollout.dtype)

    @property
    def _threads(self) -> int:
        return 1 if self.device.is_gpu else self.config.rollout.threads

    @property
    def _adapter(self) -> int:
        lora = self.config.learner.lora
        return self.facts.lora_parameters(lora.rank, lora.target_modules) if self.config.learner.mode == "lora" else 0

    def token_s(self, batch: float, context: float) -> dict[str, float]:
        """Seconds for one token of `batch` sequences with so many tokens before it, by what they are spent on."""
        facts, rates, device, spans = self.facts, self.rates, self.device, self.spans
        weights = facts.linear_parameters + facts.head_parameters + self._adapter
        arithmetic = batch * (2 * weights + 4 * facts.num_layers * facts.query_size * context)
        traffic = self._width * weights + batch * context * kv_bytes_per_token(facts, self._width)
        compute_s = arithmetic / (spans * self._threads * device.flops_per_s * rates.decode)
        memory_s = traffic / (spans * device.bytes_per_s * rates.bandwidth)
        return {
            "memory bandwidth" if memory_s > compute_s else "arithmetic": max(memory_s, compute_s),
            "the engine's own bookkeeping": rates.token_s + rates.layer_token_s * facts.num_layers + rates.sequence_token_s * batch,
            "links between the engine's devices": self._links_s(batch),
        }

    def _links_s(self, tokens: float) -> float:
        """All-reduces of `tokens` hidden states, two a layer."""
        if self.spans == 1:
            return 0.0
        moved = 2 * (self.spans - 1) / self.spans * tokens * self.facts.hidden_size * self._width
        return 2 * self.facts.num_layers * (LATENCY_S + moved / self.device.link_bytes_per_s)

    def prefill_s(self, prompts: float, samples: int, prompt_tokens: float) -> float:
        """Seconds to read prompts; full blocks of a prompt once, the rest once for every sample."""
        block = GPU_BLOCK_TOKENS if self.device.is_gpu else CPU_BLOCK_TOKENS
        shared = int((prompt_tokens - 1) // block) * block
        tokens = prompts * (shared + samples * (prompt_tokens - shared))
        attention = 2 * self.facts.num_layers * self.facts.query_size * prompt_tokens
        arithmetic = tokens * (2 * (self.facts.linear_parameters + self._adapter) + attention)
        return arithmetic / (self.spans * self._threads * self.device.flops_per_s * self.rates.prefill) + self._links_s(tokens)

    def sample_s(self, prompts: float, samples: int, work: Workload) -> Sampled:
        """Seconds from the first prompt to the last token of one engine's share: full slots while there is enough to do, then the tail."""
        if prompts <= 0:
            return Sampled(0.0, "nothing")
        num = prompts * samples
        spent = {"reading prompts": self.prefill_s(prompts, samples, work.prompt_tokens)}
        last = min(num, self.slots)
        turns = (num - last) * work.response_tokens / self.slots
        _add(spent, self.token_s(self.slots, work.prompt_tokens + work.mean_age), turns)
        points = min(TAIL_POINTS, work.longest_response)
        span = work.longest_response / points
        for i in range(points):
            middle = (i + 0.5) * span
            alive = last * work.surviving(middle)
            steps = span * min(1.0, alive)  # with less than one sequence left: the chance that there is one
            _add(spent, self.token_s(max(1.0, alive), work.prompt_tokens + middle), steps)
        return Sampled(sum(spent.values()), max(spent, key=lambda name: spent[name]))


def _add(spent: dict[str, float], part: dict[str, float], times: float) -> None:
    for name, seconds in part.items():
        spent[name] = spent.get(name, 0.0) + times * seconds


def cache_bytes(config: Config, facts: ModelFacts, device: Device, spans: int) -> float:
    """What is left for keys and values on the engine's devices together; negative where weights and adapters do not fit."""
    if not device.is_gpu:
        return config.rollout.kv_cache_gib * 2**30
    width = width_of(config.rollout.dtype)
    slot = facts.lora_parameters(lora_slot_rank(config), config.learner.lora.target_modules) * width
    usable = spans * (device.memory_bytes * config.rollout.gpu_memory_utilization - WORKSPACE_BYTES)
    return usable - facts.num_parameters * width - adapter_slots(config) * slot


def slots_for(config: Config, facts: ModelFacts, left: float, work: Workload) -> int:
    """Sequences at once: as many as `rollout.max_num_seqs` allows and the cache holds of sequences of mean age; 0 for none."""
    per_token = kv_bytes_per_token(facts, width_of(config.rollout.dtype))
    if left < per_token * (work.prompt_tokens + work.longest_response):
        return 0
    return min(config.rollout.max_num_seqs, int(left / (per_token * (work.prompt_tokens + work.mean_age))))


def can_span(facts: ModelFacts, device: Device, spans: int) -> bool:
    """Whether vLLM can divide the model's heads over so many devices of a node."""
    return spans == 1 or (device.is_gpu and spans <= DEVICES_PER_NODE and facts.num_heads % spans == 0)
