"""Does a merged model say what base and adapter say? Judged by transformers and PEFT, tensor by tensor and by its logits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from next_ray.checkpoints.headers import SafetensorsFile, open_safetensors
from next_ray.checkpoints.merge import weight_shards
from next_ray.errors import ExtrapolationError

PROBE_ROWS, PROBE_TOKENS = 2, 16
HALF_STEP = {"F32": 2.0**-22, "F16": 2.0**-11, "BF16": 2.0**-8}
"""How far rounding to a dtype may move an entry, as a share of it (twice the half step for F32, whose sums differ in order)."""
LOGIT_TOLERANCE = {"F32": 1e-4, "F16": 1e-2, "BF16": 5e-2}
"""Largest difference of logits, as a share of the largest logit: what rounding every touched weight can do to a model."""


@dataclass(frozen=True)
class Verification:
    """The largest difference of logits over the probe and what is allowed, as shares of the largest logit."""

    logit_difference: float
    tolerance: float


def verify_merged(merged: Path, base: Path, adapter: Path, renamed: Mapping[str, str] | None = None) -> Verification:
    """Compare a merged folder with base + adapter as PEFT computes it in float32.

    Every LoRA module's merged weight must be base + delta up to one rounding, and the logits of a fixed random probe must agree
    within `LOGIT_TOLERANCE` of the base's dtype. Two models are loaded in float32, one after the other.

    Raises:
        ExtrapolationError: they disagree.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tensors = {name: file for shard in weight_shards(merged) for file in [open_safetensors(shard)] for name in file.entries}
    with _quiet(), torch.no_grad():
        # Nothing of a model's own code, nor pickles; without a word transformers would ask on the terminal.
        safely: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
        model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **safely), str(adapter)).eval()
        dtype = _check_modules(model, tensors, merged, renamed or {})
        draw = np.random.default_rng(0)
        probe = torch.from_numpy(draw.integers(0, model.config.vocab_size, (PROBE_ROWS, PROBE_TOKENS)))
        expected = model(input_ids=probe).logits.numpy()
        del model
        if not np.isfinite(expected).all():
            raise ExtrapolationError(
                "With the extrapolated weights the model's logits are beyond float32: they go too far. Lower alpha. Nothing was kept."
            )
        model = AutoModelForCausalLM.from_pretrained(merged, **safely)
        found = model.eval()(input_ids=probe).logits.numpy()  # pyright: ignore[reportCallIssue]
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= LOGIT_TOLERANCE[dtype]:
        raise ExtrapolationError(
            f"The merged model's logits differ from those of {base} with the adapter by {difference:.2g} of the largest; rounding to "
            f"{dtype} explains {LOGIT_TOLERANCE[dtype]:.2g}. Is the base the one that was trained from? Nothing was kept."
        )
    return Verification(difference, LOGIT_TOLERANCE[dtype])


def _check_modules(model: Any, tensors: Mapping[str, SafetensorsFile], merged: Path, renamed: Mapping[str, str]) -> str:
    """Every adapted weight; returns the coarsest dtype among them."""
    from peft.tuners.lora import LoraLayer

    dtypes = {"F32"}
    for name, layer in model.base_model.model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        delta = layer.get_delta_weight("default").numpy()  # pyright: ignore[reportAttributeAccessIssue]
        wanted = layer.get_base_layer().weight.numpy() + delta  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        tensor = renamed.get(name, f"{name}.weight")
        file = tensors[tensor]
        dtype = file.entries[tensor].dtype
        slack = HALF_STEP[dtype] * np.abs(wanted) + 1e-5 * np.abs(delta).max() + 1e-7
        if not (np.abs(file.read(tensor) - wanted) <= slack).all():
            raise ExtrapolationError(
                f"{merged}: {name!r} is not base + delta as PEFT computes it. Is the base the one that was trained from? Nothing was kept."
            )
        dtypes.add(dtype)
    return max(dtypes, key=lambda dtype: LOGIT_TOLERANCE[dtype])


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings of the libraries."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if enabled:
            logging.enable_progress_bar()
