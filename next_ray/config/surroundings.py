"""What a run stands in: its name and length, the model, the store, the cluster, evaluation and report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from next_ray.config.section import Address, Section


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


class StoreSection(Section):
    """The checkpoint store."""

    url: Address = "file://~/.cache/next_ray/store"
    """Root of the checkpoint store: `file://` or `s3://bucket/prefix`. Credentials come from the environment, never from here."""
    endpoint_url: Address | None = None
    """S3 endpoint for servers other than AWS."""
    lease_s: float = Field(default=60.0, ge=5)
    """How long a driver's claim on a run lives without renewal, seconds."""
    keep_checkpoints: int | None = Field(default=None, ge=2)
    """Trained checkpoints to keep (newest first, plus all that the trajectory needs); None keeps all."""


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
    """Node labels learners need, and the small actors beside them, for example `{market: on-demand}`."""
    engine_labels: dict[str, str] = Field(default_factory=dict)
    """Node labels rollout engines need, for example `{market: spot}`."""
    dashboard: bool = True
    """Start the Ray dashboard with an embedded cluster (loopback only)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where engines and learners run; auto: on GPUs when the cluster has any."""


class ReportSection(Section):
    """Console and trackers."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where metrics go besides the run's own files. TensorBoard writes to the run's output folder; the others need their package."""
    project: str = Field(default="next_ray", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Project in W&B, experiment in MLflow. Server, account and keys come from the environment, never from here."""
    samples: int = Field(default=2, ge=0)
    """Completions shown per step."""
