"""Builders for the learner's tests: a tiny random Qwen2, completions, plans, and gangs of processes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from next_ray.config import AlgorithmSection, LearnerSection, LoraSection
from next_ray.learn.packing import Versions, plan_update
from next_ray.learn.spec import LearnerSpec
from next_ray.types import Completion, FinishReason, Group, GroupSize, Prompt, Ref, Shard, UpdatePlan

VOCABULARY = 24
LORA = LoraSection(rank=4, alpha=8.0)


def make_model(folder: Path) -> str:
    """A random two-layer Qwen2 with grouped heads, float32, saved to `folder`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(7)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
        attention_dropout=0.1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def make_groups(num_prompts: int = 6, num_samples: int = 4, version: int = 3, seed: int = 0) -> list[Group]:
    """Random prompts and completions of different lengths; log-probs near those of a uniform policy."""
    rng = np.random.default_rng(seed)
    groups = []
    for p in range(num_prompts):
        completions = []
        for _ in range(num_samples):
            ids = rng.integers(0, VOCABULARY, rng.integers(1, 8)).astype(np.int32)
            logprobs = rng.normal(-3.0, 0.3, len(ids)).astype(np.float32)
            completions.append(Completion(ids, logprobs, "", FinishReason.STOP, version))
        prompt_ids = rng.integers(0, VOCABULARY, rng.integers(1, 9)).astype(np.int32)
        groups.append(Group(Prompt(str(p), ({"role": "user", "content": "?"},), "", "exact"), prompt_ids, tuple(completions)))
    return groups


def shard_of(groups: Sequence[Group]) -> Shard:
    sizes = tuple(
        GroupSize(
            prompt_tokens=len(g.prompt_token_ids),
            completion_tokens=tuple(len(c.token_ids) for c in g.completions),
            versions=tuple(c.version for c in g.completions),
            truncated=tuple(False for _ in g.completions),
        )
        for g in groups
    )
    return Shard(Ref(list(groups)), sizes)


def make_advantages(groups: Sequence[Group], seed: int = 1) -> list[tuple[float, ...]]:
    """Mixed signs; every third sample has none, and so has the whole second group."""
    rng = np.random.default_rng(seed)
    table = [[0.0 if (i + j) % 3 == 0 or i == 1 else float(rng.normal()) for j in range(len(g.completions))] for i, g in enumerate(groups)]
    return [tuple(row) for row in table]


def make_plan(
    groups: Sequence[Group], ranks: int, mini: int | None = None, budget: int = 4096, drop: bool = True, advantages: Any = None
) -> UpdatePlan:
    """One shard per half of the groups, to exercise indices across shards."""
    half = len(groups) // 2
    shards = [shard_of(groups[:half]), shard_of(groups[half:])]
    return plan_update(shards, advantages or make_advantages(groups), Versions(3, 3), ranks, mini, budget, drop)


def resolved(plan: UpdatePlan) -> list[list[Group]]:
    return [ref.value for ref in plan.shards]


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports that are free now; all are held until the last is found."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def make_spec(model_path: str, rank: int = 0, world_size: int = 1, port: int | None = None, **overrides: Any) -> LearnerSpec:
    """Float32, stage 0, rate 1e-2 unless overridden; `learner` and `algorithm` take dicts of section fields."""
    learner = {"lora": LORA, "dtype": "float32", "lr": 1e-2, "max_grad_norm": 0.5} | overrides.pop("learner", {})
    fields: dict[str, Any] = {
        "model_path": model_path,
        "learner": LearnerSection(**learner),
        "algorithm": AlgorithmSection(**overrides.pop("algorithm", {})),
        "temperature": 0.8,
        "max_response_tokens": 8,
        "seed": 5,
        "rank": rank,
        "world_size": world_size,
        "master_addr": "127.0.0.1",
        "master_port": port or free_port(),
        "total_optimizer_steps": 10,
        "device": "cpu",
        "deterministic": True,
    }
    return LearnerSpec(**(fields | overrides))


def run_gang(world_size: int, job: Callable[..., None], *args: Any) -> None:
    """Run `job(rank, world_size, *args)` in `world_size` fresh processes; the first failure is raised here."""
    from torch.multiprocessing.spawn import spawn

    spawn(_entry, args=(world_size, job, args), nprocs=world_size, join=True)


def _entry(rank: int, world_size: int, job: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    job(rank, world_size, *args)
