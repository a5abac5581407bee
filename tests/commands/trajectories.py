"""PEFT folders of one run over a tiny base, as both commands take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from next_ray.adapter import write_peft_folder
from next_ray.types import LoraFactors

SHAPES = {"model.layers.0.self_attn.q_proj": (64, 32), "model.layers.0.mlp.up_proj": (96, 32)}


def write_run(folder: Path, steps: tuple[int, ...] = (10, 20, 30, 40), rank: int = 4, base: str = "some/base") -> Path:
    """`checkpoint-N` folders of a run that drifts."""
    rng = np.random.default_rng(0)
    start = {name: (rng.normal(size=(rank, i)), rng.normal(size=(o, rank))) for name, (o, i) in SHAPES.items()}
    for step in steps:
        adapter = {
            name: LoraFactors((a + 0.01 * rng.normal(size=a.shape)).astype(np.float32), (step * 0.01 * b).astype(np.float32), 2.0)
            for name, (a, b) in start.items()
        }
        write_peft_folder(adapter, folder / f"checkpoint-{step}", base)
    return folder
