"""A vLLM CPU worker whose LoRA products are grouped by adapter.

vLLM's own CPU path gathers one copy of the adapter's weights per token, and lets a token without an adapter (slot -1) read
the last slot's weights. Here rows are grouped by slot, each group is two small matrix products, and rows of the base model
are not touched. Named to vLLM by string; loaded in the process that runs the model and nowhere else.

Shape legend: T tokens, I/O in/out features, R rank (the engine's largest), S adapter slots.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform
from vllm.v1.worker.cpu_worker import CPUWorker

Rows = slice | torch.Tensor


def rows_by_slot(slots: torch.Tensor) -> list[tuple[int, Rows]]:
    """Group token positions by adapter slot, base tokens (-1) left out; a contiguous group is a slice.

    `slots` int64 [T]. Returns (slot, rows) in ascending order of slots.
    """
    groups: list[tuple[int, Rows]] = []
    for slot in torch.unique(slots).tolist():
        if slot < 0:
            continue
        rows = torch.nonzero(slots == slot).flatten()
        first, last = int(rows[0]), int(rows[-1])
        groups.append((slot, slice(first, last + 1) if last - first + 1 == len(rows) else rows))
    return groups


def add_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    a_stacked: tuple[torch.Tensor, ...],
    b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    groups: list[tuple[int, Rows]],
) -> None:
    """Add `scale * (x a^T) b^T` to `y` in place, each row with its own adapter.

    `y` [T, sum(O)], `x` [T, I]; for each slice of the output `a` [S, 1, R, I], `b` [S, 1, O, R]. As in a PEFT layer the
    inner product is rounded to x's dtype; the sum is rounded once.
    """
    for slot, rows in groups:
        x_rows = x[rows]
        start = 0
        for a, b, size in zip(a_stacked, b_stacked, output_slices, strict=True):
            inner = x_rows @ a[slot, 0].T
            if isinstance(rows, slice):
                y[rows, start : start + size].addmm_(inner, b[slot, 0].T, alpha=scale)
            else:
                target = y[rows, start : start + size]
                y[rows, start : start + size] = torch.addmm(target, inner, b[slot, 0].T, alpha=scale)
            start += size


class GroupedLora(PunicaWrapperCPU):
    """vLLM's CPU LoRA operations with `add_lora_linear` grouped by adapter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups: list[tuple[int, Rows]] = []

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take over a step's token-to-slot mapping."""
        super().update_metadata(*args, **kwargs)
        self._groups = rows_by_slot(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add every row's adapter to a linear layer's output; see `add_lora`."""
        add_lora(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, self._groups)


class GroupedLoraWorker(CPUWorker):
    """vLLM's CPU worker with `GroupedLora`, and a reload that reaches tied output heads."""

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Replace the model's weights; a head that shares the embedding has a packed copy, which vLLM's reload leaves as it was."""
        super().reload_weights(*args, **kwargs)
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model with its linear layers' adapters served by `GroupedLora`."""
        # The hook that platforms outside vLLM's tree use to name their own LoRA operations.
        current_platform.get_punica_wrapper = lambda: f"{GroupedLora.__module__}.{GroupedLora.__name__}"
        super().load_model(*args, **kwargs)
