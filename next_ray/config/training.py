"""The RL step: rollout, reward, advantage and loss, learner."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from next_ray.config.algorithms import RECIPES, Advantage, Aggregation, AlgorithmName, LossKind, Recipe
from next_ray.config.section import Section


class RolloutSection(Section):
    """Rollout engines and how they sample."""

    engines: int = Field(default=1, ge=1)
    """vLLM engines, each an actor in a placement group of its own."""
    min_engines: int | None = Field(default=None, ge=1)
    """Engines the run starts with and needs to go on; the others join as the cluster has room for them. None: all of `engines`."""
    release_idle_s: float | None = Field(default=None, gt=0)
    """Engines beyond min_engines that had nothing to do for so long give their places back, seconds; None: they stay.

    They are asked for again with the next batch, so it pays only where updates take much longer than an engine's start.
    """
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs (or CPU processes) one engine spans."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts of one RL step."""
    samples_per_prompt: int = Field(default=8, ge=2)
    """Completions per prompt: the size of a GRPO group."""
    max_staleness: int = Field(default=0, ge=0, le=16)
    """Updates that a batch may lie behind the policy it trains: 0 samples and updates in turn, 1 and more sample ahead of the learner."""
    in_flight: Literal["finish", "restart"] = "finish"
    """What becomes of answers in work when a newer adapter comes: finished under their own, or begun anew under the newer one."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the learner uses the same for its log-probabilities."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; only 1 is exact for the importance ratio, so only 1 is accepted for training."""
    max_response_tokens: int = Field(default=8, ge=1)
    """Completions are cut at this many tokens."""
    max_num_seqs: int = Field(default=512, ge=1)
    """Sequences an engine decodes at once."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the engine's weights; auto: bfloat16 where the hardware multiplies it, else float32."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of GPU memory an engine may use (GPU only)."""
    kv_cache_gib: float = Field(default=0.5, gt=0)
    """Key-value cache of an engine on CPU, GiB."""
    enforce_eager: bool | None = None
    """Skip CUDA graphs; None: on CPU only."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of an engine (CPU only)."""

    @model_validator(mode="after")
    def _exact_ratio(self) -> RolloutSection:
        if self.top_p != 1.0:
            raise ValueError(
                f"rollout.top_p={self.top_p} would bias the importance ratio: tokens outside the nucleus have probability 0 "
                "under the sampler but not under the learner. Set it to 1."
            )
        return self

    @model_validator(mode="after")
    def _some_can_be_released(self) -> RolloutSection:
        if self.release_idle_s is not None and self.min_engines in (None, self.engines):
            raise ValueError(
                f"rollout.release_idle_s={self.release_idle_s:g} releases nothing: all {self.engines} of rollout.engines are needed. "
                "Set rollout.min_engines to fewer, or release_idle_s to null."
            )
        return self

    @model_validator(mode="after")
    def _no_more_than_all(self) -> RolloutSection:
        if self.min_engines is not None and self.min_engines > self.engines:
            raise ValueError(f"rollout.min_engines={self.min_engines} is more than rollout.engines={self.engines}. Set it to at most that.")
        return self


class AlgorithmSection(Section):
    """Advantage and loss."""

    name: AlgorithmName = "grpo"
    """What advantage, loss, aggregation, clips and overlong_cache_tokens are where they are null; docs/algorithms.md."""
    advantage: Advantage | None = None
    """How rewards become advantages; null: what `name` says."""
    loss: LossKind | None = None
    """Ratio of each token, ratio of the whole sequence (GSPO), or a clipped weight on log-probabilities (CISPO); null: by `name`."""
    aggregation: Aggregation | None = None
    """How token losses become one number (the paper's eq. 1 is seq-mean-token-mean); null: what `name` says."""
    clip_low: float | None = Field(default=None, ge=0, le=1)
    """Lower clip of the ratio: 1 - clip_low; null: what `name` says, 0.2 for most."""
    clip_high: float | None = Field(default=None, ge=0)
    """Upper clip of the ratio: 1 + clip_high; null: what `name` says, 0.2 for most."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Tokens with a negative advantage count at most with this ratio (3 is usual); null: without bound."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL term to the base model (adapter disabled)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL term stands; reward: taken off every token's return, for the whitened advantages only."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus (nats a token) in the loss."""
    overlong_cache_tokens: int | None = Field(default=None, ge=0)
    """Over the last so many tokens before rollout.max_response_tokens the reward falls by up to overlong_penalty.

    0: never; null: what `name` says, a fifth of the limit for dapo and 0 for the others.
    """
    overlong_penalty: float = Field(default=1.0, ge=0)
    """What a completion of the full length loses, in units of reward."""
    overlong_filter: bool = False
    """Leave completions that were cut at rollout.max_response_tokens out of the loss and its denominators."""
    dynamic_sampling: int = Field(default=0, ge=0, le=64)
    """Rounds in which groups of equal rewards are replaced by groups of further prompts, as in DAPO; 0: such groups stay and only count."""
    correction: Literal["none", "token-tis", "sequence-mask"] = "none"
    """For engines whose log-probabilities differ from the learner's: weigh tokens by the ratio, or leave sequences out."""
    correction_cap: float = Field(default=2.0, gt=0)
    """token-tis: a token's weight is learner over engine probability, at most this."""
    correction_band: float = Field(default=0.05, gt=0)
    """sequence-mask: a completion whose mean log ratio of learner to engine is further from 0 than this gets weight 0, nats."""

    @property
    def recipe(self) -> Recipe:
        """The parts that `name` stands for, with what the job says instead."""
        fields = ("advantage", "loss", "aggregation", "clip_low", "clip_high")
        return replace(RECIPES[self.name], **{f: getattr(self, f) for f in fields if getattr(self, f) is not None})

    @property
    def needs_every_sample(self) -> bool:
        """Whether a completion without advantage adds to the gradient all the same: through KL term or entropy bonus."""
        return self.kl_coef > 0 or self.entropy_coef > 0

    @property
    def has_kl_reward(self) -> bool:
        """Whether the KL term stands in the reward."""
        return self.kl_coef > 0 and self.kl_in == "reward"

    @model_validator(mode="after")
    def _fits_together(self) -> AlgorithmSection:
        recipe = self.recipe
        if self.has_kl_reward and not recipe.is_whitened:
            raise ValueError(
                f"algorithm.kl_in=reward takes the KL off the return of every token, and the advantage {recipe.advantage} has one "
                "value a completion. Set algorithm.kl_in to loss, or algorithm.name to reinforce++ or reinforce++-baseline."
            )
        if self.dual_clip is not None and recipe.loss == "cispo":
            raise ValueError("algorithm.dual_clip bounds a ratio with a gradient, and the loss cispo has none. Set it to null.")
        return self


class LoraSection(Section):
    """The adapter that is trained."""

    rank: int = Field(default=16, ge=1, le=256)
    """Rank of the adapter; candidates have up to twice that, and vLLM takes at most 512."""
    alpha: float = Field(default=8.0, gt=0)
    """Numerator of the scale alpha / rank; a scale of 0 would train nothing."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Module names that get an adapter (the output head never does)."""


class LearnerSection(Section):
    """DeepSpeed ranks and their optimizer."""

    ranks: int = Field(default=1, ge=1)
    """DeepSpeed ranks: actors of one gang in one placement group."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage."""
    mode: Literal["lora", "full"] = "lora"
    """What is trained: an adapter, or all weights of the model (docs/full-parameters.md)."""
    lora: LoraSection = LoraSection()
    """The adapter that is trained (mode lora)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number format of the forward pass (auto as in rollout.dtype); master weights and moments are float32 in any case."""
    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate (AdamW)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up; linear and cosine fall to 0 at the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm is clipped to this."""
    mini_batch_prompts: int | None = Field(default=None, ge=1)
    """Prompts per optimizer step; None: all of an RL step's (one optimizer step, exactly on-policy)."""
    micro_batch_tokens: int = Field(default=8192, ge=64)
    """Tokens (padding included) of one forward pass on one rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a rank (CPU only)."""
