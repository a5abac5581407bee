"""Which number format `dtype: auto` means on the machine at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from next_ray.config import Config

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""CPU flags (x86 and Arm) of units that multiply bfloat16; without one it is emulated, here 30 to 40 times slower than float32."""


def cpu_multiplies_bfloat16(cpuinfo: str | None = None) -> bool:
    """Whether this machine's CPU has such a unit; `cpuinfo` is the text of /proc/cpuinfo, read when None."""
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return any(
        flag in BFLOAT16_FLAGS for line in cpuinfo.splitlines() if line.lower().startswith(("flags", "features")) for flag in line.split()
    )


def native_dtype(device: str) -> Literal["bfloat16", "float32"]:
    """bfloat16 where `device` ("cpu" or "gpu") multiplies it, else float32: what `auto` means."""
    return "bfloat16" if device == "gpu" or cpu_multiplies_bfloat16() else "float32"


def resolve_dtypes(config: Config, device: str) -> Config:
    """`auto` in rollout.dtype and learner.dtype becomes the `native_dtype` of `device`.

    On a CPU cluster the driver's machine speaks for all: float32 runs everywhere.
    """
    chosen = native_dtype(device)
    rollout, learner = config.rollout, config.learner
    if rollout.dtype == "auto":
        rollout = rollout.model_copy(update={"dtype": chosen})
    if learner.dtype == "auto":
        learner = learner.model_copy(update={"dtype": chosen})
    return config.model_copy(update={"rollout": rollout, "learner": learner})
