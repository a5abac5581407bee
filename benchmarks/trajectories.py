"""Trajectories to fit: the tiny model under reinforcement learning, and a synthetic one of the width of a real model.

Shape legend: O/I out/in features, R rank, B sequences, T tokens.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from next_ray.config import ModelSection
from next_ray.models.resolve import prepare_model
from next_ray.models.tiny import CHARACTERS, train
from next_ray.models.tiny_spec import TinySpec
from next_ray.types import LoraFactors

Checkpoints = list[dict[str, LoraFactors]]

PROMPTS = 16
"""Problems of one update."""

SAMPLES = 8
"""Answers of a problem: a group."""

ANSWER_TOKENS = 4
"""Three digits and the end."""


def tiny_under_rl(count: int, interval: int, seed: int, rank: int = 16, lr: float = 5e-4) -> tuple[Checkpoints, list[float]]:
    """GRPO on sums of two two-digit numbers, on-policy, LoRA on all linear layers; adapters and mean reward per interval.

    Each update samples `SAMPLES` answers to `PROMPTS` problems at temperature 1; the reward is 1 for the right sum, the advantage
    (R - mean) / (std + 1e-6) of its group, the loss the mean over tokens of -advantage * log probability (AdamW).
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def make(spec: TinySpec, folder: Path) -> None:
        train(spec, folder, lambda _: None)

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(prepare_model(ModelSection(), make).path, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank // 2, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    draw = random.Random(seed)
    checkpoints: Checkpoints = []
    rewards: list[list[float]] = []
    for step in range(count * interval):
        problems = [(draw.randrange(10, 90), draw.randrange(10, 90)) for _ in range(PROMPTS)]
        prompts = torch.tensor([_ids(f"{a}+{b}=") for a, b in problems]).repeat_interleave(SAMPLES, dim=0)
        tokens = _sampled(model, prompts)
        reward = torch.tensor(
            [float(_text(row) == str(a + b)) for row, (a, b) in zip(tokens[:, prompts.shape[1] :], _each(problems), strict=True)]
        )
        groups = reward.view(PROMPTS, SAMPLES)
        advantage = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).flatten()
        answers = tokens[:, prompts.shape[1] :]
        logprobs = model(input_ids=tokens[:, :-1]).logits[:, prompts.shape[1] - 1 :].log_softmax(-1)
        chosen = logprobs.gather(-1, answers[:, :, None])[:, :, 0]
        mask = (torch.cumsum(answers == 2, dim=1) - (answers == 2).long()) == 0
        loss = -(advantage[:, None] * chosen * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % interval == 0:
            rewards.append([])
        rewards[-1].append(float(reward.mean()))
        if (step + 1) % interval == 0:
            checkpoints.append(_factors(model))
    return checkpoints, [float(np.mean(values)) for values in rewards]


def synthetic(count: int, shapes: dict[str, tuple[int, int]], seed: int, rank: int = 16) -> Checkpoints:
    """Drift that saturates at a pace of its own per direction, and a random walk, on a fixed A: B_t = sum_j g_j(t) b_j e_j^T + noise."""
    rng = np.random.default_rng(seed)
    made: dict[str, list[LoraFactors]] = {}
    for name, (out_features, in_features) in shapes.items():
        a = rng.uniform(-1, 1, (rank, in_features)) / np.sqrt(in_features)
        size = 1e-3 * rng.normal(size=(out_features, rank)) * np.exp(-np.arange(rank) / 2)
        pace = rng.uniform(5, 40, rank)
        walk = np.cumsum(2e-5 * rng.normal(size=(count, out_features, rank)), axis=0)
        made[name] = [
            LoraFactors(a.astype(np.float32), (size * (1 - np.exp(-t / pace)) + walk[t - 1]).astype(np.float32), 0.5)
            for t in range(1, count + 1)
        ]
    return [{name: factors[t] for name, factors in made.items()} for t in range(count)]


def _sampled(model: Any, prompts: torch.Tensor) -> torch.Tensor:
    """Prompts with `ANSWER_TOKENS` sampled tokens behind them, int64 [B, T]."""
    tokens = prompts
    with torch.no_grad():
        for _ in range(ANSWER_TOKENS):
            probabilities = model(input_ids=tokens).logits[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(probabilities, 1)], dim=1)
    return tokens


def _each(problems: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [problem for problem in problems for _ in range(SAMPLES)]


def _ids(text: str) -> list[int]:
    return [1, *(4 + CHARACTERS.index(c) for c in text)]


def _text(row: torch.Tensor) -> str:
    """The characters before the end token."""
    ids = row.tolist()
    ids = ids[: ids.index(2)] if 2 in ids else ids
    return "".join(CHARACTERS[i - 4] if i >= 4 else "?" for i in ids)


def _factors(model: Any) -> dict[str, LoraFactors]:
    return {
        name.removeprefix("base_model.model."): LoraFactors(
            module.lora_A["default"].weight.detach().numpy().copy(),
            module.lora_B["default"].weight.detach().numpy().copy(),
            float(module.scaling["default"]),
        )
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
