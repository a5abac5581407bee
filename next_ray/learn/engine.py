"""Starting and stopping DeepSpeed: process group, engine, and the parts that stage 0 in float32 lacks."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from next_ray.config import LearnerSection

GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Where a process looks for its group."""


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips by the global norm and skips a step whose gradient is not finite.

    DeepSpeed's wrappers do both in every other combination of stage and format; stage 0 in float32 has no wrapper. The
    attributes `overflow` and `_global_grad_norm` are those that the engine reads from its own wrappers.
    """

    def __init__(self, params: Any, max_grad_norm: float, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.max_grad_norm = max_grad_norm
        self.overflow = False
        self._global_grad_norm = 0.0

    def step(self, closure: Any = None) -> None:
        """Clip, then update; with NaN or infinity in the gradient do nothing but set `overflow`."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._global_grad_norm = float(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        self.overflow = not torch.isfinite(torch.tensor(self._global_grad_norm)).item()
        if not self.overflow:
            super().step(closure)


def join_process_group(rank: int, world_size: int, address: str, port: int, device: Literal["cpu", "gpu"], local_rank: int = 0) -> None:
    """Join the gang (gloo on CPU, nccl on GPU), or take over the torch process group that is there.

    Must be the first use of DeepSpeed in the process. `local_rank` is 0 for a rank that sees only the GPU that was given to it.
    """
    values = (str(rank), str(world_size), str(local_rank), address, str(port))
    os.environ.update(zip(GROUP_VARIABLES, values, strict=True))
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed calls collectives by names that torch has renamed: a warning per call.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    # No compiled operator is used here. An empty table spares the compiler runs that would find out which ones could be built,
    # and half a minute of building a shared-memory all-reduce at the first start.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    backend = "gloo" if device == "cpu" else "nccl"
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, store=_meeting_place(rank, address, port), rank=rank, world_size=world_size)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, rank=rank, world_size=world_size)


def _meeting_place(rank: int, address: str, port: int) -> Any:
    """The store through which ranks find each other. Rank 0's listens at `address` alone: torch by itself listens to all the world."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    if rank != 0:
        return TCPStore(address, port)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(1024)
    listener.setblocking(False)
    return TCPStore(address, listener.getsockname()[1], is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def leave_process_group() -> None:
    """Destroy the process group if there is one; what this process starts later does not find its address."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        import deepspeed.comm

        if deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()
        else:
            torch.distributed.destroy_process_group()
        for name in GROUP_VARIABLES:
            os.environ.pop(name, None)


def start_engine(policy: nn.Module, cfg: LearnerSection) -> Any:
    """A DeepSpeed engine over `policy`, whose trainable parameters AdamW updates. One `step()` is one optimizer step.

    `managed_gradient_accumulation` off: backward passes add up until `step()`, so the number of micro batches may vary.
    """
    import deepspeed

    trainable = [p for p in policy.parameters() if p.requires_grad]
    adam: dict[str, Any] = {"lr": cfg.lr, "betas": cfg.betas, "weight_decay": cfg.weight_decay}
    unwrapped = cfg.zero_stage == 0 and cfg.dtype == "float32"
    optimizer = GuardedAdamW(trainable, cfg.max_grad_norm, **adam) if unwrapped else torch.optim.AdamW(trainable, **adam)
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=engine_config(cfg), dist_init_required=False)
    return engine


def engine_config(cfg: LearnerSection) -> dict[str, Any]:
    """DeepSpeed's configuration; gradients travel and add up in float32 whatever the format of the forward pass."""
    is_bf16 = cfg.dtype == "bfloat16"
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if cfg.zero_stage == 0 and not is_bf16 else cfg.max_grad_norm,
        "communication_data_type": "fp32",
        "bf16": {"enabled": is_bf16},
        "zero_optimization": {"stage": cfg.zero_stage, "overlap_comm": False},
        "steps_per_print": None,
    }
    if is_bf16 and cfg.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what DeepSpeed, transformers and PEFT print while they start; errors still raise, and are logged."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
