"""One rank of the learner gang: policy-gradient updates of a LoRA adapter or of all weights on DeepSpeed. Plain Python, no Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from next_ray.learn.batches import TrainingBatch, training_batch
from next_ray.learn.engine import join_process_group, leave_process_group, quiet, start_engine
from next_ray.learn.losses import Denominators, kl_penalty, token_weights
from next_ray.learn.masters import Masters, open_masters
from next_ray.learn.meter import Meter
from next_ray.learn.objective import Inputs, micro_batch_loss, sums_to_go, whitened
from next_ray.learn.packing import Versions
from next_ray.learn.policy import Policy, PolicySpec, load_policy
from next_ray.learn.schedule import Rewarm, learning_rate
from next_ray.learn.spec import LearnerSpec
from next_ray.learn.state import Progress, progress_of
from next_ray.learn.trained import Trained, TrainedAdapter, TrainedWeights
from next_ray.types import Adapter, Group, LearnerState, MicroBatch, MiniBatch, UpdatePlan, Weights

__all__ = ["DeepSpeedLearner", "LearnerSpec", "Progress"]


@dataclass(frozen=True)
class _Step:
    """One micro batch ready to run: its data, weights [N] of its tokens and old log-probs [N] (None: the current ones).

    `kl` [N] is the KL that has been taken off the rewards.
    """

    batch: TrainingBatch
    weights: Tensor
    old: Tensor | None
    kl: Tensor | None = None


class DeepSpeedLearner:
    """A rank of the gang. Construction, and every method unless it says otherwise, is collective: all ranks must call it."""

    def __init__(self, spec: LearnerSpec) -> None:
        """Join the gang, load the model and start at a fresh adapter; raises `ModelError`, `ConfigError`."""
        self.spec = spec
        self.progress = Progress()
        self._engine: Any = None
        self._device = torch.device("cpu" if spec.device == "cpu" else "cuda:0")
        self._set_up_torch()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _set_up_torch(self) -> None:
        if self.spec.device == "cpu":
            torch.set_num_threads(self.spec.learner.threads)
        if self.spec.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(self.spec.seed)

    def _start(self) -> None:
        spec, cfg = self.spec, self.spec.learner
        join_process_group(spec.rank, spec.world_size, spec.master_addr, spec.master_port, spec.device)
        with quiet():
            self._policy = self._load_policy()
            parameters = self._policy.trained_parameters()
            shapes = {name: tuple(p.shape) for name, p in parameters.items()}
            self._engine = start_engine(self._policy, cfg)
            self._policy.share_prompts(self._device)
            self._frozen = self._load_reference() if cfg.mode == "full" and spec.algorithm.kl_coef > 0 else None
        self._masters: Masters = open_masters(self._engine, parameters, cfg.zero_stage)
        self._trained: Trained = (
            TrainedAdapter(self._masters, shapes, cfg.lora, spec.seed)
            if cfg.mode == "lora"
            else TrainedWeights(self._masters, shapes, spec.engine_dtype, is_first=spec.rank == 0)
        )

    def _load_policy(self) -> Policy:
        spec, cfg = self.spec, self.spec.learner
        return load_policy(
            PolicySpec(
                model_path=spec.model_path,
                lora=cfg.lora if cfg.mode == "lora" else None,
                dtype=torch.bfloat16 if cfg.dtype == "bfloat16" else torch.float32,
                temperature=spec.temperature,
                gradient_checkpointing=cfg.gradient_checkpointing,
                trust_remote_code=spec.trust_remote_code,
                entropy_gradient=spec.algorithm.entropy_coef > 0,
            )
        )

    def _load_reference(self) -> Policy:
        """The base model, frozen: what the KL term is measured from where the trained weights have left it."""
        reference = self._load_policy().requires_grad_(requires_grad=False).eval().to(self._device)
        reference.shares_prompts = self._policy.shares_prompts
        return reference

    def __enter__(self) -> DeepSpeedLearner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine and leave the process group. Idempotent, not collective."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.destroy()
        leave_process_group()

    # Update ---------------------------------------------------------------------------------------------------------------

    def update(self, plan: UpdatePlan, shards: Sequence[Sequence[Group]]) -> dict[str, float]:
        """Run this rank's part of all mini batches; `shards` are the plan's shards, resolved.

        Raises `StaleCompletionError`, before anything is computed, when any completion carries a version that the plan
        does not allow. A mini batch without any signal (all advantages 0, no KL term, no entropy bonus) and one with a loss or gradient
        that is not finite are skipped on all ranks alike and counted. The latter leaves no trace but its count: weights, moments and the
        schedule's position stay, so that a warm-up is not used up by steps that were not made, and its numbers are in no other metric.
        With one mini batch the old log-probabilities are the current ones; with several they are computed before the first step.
        Returns the metrics, equal on all ranks.
        """
        self._check(plan, shards)
        meter, norms, lr = Meter(self._device), [], 0.0
        before = self.progress
        prepared = self._prepare(plan, shards)
        for steps in prepared:
            if steps is None:
                self._count(position=1, skipped_zero=1)
                continue
            lr, own = self._learning_rate(), Meter(self._device)
            for step in steps:
                self._backward(step, own)
            norm = self._optimizer_step(lr)
            if norm is None:
                self._count(skipped_nonfinite=1)
            else:
                meter.include(own)
                norms.append(norm)
                self._count(position=1, optimizer_steps=1)
        metrics = meter.result(len(norms))
        now = self.progress
        return metrics | {
            "grad_norm": sum(norms) / max(1, len(norms)),
            "lr": lr,
            "tokens": float(sum(mini.num_tokens for mini in plan.mini_batches)),
            "optimizer_steps": float(now.optimizer_steps - before.optimizer_steps),
            "skipped_zero": float(now.skipped_zero - before.skipped_zero),
            "skipped_nonfinite": float(now.skipped_nonfinite - before.skipped_nonfinite),
        }

    def _check(self, plan: UpdatePlan, shards: Sequence[Sequence[Group]]) -> None:
        versions = Versions(plan.oldest_version, plan.version)
        for s, groups in enumerate(shards):
            for g, group in enumerate(groups):
                for i, completion in enumerate(group.completions):
                    versions.require(completion.version, f"Completion {i} of group {g} in shard {s}")
        for mini in plan.mini_batches:
            if len(mini.per_rank) != self.spec.world_size:
                raise ValueError(f"the plan is for {len(mini.per_rank)} ranks, the gang has {self.spec.world_size}")

    def _prepare(self, plan: UpdatePlan, shards: Sequence[Sequence[Group]]) -> list[list[_Step] | None]:
        """The micro batches of each mini batch, None for one without signal; old log-probs for all but the first step."""
        algorithm = self.spec.algorithm
        prepared: list[list[_Step] | None] = []
        is_first = True
        for mini in plan.mini_batches:
            if not _has_signal(mini, algorithm.needs_every_sample):
                prepared.append(None)
                continue
            steps = [self._step_of(micro, mini, shards) for micro in mini.per_rank[self.spec.rank]]
            if not is_first:
                steps = [replace(step, old=self._evaluate(step.batch)) for step in steps]
            is_first = False
            prepared.append(steps)
        return self._with_kl_rewards(prepared) if algorithm.has_kl_reward else prepared

    def _step_of(self, micro: MicroBatch, mini: MiniBatch, shards: Sequence[Sequence[Group]]) -> _Step:
        batch = training_batch(micro, shards, self._device)
        whole = Denominators(mini.num_sequences, mini.num_tokens, self.spec.max_response_tokens)
        weights = token_weights(batch.tokens.lengths, self.spec.algorithm.recipe.aggregation, whole)
        return _Step(batch=batch, weights=torch.zeros_like(weights) if batch.is_empty else weights, old=None)

    def _with_kl_rewards(self, prepared: list[list[_Step] | None]) -> list[list[_Step] | None]:
        """Take the KL to come off each token's advantage, and whiten the result over the tokens of all ranks."""
        flat = [step for mini in prepared if mini is not None for step in mini]
        kls = [self._old_kl(step) for step in flat]
        left = [
            s.batch.advantages - self.spec.algorithm.kl_coef * sums_to_go(k, s.batch.tokens.lengths) for s, k in zip(flat, kls, strict=True)
        ]
        white = whitened(left, [not step.batch.is_empty for step in flat], self._device)
        done = iter(replace(s, batch=replace(s.batch, advantages=w), kl=k) for s, w, k in zip(flat, white, kls, strict=True))
        return [None if mini is None else [next(done) for _ in mini] for mini in prepared]

    def _old_kl(self, step: _Step) -> Tensor:
        old = self._evaluate(step.batch) if step.old is None else step.old
        return kl_penalty(old, self._reference(step.batch), self.spec.algorithm.kl_estimator)

    def _reference(self, batch: TrainingBatch) -> Tensor:
        if self._frozen is not None:
            with torch.no_grad():
                return self._frozen(batch.tokens)[0]
        with self._policy.base_model():
            return self._evaluate(batch)

    @torch.no_grad()
    def _evaluate(self, batch: TrainingBatch) -> Tensor:
        return self._engine.module(batch.tokens)[0]

    def _backward(self, step: _Step, meter: Meter) -> None:
        cfg, batch, tokens = self.spec.algorithm, step.batch, step.batch.tokens
        reference = self._reference(batch) if cfg.kl_coef > 0 and not cfg.has_kl_reward else None
        logprobs, entropy = self._engine(tokens)
        old = logprobs.detach() if step.old is None else step.old
        inputs = Inputs(batch.advantages, old, batch.engine_logprobs, step.weights, tokens.lengths, reference)
        outcome = micro_batch_loss(cfg, logprobs, entropy, inputs)
        meter.add(batch, outcome if step.kl is None else replace(outcome, kl=step.kl), entropy, old)
        # DeepSpeed averages gradients over ranks; the denominators are global already, so the sum is wanted. It looks at gradients alone
        # before a step: NaN makes it see a loss that is not finite, on all ranks.
        scale = torch.where(outcome.loss.detach().isfinite(), float(self.spec.world_size), torch.nan)
        self._engine.backward(outcome.loss * scale)

    def _learning_rate(self) -> float:
        rewarm = Rewarm(self.progress.rewarm_start, self.progress.rewarm_steps)
        return learning_rate(self.progress.position, self.spec.total_optimizer_steps, self.spec.learner, rewarm)

    def _optimizer_step(self, lr: float) -> float | None:
        """Apply the gradient; its global norm before clipping, or None when it was not finite and the step was skipped."""
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else None

    def _count(self, **counts: int) -> None:
        """Add to the schedule's clock and the counters."""
        self.progress = replace(self.progress, **{name: getattr(self.progress, name) + count for name, count in counts.items()})

    # State ----------------------------------------------------------------------------------------------------------------

    def policy(self) -> Any:
        """What engines serve: the float32 adapter, on every rank, or an iterator of the weights' parts (`TrainedWeights.policy`)."""
        return self._trained.policy()

    def policy_beside(self, adapter: Adapter) -> Iterator[Weights]:
        """The trained weights with an adapter added, by parts; nothing that is trained changes. Mode full only."""
        assert isinstance(self._trained, TrainedWeights)
        return self._trained.beside(adapter)

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(O, I) of every layer that an adapter may be for."""
        return {name: (layer.out_features, layer.in_features) for name, layer in self._policy.linear_layers().items()}

    def snapshot(self) -> LearnerState:
        """Everything that `restore` needs, unpartitioned."""
        scalars = {name: float(value) for name, value in vars(self.progress).items()}
        return self._trained.snapshot(scalars | {"adam_step": float(self._masters.adam_step())})

    def restore(self, state: LearnerState) -> None:
        """Go on exactly where `snapshot` was taken, on any number of ranks and at any ZeRO stage.

        Raises `ConfigError` when the state does not fit what is trained.
        """
        self._trained.restore(state)
        self.progress = progress_of(state)

    def adopt(self, adapter: Adapter, moments: Literal["reset", "keep"], warmup_steps: int) -> dict[str, float]:
        """Go on from a candidate and warm the learning rate up again; see `Trained.move`.

        Adam's moments are zeroed or kept as they are. Returns `truncation_error`, the relative Frobenius error of the
        recompression to the trained rank.
        """
        truncation_error = self._trained.move(adapter)
        if moments == "reset":
            self._masters.write_moments(None, 0)
        self.progress = replace(self.progress, rewarm_start=self.progress.position, rewarm_steps=warmup_steps)
        return {"truncation_error": truncation_error}

    # Log-probabilities ----------------------------------------------------------------------------------------------------

    def logprobs(
        self,
        prompts: Sequence[np.ndarray],
        completions: Sequence[np.ndarray],
        adapter: Adapter | None = None,
        batch_tokens: int | None = None,
    ) -> list[np.ndarray]:
        """Log-probabilities float32 [T] of each completion after its prompt (token ids), temperature applied as in training.

        With `adapter` (any rank; an empty one is the base) under that one instead of the trained one, which is not touched; beside the
        trained weights where all are trained.
        Batches hold `batch_tokens` padded tokens (None: those of training). Every rank computes everything and returns it.
        """
        budget = batch_tokens or self.spec.learner.micro_batch_tokens
        with nullcontext() if adapter is None else self._policy.other_adapter(adapter):
            return self._policy.completion_logprobs(prompts, completions, budget, self._device)


def _has_signal(mini: MiniBatch, every_sample: bool) -> bool:
    return any((every_sample and micro.samples) or any(micro.advantages) for rank in mini.per_rank for micro in rank)
