"""The configuration of `python -m next_ray.serve`: where it listens, the engine, how many replicas."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from next_ray.config.section import Section
from next_ray.config.surroundings import ClusterSection


class ReplicasSection(Section):
    """How many engines answer, and when there shall be more or fewer."""

    min: int = Field(default=1, ge=0)
    """Replicas when nothing is asked; 0: none, and the first request waits until one has started."""
    max: int = Field(default=1, ge=1)
    """Replicas at most; each is an engine of its own with all models."""
    target_requests: float = Field(default=16, gt=0)
    """Requests in work for which one replica is enough: Ray Serve starts and stops replicas to come near it."""
    upscale_delay_s: float = Field(default=15.0, ge=0)
    """How long there must be more requests than that before a replica is added, seconds."""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """How long there must be fewer before one is taken away, seconds."""

    @model_validator(mode="after")
    def _no_more_than_all(self) -> ReplicasSection:
        if self.min > self.max:
            raise ValueError(f"replicas.min={self.min} is more than replicas.max={self.max}. Set it to at most that.")
        return self


class ServedEngineSection(Section):
    """The vLLM engine of a replica: as in training, but for what is about training."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the weights, as rollout.dtype of a run."""
    adapters: int = Field(default=8, ge=1)
    """Checkpoints that are in the engine at once. One more takes the place of the one that was not asked for longest."""
    max_model_len: int = Field(default=4096, ge=2)
    """Prompt and answer of a request in tokens; at most what the model takes."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences that are sampled at once; further requests wait."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Devices of one engine."""
    threads: int = Field(default=1, ge=1)
    """CPU threads (CPU only)."""
    kv_cache_gib: float = Field(default=0.5, gt=0)
    """Key-value cache, GiB (CPU only)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine takes (GPU only)."""


class ServedClusterSection(ClusterSection):
    """Ray, and where replicas go: `engine_labels`."""

    dashboard: bool = False
    """Start the Ray dashboard, with its page on Serve, with an embedded cluster (loopback only)."""


class ServeConfig(Section):
    """Everything that serving a run needs beside the run."""

    host: str = "127.0.0.1"
    """Address to listen on: loopback. `0.0.0.0` is every address of the machine; the key then crosses the network unencrypted."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    key_file: str | None = None
    """File of the API key, made when it is not there (mode 600); None: `serve_key` in the cache folder. NEXT_RAY_API_KEY goes before it."""
    look_every_s: float = Field(default=30.0, gt=0)
    """How often a run that goes on is looked at for new checkpoints, which `final` and `jumped` then mean, seconds."""
    system_prompt: str | None = None
    """System message of conversations that bring none; give data.system_prompt of the run."""
    template: str = "{prompt}"
    """Text of a conversation's last user message; `{prompt}` is what the client sent. Give data.template of the run."""
    engine: ServedEngineSection = ServedEngineSection()
    replicas: ReplicasSection = ReplicasSection()
    cluster: ServedClusterSection = ServedClusterSection()

    @model_validator(mode="after")
    def _template_asks(self) -> ServeConfig:
        if "{prompt}" not in self.template:
            raise ValueError(f"template={self.template!r} has no {{prompt}}, so every question would read the same. Add it.")
        return self
