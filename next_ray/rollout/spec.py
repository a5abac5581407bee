"""What an engine is told: its spec, vLLM's arguments and the environment vLLM reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from next_ray.config import DataSection, RolloutSection
from next_ray.errors import ConfigError

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values vLLM accepts for its largest adapter rank."""
CPU_WORKER = "next_ray.rollout.cpu_worker.GroupedLoraWorker"
WORKER_PROCESS = "next_ray.rollout.worker_process.WorkerProcess"
CPU_BLOCK_TOKENS = 32
"""Tokens of a key-value block on CPU: small, so that the samples of a group share the prefill of a short prompt."""
OPENMP_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}
"""How threads wait for work: spinning without end takes the cores from other processes (two threads on a busy pair of cores are over ten
times slower); GNU OpenMP's look for some tens of microseconds, which spares small products a wake-up each."""
CPU_BATCH_TOKENS = 8192
"""Tokens of one forward pass on CPU."""


@dataclass(frozen=True)
class EngineSpec:
    """Everything one engine needs to start; picklable.

    `max_lora_rank` is the widest adapter it will be asked to load (candidates are wider than what is trained), `max_adapters`
    how many versions it serves at once beside the model itself (0: all weights are trained, and there are no candidates),
    `max_model_len` prompt and response in tokens. `adapter_dir` is where its private scratch folder goes (shared memory when None).
    """

    model_path: str
    base_name: str
    rollout: RolloutSection
    max_lora_rank: int
    max_adapters: int
    max_model_len: int
    seed: int
    device: Literal["cpu", "gpu"]
    deterministic: bool
    data: DataSection
    trust_remote_code: bool = False
    adapter_dir: str | None = None


def round_up_rank(rank: int) -> int:
    """The smallest largest-rank vLLM knows that fits `rank`; raises `ConfigError` when none does."""
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ConfigError(f"adapters of rank {rank} don't fit vLLM's largest, {LORA_RANKS[-1]}. Lower learner.lora.rank.")


def set_environment(spec: EngineSpec) -> None:
    """Set what vLLM and its libraries read from the environment; before they are imported to have its full effect."""
    for chatty in ("vllm", "torch.utils.cpp_extension"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_VERBOSITY="error",
        TOKENIZERS_PARALLELISM="false",
    )
    if spec.device == "cpu":
        # A whole number of GiB, and stronger than the byte count that `engine_arguments` gives.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        # With adapters nothing of the model is compiled on CPU; the sampler's one compiled function costs 15 s for nothing.
        os.environ.update(OMP_NUM_THREADS=str(spec.rollout.threads), TORCHDYNAMO_DISABLE="1", TORCH_CPP_LOG_LEVEL="ERROR")
        for name, value in OPENMP_WAITING.items():
            os.environ.setdefault(name, value)
        if spec.rollout.tensor_parallel_size > 1:
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", thread_binding(spec.rollout, sorted(os.sched_getaffinity(0))))


def thread_binding(rollout: RolloutSection, cores: Sequence[int]) -> str:
    """Cores of each worker process, as vLLM reads them: `0,1|2,3`. By itself vLLM wants a NUMA node for every worker."""
    width, size = rollout.threads, rollout.tensor_parallel_size
    if len(cores) < width * size:
        raise ConfigError(
            f"rollout.tensor_parallel_size={size} with rollout.threads={width} needs {width * size} cores, this process may use "
            f"{len(cores)}. Lower one of them."
        )
    return "|".join(",".join(str(core) for core in cores[i * width : (i + 1) * width]) for i in range(size))


def engine_arguments(spec: EngineSpec, max_lora_rank: int) -> dict[str, Any]:
    """The arguments of `vllm.LLM`."""
    rollout, cpu = spec.rollout, spec.device == "cpu"
    arguments: dict[str, Any] = {
        "model": spec.model_path,
        "trust_remote_code": spec.trust_remote_code,
        "load_format": "safetensors",
        "dtype": rollout.dtype,
        "seed": spec.seed,
        "max_model_len": spec.max_model_len,
        "max_num_seqs": rollout.max_num_seqs,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        "enforce_eager": cpu if rollout.enforce_eager is None else rollout.enforce_eager,
        "logprobs_mode": "processed_logprobs",  # of the distribution sampled from: after the temperature
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    if spec.max_adapters:
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": max_lora_rank,
            "max_loras": spec.max_adapters,
            "max_cpu_loras": spec.max_adapters,
        }
    if rollout.tensor_parallel_size > 1:
        arguments |= {"distributed_executor_backend": "mp", "worker_extension_cls": WORKER_PROCESS}
    if cpu:
        arguments |= {
            "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
            "block_size": CPU_BLOCK_TOKENS,
            "max_num_batched_tokens": max(CPU_BATCH_TOKENS, spec.max_model_len, rollout.max_num_seqs),
            "worker_cls": CPU_WORKER,
        }
    else:
        arguments["gpu_memory_utilization"] = rollout.gpu_memory_utilization
    return arguments
