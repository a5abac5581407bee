"""Extrapolation inside a TRL (or any transformers) training run with a PEFT LoRA adapter.

```python
from next_ray.integrations.trl import ExtrapolationCallback
trainer = GRPOTrainer(..., peft_config=LoraConfig(...), callbacks=[ExtrapolationCallback(every_steps=10)])
trainer.train()
```
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from next_ray.adapter import CONFIG_FILE, WEIGHTS_FILE
from next_ray.checkpoints.open import open_trajectory
from next_ray.checkpoints.tensor_writer import write_tensors
from next_ray.commands.candidates import extrapolate, plan
from next_ray.commands.request import Choice, Method, Target
from next_ray.errors import ConfigError, NextRayError
from next_ray.extrapolate.methods.registry import METHODS, make
from next_ray.inspect.analysis import default_horizon, inspect_trajectory
from next_ray.inspect.document import document

logger = logging.getLogger(__name__)

TRAJECTORY, CANDIDATES, INSPECTION = "trajectory", "candidates", "inspection.json"
TRIED = tuple(name for name in METHODS if name != "next-released")
"""Methods of the back test; the predictor as published takes too long to be fitted again and again at the end of a run."""


class ExtrapolationCallback(TrainerCallback):
    """Collects the LoRA trajectory of a run, and at its end says whether to extrapolate it and writes candidates.

    Below `output_dir` it makes `trajectory/checkpoint-N` (PEFT folders, float32, what `python -m next_ray.inspect` and
    `python -m next_ray.extrapolate` read), `candidates/METHOD@ALPHA` (PEFT folders) and `inspection.json`, whose verdict is logged too.
    Adapters go to disk at once: nothing accumulates in memory. A run that is resumed goes on from the folder; checkpoints after the
    step it resumes from are removed, since that part is trained again. Whatever goes wrong after the start is logged and never ends
    the training.

    Args:
        every_steps: optimizer steps between two checkpoints of the trajectory.
        methods: names of methods (`python -m next_ray.extrapolate --list`).
        alphas: how far to extrapolate, in horizons; None: each method's own grid.
        horizon: checkpoints that alpha 1 reaches; None: a third of those collected.
        output_dir: where to write; None: `extrapolation` below the trainer's output folder.
        rank: recompress candidates to this rank; None: exact.
        inspect: back test all methods at the end and write `inspection.json`.

    Raises:
        ConfigError: a setting that makes no sense; when training starts: the model has no LoRA adapter that can be extrapolated, is
            sharded (FSDP, DeepSpeed ZeRO 3), or `output_dir` holds another run's trajectory.
    """

    def __init__(
        self,
        every_steps: int = 10,
        methods: Sequence[str] = ("next", "two-point"),
        alphas: Sequence[float] | None = None,
        horizon: int | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        rank: int | None = None,
        inspect: bool = True,
    ) -> None:
        if every_steps < 1:
            raise ConfigError(f"every_steps must be at least 1, got {every_steps}.")
        for name in methods:
            make(name)
        self.every_steps = every_steps
        self.methods, self.alphas, self.horizon, self.rank = tuple(methods), tuple(alphas) if alphas else None, horizon, rank
        self.inspect = inspect
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self._collecting = True

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse what cannot be done before any step is made, and tidy the folder of a run that is resumed."""
        if self.output_dir is None:
            self.output_dir = Path(str(args.output_dir)) / "extrapolation"
        refuse_sharded(args, kwargs["model"])
        if not state.is_world_process_zero:
            return
        with tempfile.TemporaryDirectory(prefix="next_ray-first-") as scratch:
            write_adapter(kwargs["model"], Path(scratch) / "checkpoint-1")
            open_trajectory([scratch])
        self._tidy(state.global_step)
        self._collecting = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the adapter when it is time."""
        if not (self._collecting and state.is_world_process_zero and state.global_step % self.every_steps == 0):
            return
        try:
            write_adapter(kwargs["model"], self._trajectory / f"checkpoint-{state.global_step}")
        except OSError as error:
            self._collecting = False
            logger.warning("next_ray stopped collecting the trajectory at step %d: %s", state.global_step, error)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Judge the trajectory and write the candidates."""
        if not state.is_world_process_zero:
            return
        try:
            self._finish(args.seed)
        except (NextRayError, OSError) as error:
            logger.warning("next_ray wrote no candidates: %s", error)

    @property
    def _root(self) -> Path:
        assert self.output_dir is not None, "known when training begins"
        return self.output_dir

    @property
    def _trajectory(self) -> Path:
        return self._root / TRAJECTORY

    def _tidy(self, step: int) -> None:
        """Remove what lies after `step`; a new run wants an empty folder."""
        found = steps_in(self._trajectory)
        if found and step == 0:
            raise ConfigError(
                f"{self._trajectory} holds the trajectory of another run (steps {min(found)} to {max(found)}). Resume that run "
                "(resume_from_checkpoint=True), give another output_dir, or remove the folder."
            )
        for left in (*(found[n] for n in found if n > step), *self._trajectory.glob(".checkpoint-*")):
            shutil.rmtree(left)
        if found and (missed := [n for n in range(self.every_steps, step + 1, self.every_steps) if n not in found]):
            logger.warning("next_ray: the trajectory in %s lacks the steps %s", self._trajectory, missed)

    def _finish(self, seed: int) -> None:
        paths = [str(self._trajectory)]
        target = Target(self._root / CANDIDATES, rank=self.rank, overwrite=True, nested=True)
        able: list[Method] = []
        for method in map(Method, self.methods):
            try:
                plan(paths, self._choice([method], seed), target)
                able.append(method)
            except NextRayError as error:
                logger.warning("next_ray: no candidate from %s: %s", method.name, error)
        if able:
            extrapolate(paths, self._choice(able, seed), target)
            logger.warning("next_ray: candidates are in %s", target.folder)
        if self.inspect:
            self._inspect(paths)

    def _choice(self, methods: Sequence[Method], seed: int) -> Choice:
        return Choice(tuple(methods), self.alphas, self.horizon, seed)

    def _inspect(self, paths: Sequence[str]) -> None:
        imported = open_trajectory(paths)
        horizon = self.horizon or default_horizon(imported.trajectory.num_checkpoints)
        found = inspect_trajectory(imported.trajectory, [make(name) for name in TRIED], horizon, notes=imported.notes)
        (self._root / INSPECTION).write_text(json.dumps(document(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        logger.warning("next_ray: %s", found.verdict.sentence)


def refuse_sharded(args: TrainingArguments, model: Any) -> None:
    """Raises `ConfigError` when no single process holds the adapter's parameters whole."""
    fsdp = bool(getattr(args, "fsdp", None)) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if fsdp or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ConfigError(
            "ExtrapolationCallback does not collect from sharded parameters (FSDP, DeepSpeed ZeRO 3). Let the trainer save checkpoints "
            "(save_steps) and give them to `python -m next_ray.extrapolate` afterwards, or use ZeRO 2."
        )


def write_adapter(model: Any, folder: Path) -> None:
    """Write the model's active LoRA adapter as a PEFT folder in float32, whole or not at all.

    Raises:
        ConfigError: the model has no LoRA adapter, or several active ones.
        OSError: the disk refuses.
    """
    from peft import PeftModel, get_peft_model_state_dict

    if not isinstance(model, PeftModel):
        raise ConfigError(
            "ExtrapolationCallback needs a model with a PEFT LoRA adapter: give the trainer a peft_config. Full-parameter checkpoints can "
            "be given to `python -m next_ray.extrapolate --merge` after the run."
        )
    if len(model.active_adapters) != 1:
        raise ConfigError(f"One active adapter is needed, the model has {list(model.active_adapters)}.")
    (name,) = model.active_adapters
    state: dict[str, Any] = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    tensors: dict[str, np.ndarray] = {key: tensor.detach().float().cpu().numpy() for key, tensor in state.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_tensors(tensors, "F32", draft / WEIGHTS_FILE)
        _write_config(model.peft_config[name], draft)
        draft.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_config(config: Any, folder: Path) -> None:
    config.save_pretrained(str(folder))
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "inference_mode": True}, indent=2, sort_keys=True), encoding="utf-8")


def steps_in(folder: Path) -> dict[int, Path]:
    """Step to folder of the checkpoints in a trajectory's folder."""
    found = {re.fullmatch(r"checkpoint-(\d+)", path.name): path for path in folder.glob("checkpoint-*")}
    return dict(sorted((int(match[1]), path) for match, path in found.items() if match))
