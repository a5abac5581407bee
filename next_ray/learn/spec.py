"""What a learner rank needs to start. Light to import: the driver builds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from next_ray.config import AlgorithmSection, LearnerSection


@dataclass(frozen=True)
class LearnerSpec:
    """The start of one rank; all ranks get the same but for `rank`. `model_path` is a local folder.

    `total_optimizer_steps` is the run's number of mini batches, the learning rate schedule's length; completions have at most
    `max_response_tokens`. `engine_dtype` is the number format in which full weights are handed to the engines.
    """

    model_path: str
    learner: LearnerSection
    algorithm: AlgorithmSection
    temperature: float
    max_response_tokens: int
    seed: int
    rank: int
    world_size: int
    master_addr: str
    master_port: int
    total_optimizer_steps: int
    device: Literal["cpu", "gpu"]
    deterministic: bool
    trust_remote_code: bool = False
    engine_dtype: Literal["bfloat16", "float16", "float32"] = "float32"
