"""Supervised fine-tuning on DeepSpeed: one rank of it. Plain Python, no Ray.

Shape legend: T tokens of a demonstration, N completion tokens of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from next_ray.config.warmstart import FineTuningSection
from next_ray.errors import ModelError, TrainingError
from next_ray.learn.attention import register_short_causal
from next_ray.learn.batches import token_batch
from next_ray.learn.engine import quiet, start_engine
from next_ray.learn.lora import add_adapter, initial_weights, lora_parameters
from next_ray.learn.masters import open_masters
from next_ray.learn.policy import Policy
from next_ray.learn.schedule import Rewarm, learning_rate

Pair = tuple[np.ndarray, np.ndarray]
"""Token ids int [T] of a prompt and of its completion."""
Report = Callable[[Mapping[str, float]], None]
REPORTS = 20
"""About how many lines of training loss a job gives."""


@dataclass(frozen=True)
class SupervisedSpec:
    """What a rank needs; all ranks get the same but for `rank` and `gpu`, the rank's GPU by index. `model_path` is a local folder."""

    model_path: str
    training: FineTuningSection
    seed: int
    rank: int
    world_size: int
    device: Literal["cpu", "gpu"]
    deterministic: bool
    gpu: int = 0
    trust_remote_code: bool = False


@dataclass
class Trained:
    """What came out: float32 weights by name (LoRA: `<module>.lora_A|lora_B`), and the held-out loss at 0, each epoch and the end."""

    weights: dict[str, Tensor]
    steps: int
    held_out: list[tuple[int, float]] = field(default_factory=list)


def num_steps(count: int, training: FineTuningSection) -> int:
    """Optimizer steps of a job over `count` demonstrations; the last batch of an epoch may be smaller."""
    per_epoch = -(-count // training.batch_size)
    return min(training.max_steps or training.epochs * per_epoch, training.epochs * per_epoch)


def batches(count: int, training: FineTuningSection, seed: int) -> Iterator[np.ndarray]:
    """The indices of each optimizer step's demonstrations; every epoch is a permutation drawn from seed and epoch."""
    for epoch in range(training.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        yield from (order[start : start + training.batch_size] for start in range(0, count, training.batch_size))


def micro_batches(lengths: Sequence[int], rank: int, world_size: int, budget: int) -> list[list[int]]:
    """This rank's micro batches of positions in `lengths`, longest first; padded tokens within `budget`, as many on every rank.

    Ranks are dealt the sorted sequences in turn. One that has fewer micro batches gets empty ones: collectives need company.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    cut = [_cut(order[r::world_size], lengths, budget) for r in range(world_size)]
    most = max(len(parts) for parts in cut)
    return cut[rank] + [[]] * (most - len(cut[rank]))


def _cut(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    parts: list[list[int]] = []
    start = 0
    while start < len(order):
        count = max(1, budget // lengths[order[start]])
        parts.append(list(order[start : start + count]))
        start += count
    return parts


def fit(spec: SupervisedSpec, train: Sequence[Pair], held_out: Sequence[Pair], report: Report) -> Trained:
    """Fine-tune on all ranks together; the process group must exist (`join_process_group`).

    The loss is the mean negative log-likelihood of completion tokens, over all ranks and micro batches of an optimizer step.
    `report` gets `{step, loss, lr}` now and then and `{step, held_out_loss}` before the first step, after each epoch and at the end,
    the same on every rank. Raises `ModelError`, `ConfigError`, and `TrainingError` when the loss is not finite.
    """
    job = _Job(spec)
    try:
        total = num_steps(len(train), spec.training)
        per_epoch = -(-len(train) // spec.training.batch_size)
        trained = Trained({}, total)
        for step, chosen in enumerate(batches(len(train), spec.training, spec.seed)):
            if step % per_epoch == 0 or step == total:
                _held_out(job, held_out, step, trained, report)
            if step == total:
                break
            lr = learning_rate(step, total, job.optimizer, Rewarm())
            loss = job.step([train[i] for i in chosen], lr)
            if not np.isfinite(loss):
                raise TrainingError(
                    f"The loss is {loss} at step {step + 1} of {total} of the supervised fine-tuning. Lower training.lr "
                    f"({spec.training.lr}), or look for broken demonstrations."
                )
            if (step + 1) % max(1, total // REPORTS) == 0 or step + 1 == total:
                report({"step": step + 1, "loss": loss, "lr": lr})
        if trained.held_out[-1][0] != total:
            _held_out(job, held_out, total, trained, report)
        trained.weights = job.weights()
        return trained
    finally:
        job.close()


def _held_out(job: _Job, held_out: Sequence[Pair], step: int, trained: Trained, report: Report) -> None:
    loss = job.loss_of(held_out)
    trained.held_out.append((step, loss))
    report({"step": step, "held_out_loss": loss})


class _Job:
    """The model and its engine on one rank; every method but `close` is collective."""

    def __init__(self, spec: SupervisedSpec) -> None:
        self.spec, self.optimizer = spec, spec.training.optimizer()
        self._device = torch.device("cpu" if spec.device == "cpu" else f"cuda:{spec.gpu}")
        if spec.device == "cpu":
            torch.set_num_threads(spec.training.threads)
        else:
            torch.cuda.set_device(self._device)
        if spec.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        with quiet():
            model = _load(spec)
            if spec.training.parameters == "lora":
                model = add_adapter(model, spec.training.lora)
                parameters = lora_parameters(model)
            else:
                parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
            if spec.training.gradient_checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            shapes = {name: tuple(p.shape) for name, p in parameters.items()}
            # Dropout is off everywhere; only checkpointing asks for training mode.
            policy = Policy(model, temperature=1.0).train(spec.training.gradient_checkpointing)
            self._engine = start_engine(policy, self.optimizer)
        self._masters = open_masters(self._engine, parameters, spec.training.zero_stage)
        if spec.training.parameters == "lora":
            self._masters.write_weights(initial_weights(shapes, spec.seed))

    def step(self, pairs: Sequence[Pair], lr: float) -> float:
        """One optimizer step; the mean loss of its completion tokens before it."""
        num_tokens = sum(len(completion) for _, completion in pairs)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for part in self._parts(pairs):
            loss = self._loss(part) / num_tokens
            total += loss.detach()
            # DeepSpeed averages gradients over ranks; the denominator is global already, so the sum is wanted.
            self._engine.backward(loss * self.spec.world_size)
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return self._sum(total)

    @torch.no_grad()
    def loss_of(self, pairs: Sequence[Pair]) -> float:
        """Mean negative log-likelihood of the completions' tokens."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for part in self._parts(pairs):
            total += self._loss(part)
        return self._sum(total) / sum(len(completion) for _, completion in pairs)

    def weights(self) -> dict[str, Tensor]:
        """The float32 master weights, on every rank's CPU."""
        return self._masters.weights()

    def close(self) -> None:
        """Free the engine."""
        self._engine.destroy()

    def _parts(self, pairs: Sequence[Pair]) -> list[list[Pair]]:
        lengths = [len(prompt) + len(completion) for prompt, completion in pairs]
        parts = micro_batches(lengths, self.spec.rank, self.spec.world_size, self.spec.training.micro_batch_tokens)
        return [[pairs[i] for i in part] for part in parts]

    def _loss(self, pairs: Sequence[Pair]) -> Tensor:
        """Summed negative log-likelihood; an empty micro batch runs one token for company and counts nothing."""
        one = np.zeros(1, np.int64)
        prompts, completions = zip(*pairs, strict=True) if pairs else ((one,), (one,))
        tokens = token_batch(prompts, completions, self._device)
        forward = self._engine if torch.is_grad_enabled() else self._engine.module
        logprobs, _ = forward(tokens)
        return -logprobs.sum() if pairs else 0.0 * logprobs.sum()

    def _sum(self, value: Tensor) -> float:
        if self.spec.world_size > 1:
            torch.distributed.all_reduce(value)
        return float(value)


def _load(spec: SupervisedSpec) -> Any:
    """The model without dropout. No mask is ever passed: right padding and causality keep padding out of every token that counts."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention = register_short_causal() if spec.device == "cpu" else "sdpa"
    dtype = torch.bfloat16 if spec.training.dtype == "bfloat16" else torch.float32
    trust = spec.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(spec.model_path, trust_remote_code=trust)
        for key, value in config.to_dict().items():
            if key.endswith(("dropout", "pdrop")) and isinstance(value, float):
                setattr(config, key, 0.0)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            spec.model_path,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=trust,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"The model at {spec.model_path!r} cannot be loaded for fine-tuning: {error}") from error
    return model
