"""The run's configuration: one frozen tree, every field described, unknown keys rejected.

The defaults are the embedded run: the tiny model on addition, on this machine, in a few minutes.
Reading YAML and overrides is `next_ray.settings`; this module only says what is valid.
"""

from __future__ import annotations

from difflib import get_close_matches
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen part of the tree that accepts only its own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class RunSection(Section):
    """What the run is called, how long it trains and where its local output goes."""

    name: str = Field(default="tiny", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the run: its folder in the store and under `output_dir`."""
    steps: int = Field(default=60, ge=1)
    """RL steps in all, those after a jump included."""
    seed: int = Field(default=0, ge=0)
    """Seed of prompts order, sampling, adapter initialisation and predictor."""
    deterministic: bool = False
    """Reproduce a run exactly on CPU: a resumed run then equals an uninterrupted one, byte for byte."""
    output_dir: str = "outputs"
    """Local folder for metrics, logs, TensorBoard and the report."""


class ModelSection(Section):
    """The base model."""

    name: str = "tiny"
    """`tiny`, `smollm2-135m`, a local folder, or a Hugging Face model id."""
    revision: str | None = None
    """Hub revision (commit, tag or branch); pin it for models from the hub."""
    trust_remote_code: bool = False
    """Run Python code that the model repository ships. Off unless you have read that code."""
    cache_dir: str | None = None
    """Where prepared models are kept; `$NEXT_RAY_CACHE` or `~/.cache/next_ray` when unset."""
    tiny_steps: int = Field(default=500, ge=1)
    """Supervised steps (batch 128) that make the `tiny` model."""
    tiny_seed: int = 0
    """Seed of the `tiny` model."""


class ArithmeticSource(Section):
    """Additions and subtractions, written `a+b=` for the tiny model."""

    kind: Literal["arithmetic"] = "arithmetic"
    digits: int = Field(default=2, ge=1, le=9)
    """Largest number of digits of each operand."""
    size: int = Field(default=10000, ge=1)
    """Distinct problems drawn."""
    operations: str = Field(default="+", pattern=r"^[+\-]{1,2}$")
    """Operations used: `+`, `-` or `+-`."""
    question: str = "{a}{op}{b}="
    """Text of a problem; `{a}`, `{op}` and `{b}` are replaced."""


class ReasoningGymSource(Section):
    """A procedural task of reasoning-gym, deterministic from the run's seed."""

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    task: str
    """Name of the task, for example `chain_sum`."""
    size: int = Field(default=2000, ge=1)
    """Problems generated (duplicates are dropped)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The task's own settings, for example `{min_terms: 2, max_terms: 2}`."""


class FileSource(Section):
    """Problems from JSONL, JSON or parquet files, local or on S3."""

    kind: Literal["file"] = "file"
    path: str
    """File or fsspec URL; the extension decides the format (.jsonl, .json, .parquet)."""
    prompt_field: str | None = None
    """Field of the prompt; found by itself when unset (prompt, messages, question, problem, input)."""
    answer_field: str | None = None
    """Field of the answer; found by itself when unset (reward_model.ground_truth, ground_truth, answer, label, solution)."""


Source = Annotated[ArithmeticSource | ReasoningGymSource | FileSource, Field(discriminator="kind")]


class DataSection(Section):
    """Prompts: where they come from, what is held out, how they are worded."""

    train: Source = ArithmeticSource()
    """Where training prompts come from."""
    held_out: FileSource | None = None
    """A file of held-out problems; when unset they are split off `train` by a hash of the prompt."""
    gate_prompts: int = Field(default=96, ge=1)
    """Held-out prompts the gate judges candidates on."""
    test_prompts: int = Field(default=256, ge=1)
    """Held-out prompts of the evaluations that are reported; disjoint from the gate's."""
    system_prompt: str | None = None
    """System message put before each prompt; None keeps the chat template's own."""
    template: str = "{prompt}"
    """Text of the user message; `{prompt}` is replaced by the problem."""
    chat: bool | None = None
    """Apply the tokenizer's chat template; None: when the tokenizer has one."""
    max_prompt_tokens: int = Field(default=64, ge=1)
    """Longer prompts are left out, and counted."""


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


class StoreSection(Section):
    """The checkpoint store."""

    url: str = "file://~/.cache/next_ray/store"
    """Root of the checkpoint store: `file://` or `s3://bucket/prefix`. Credentials come from the environment, never from here."""
    endpoint_url: str | None = None
    """S3 endpoint for servers other than AWS."""
    lease_s: float = Field(default=60.0, ge=5)
    """How long a driver's claim on a run lives without renewal, seconds."""
    keep_checkpoints: int | None = Field(default=None, ge=2)
    """Trained checkpoints to keep (newest first, plus all that the trajectory needs); None keeps all."""


class PredictorSection(Section):
    """NExt's predictor."""

    hidden: int = Field(default=64, ge=4)
    """Width of the predictor's encoders and decoder; the release takes 256, which costs twice the time here."""
    fit_steps: int = Field(default=300, ge=1)
    """Full-batch steps of the first fit; the release takes 1000 (of raw vectors, at a fiftieth of this learning rate)."""
    refine_steps: int = Field(default=30, ge=1)
    """Full-batch steps after each further checkpoint, starting from the last fit."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate (AdamW, cosine); the release uses 2e-5."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW weight decay."""


class GateSection(Section):
    """Who may jump."""

    kind: Literal["paired", "none"] = "paired"
    """paired: accept only what a paired test says is better; none: jump with `fixed`, as the paper does."""
    fixed: str | None = None
    """Candidate taken when kind is none, for example `next@1.5`."""
    samples: int = Field(default=4, ge=1)
    """Completions per gate prompt and candidate."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Largest adjusted p-value that is accepted (one-sided, over all candidates)."""
    min_gain: float = Field(default=0.0, ge=0)
    """Smallest accuracy gain that is accepted (0.01 is one point)."""


class AfterJumpSection(Section):
    """How training goes on from an accepted candidate."""

    moments: Literal["reset", "keep"] = "reset"
    """Adam moments after a jump."""
    warmup_steps: int = Field(default=3, ge=0)
    """Optimizer steps over which the learning rate rises again after a jump."""


ONLINE_METHODS = (
    "next",
    "next-no-global",
    "next-no-local",
    "next-released",
    "two-point",
    "persistence",
    "linear-fit",
    "relex",
    "rank1",
    "expo",
    "wsm-uniform",
    "wsm-cosine",
    "wsm-sqrt",
    "soup-uniform",
    "key-neurons",
)
"""Methods a running job can propose from: those that make adapters and need no accuracy per checkpoint (docs/methods.md)."""


class ExtrapolationSection(Section):
    """Trajectory, predictor, candidates and gate."""

    enabled: bool = True
    """False trains plainly, checkpoints included: the honest baseline of the same budget (`--baseline`)."""
    interval_steps: int = Field(default=3, ge=1)
    """RL steps between trajectory checkpoints."""
    checkpoints: int = Field(default=8, ge=3)
    """Checkpoint c at which the first jump is tried."""
    horizon: int = Field(default=3, ge=1)
    """Horizon k: how many checkpoints ahead the target delta looks."""
    repeat_every: int | None = Field(default=None, ge=1)
    """Try again every so many checkpoints after the first attempt; None: one attempt."""
    methods: tuple[str, ...] = ("next", "two-point")
    """Extrapolators that propose candidates (docs/methods.md), over `alphas` or with an alpha of their own, as in `wsm-cosine@1`."""
    alphas: tuple[float, ...] = (0.75, 1.5)
    """Grid of the extending coefficient: how far a candidate reaches, in horizons for the forecasting methods."""
    abstain: bool = True
    """Withdraw `next` when its backtest loses to both persistence and the linear fit."""
    delta_workers: int = Field(default=1, ge=1)
    """Actors that compute triplets, modules sharded by cost."""
    predictor: PredictorSection = PredictorSection()
    """NExt's predictor."""
    gate: GateSection = GateSection()
    """Who may jump."""
    after_jump: AfterJumpSection = AfterJumpSection()
    """How training goes on from an accepted candidate."""

    @property
    def proposals(self) -> tuple[tuple[str, float], ...]:
        """(method, alpha) of every candidate, in order, each once."""
        split = [method.partition("@") for method in self.methods]
        wanted = [(name, alpha) for name, at, own in split for alpha in ((float(own),) if at else self.alphas)]
        return tuple(dict.fromkeys(wanted))

    @model_validator(mode="after")
    def _known_methods(self) -> ExtrapolationSection:
        for method in self.methods:
            name, at, alpha = method.partition("@")
            if name not in ONLINE_METHODS:
                close = get_close_matches(name, ONLINE_METHODS, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise ValueError(f"extrapolation.methods: a running job has no method {name!r}{hint} It has {', '.join(ONLINE_METHODS)}.")
            try:
                finite = not at or isfinite(float(alpha))
            except ValueError:
                finite = False
            if not finite:
                raise ValueError(f"extrapolation.methods: {method!r} must be a method or method@alpha with a number, as in wsm-cosine@1.")
        return self

    @model_validator(mode="after")
    def _enough_checkpoints(self) -> ExtrapolationSection:
        if self.checkpoints <= self.horizon + 1:
            raise ValueError(
                f"extrapolation.checkpoints={self.checkpoints} leaves {max(0, self.checkpoints - self.horizon)} targets for "
                f"horizon={self.horizon}; the predictor needs at least 2. Set checkpoints to {self.horizon + 2} or more."
            )
        if self.gate.kind == "none" and self.enabled and self.gate.fixed is None:
            raise ValueError("extrapolation.gate.kind=none needs gate.fixed, the candidate to take (for example next@1.5).")
        proposed = [f"{method}@{alpha:g}" for method, alpha in self.proposals]
        if self.gate.fixed is not None and self.gate.fixed not in proposed:
            raise ValueError(
                f"extrapolation.gate.fixed={self.gate.fixed} is never proposed; methods and alphas give {', '.join(proposed)}."
            )
        return self


class EvaluationSection(Section):
    """Evaluations on the held-out test prompts."""

    every_steps: int | None = Field(default=20, ge=1)
    """Evaluate the current model every so many steps; None: only at the start and the end."""
    samples: int = Field(default=4, ge=1)
    """Completions per test prompt (k of avg@k and pass@k)."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of evaluation; the paper evaluates at 1, like training."""


class ClusterSection(Section):
    """Ray and where actors go."""

    wait_s: float = Field(default=600.0, gt=0)
    """How long to wait for resources before giving up, seconds."""
    learner_labels: dict[str, str] = Field(default_factory=dict)
    """Node labels learners need, for example `{market: on-demand}`."""
    engine_labels: dict[str, str] = Field(default_factory=dict)
    """Node labels rollout engines need, for example `{market: spot}`."""
    dashboard: bool = True
    """Start the Ray dashboard with an embedded cluster (loopback only)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where engines and learners run; auto: on GPUs when the cluster has any."""


class ReportSection(Section):
    """Console and TensorBoard."""

    tensorboard: bool = True
    """Write TensorBoard event files to the run's output folder."""
    samples: int = Field(default=2, ge=0)
    """Completions shown per step."""


class Config(Section):
    """Everything one run needs."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    rollout: RolloutSection = RolloutSection()
    reward: RewardSection = RewardSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    learner: LearnerSection = LearnerSection()
    store: StoreSection = StoreSection()
    extrapolation: ExtrapolationSection = ExtrapolationSection()
    evaluation: EvaluationSection = EvaluationSection()
    cluster: ClusterSection = ClusterSection()
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _batches_divide(self) -> Config:
        mini = self.learner.mini_batch_prompts
        prompts = self.rollout.prompts_per_step
        if mini is not None and prompts % mini:
            raise ValueError(
                f"learner.mini_batch_prompts={mini} does not divide rollout.prompts_per_step={prompts}: "
                f"{prompts} = {prompts // mini} x {mini} + {prompts % mini}."
            )
        longest = self.data.max_prompt_tokens + self.rollout.max_response_tokens
        if self.learner.micro_batch_tokens < longest:
            raise ValueError(
                f"learner.micro_batch_tokens={self.learner.micro_batch_tokens} cannot hold one sequence of data.max_prompt_tokens + "
                f"rollout.max_response_tokens = {longest} tokens."
            )
        return self
