"""The RL step: rollout, reward, advantage and loss, learner."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from next_ray.config.section import Section


class RolloutSection(Section):
    """Rollout engines and how they sample."""

    engines: int = Field(default=1, ge=1)
    """vLLM engines, each an actor in a placement group of its own."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs (or CPU processes) one engine spans."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts of one RL step."""
    samples_per_prompt: int = Field(default=8, ge=2)
    """Completions per prompt: the size of a GRPO group."""
    max_staleness: int = Field(default=0, ge=0, le=16)
    """Updates that a batch may lie behind the policy it trains: 0 samples and updates in turn, 1 and more sample ahead of the learner."""
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


class RewardSection(Section):
    """Verifiers and their limits."""

    verifier: Literal["auto", "exact", "number", "math", "reasoning-gym"] = "auto"
    """How answers are judged (number: the text must end with it).

    auto: exact for arithmetic, the task's own for reasoning-gym, math for files.
    """
    actors: int = Field(default=1, ge=1)
    """Verifier actors."""
    workers: int = Field(default=1, ge=1)
    """Disposable verifier processes of each actor."""
    wall_clock_s: float = Field(default=5.0, gt=0)
    """Wall-clock limit of one answer, seconds."""
    cpu_s: int = Field(default=600, ge=1)
    """CPU time after which a verifier process is replaced, seconds."""
    memory_mib: int = Field(default=2048, ge=256)
    """Address space of a verifier process, MiB."""


class AlgorithmSection(Section):
    """Advantage and loss."""

    name: Literal["grpo"] = "grpo"
    """How advantages are made."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """Lower clip of the ratio: 1 - clip_low."""
    clip_high: float = Field(default=0.2, ge=0)
    """Upper clip of the ratio: 1 + clip_high."""
    aggregation: Literal["seq-mean-token-mean", "token-mean"] = "seq-mean-token-mean"
    """How token losses become one number; the paper's eq. 1 is seq-mean-token-mean."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL term to the base model (adapter disabled) in the loss."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL."""


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
    lora: LoraSection = LoraSection()
    """The adapter that is trained."""
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
