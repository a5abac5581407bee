"""The configuration of `python -m next_ray.warmstart`: supervised fine-tuning as a job of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from next_ray.config.data import FewShotFile, FewShotTurn
from next_ray.config.section import Address, Section
from next_ray.config.surroundings import ClusterSection, ModelSection
from next_ray.config.training import LearnerSection, LoraSection


class DemonstrationsSection(Section):
    """Demonstrations: where they come from, how they are worded, what is held out."""

    path: Address
    """File or fsspec URL of the demonstrations; the extension decides the format (.jsonl, .json, .parquet)."""
    held_out: str | None = None
    """A file of held-out demonstrations; when unset they are split off `path` by a hash of the prompt."""
    held_out_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the prompts that is split off when `held_out` is unset."""
    endpoint_url: Address | None = None
    """S3 endpoint for servers other than AWS."""
    prompt_field: str | None = None
    """Field of the prompt; found by itself when unset (messages, prompt, question, problem, instruction, input)."""
    completion_field: str | None = None
    """Field of the answer text; found by itself when unset (completion, solution, response, output, answer)."""
    system_prompt: str | None = None
    """System message put before each prompt, as data.system_prompt of a run; None keeps the chat template's own."""
    template: str = "{prompt}"
    """Text of the user message, as data.template of a run; `{prompt}` is replaced by the problem."""
    chat: bool | None = None
    """Apply the tokenizer's chat template; None: when the tokenizer has one."""
    few_shot: tuple[FewShotTurn, ...] | FewShotFile = ()
    """Worked problems before each prompt, as data.few_shot of a run. They are neither trained on nor held out."""
    max_tokens: int = Field(default=2048, ge=2)
    """Demonstrations with more tokens, prompt and completion together, are left out, and counted."""


class FineTuningSection(Section):
    """DeepSpeed ranks, what they train, and their optimizer."""

    parameters: Literal["full", "lora"] = "full"
    """Train all parameters, or an adapter that is merged into the model at the end."""
    lora: LoraSection = LoraSection()
    """The adapter, with parameters=lora."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the demonstrations, each in an order of its own."""
    max_steps: int | None = Field(default=None, ge=1)
    """End after so many optimizer steps; None: after the last epoch. The learning rate's schedule ends there too."""
    batch_size: int = Field(default=32, ge=1)
    """Demonstrations of one optimizer step, over all ranks."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate (AdamW)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after warm-up; linear and cosine fall to 0 at the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm is clipped to this."""
    micro_batch_tokens: int = Field(default=8192, ge=64)
    """Tokens (padding included) of one forward pass on one rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    ranks: int = Field(default=1, ge=1)
    """DeepSpeed ranks: Ray Train workers."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number format of the forward pass; auto: bfloat16 where the hardware multiplies it, else float32. Master weights are float32."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a rank (CPU only)."""

    def optimizer(self) -> LearnerSection:
        """The same settings as those of a run's learner, for the parts that both share."""
        shared = set(type(self).model_fields) & set(LearnerSection.model_fields)
        return LearnerSection(**{name: getattr(self, name) for name in shared})


class WarmstartConfig(Section):
    """Everything a supervised fine-tuning job needs."""

    output: str
    """Folder to make: a Hugging Face model that `model.name` of a run accepts."""
    seed: int = Field(default=0, ge=0)
    """Seed of the demonstrations' order and of the adapter's start."""
    deterministic: bool = False
    """Use deterministic kernels only."""
    storage: str | None = None
    """Folder or URL where the ranks leave the trained weights for the driver; unset: beside `output`. Several nodes must share it."""
    model: ModelSection = ModelSection()
    """The model to start from."""
    data: DemonstrationsSection
    """The demonstrations."""
    training: FineTuningSection = FineTuningSection()
    """How to train."""
    cluster: ClusterSection = ClusterSection()
    """Ray."""

    @model_validator(mode="after")
    def _longest_fits(self) -> WarmstartConfig:
        if self.training.micro_batch_tokens < self.data.max_tokens:
            raise ValueError(
                f"training.micro_batch_tokens={self.training.micro_batch_tokens} cannot hold one demonstration of "
                f"data.max_tokens={self.data.max_tokens}. Raise the first or lower the second."
            )
        return self
