"""Supervised fine-tuning as a Ray Train job: one worker a DeepSpeed rank; the trained weights come back as its checkpoint."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from next_ray.actors.cluster import actor_environment, free_address
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.actors.warmstart import START_ATTEMPTS, fitted
from next_ray.checkpoints.tensor_writer import write_tensors
from next_ray.config.warmstart import FineTuningSection
from next_ray.learn.engine import join_process_group
from next_ray.learn.supervised import Pair, SupervisedSpec, fit

WEIGHTS_FILE = "trained.safetensors"


@dataclass(frozen=True)
class FineTuningJob:
    """What the workers do. `files` is a reference to the model's files where nodes cannot fetch it (see `shipping`)."""

    place: ModelPlace
    files: Any
    training: FineTuningSection
    seed: int
    deterministic: bool
    device: Literal["cpu", "gpu"]
    train: list[Pair]
    held_out: list[Pair]


@dataclass(frozen=True)
class FineTuned:
    """The float32 weights' file, optimizer steps, the held-out loss along the way, and all that was reported."""

    weights: Path
    steps: int
    held_out: list[tuple[int, float]]
    rows: list[dict[str, float]]


def fine_tune_with_ray(job: FineTuningJob, storage: str, folder: Path) -> FineTuned:
    """Fine-tune on the connected cluster; `storage` (path or URL) takes the weights, which are then brought to `folder`.

    Raises `PlacementError` when the workers find no place and `TrainingError` when the training fails.
    """
    import ray
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    cfg, on_gpu = job.training, job.device == "gpu"
    needs = {"CPU": 1.0, "GPU": 1.0} if on_gpu else {"CPU": 1.0}
    sent = {name: getattr(job, name) for name in ("place", "training", "seed", "deterministic", "device")}
    trainer = DataParallelTrainer(
        _worker,
        train_loop_config={**sent, "data": ray.put((job.train, job.held_out)), "files": job.files},
        scaling_config=ray.train.ScalingConfig(num_workers=cfg.ranks, use_gpu=on_gpu, resources_per_worker=needs),
        run_config=ray.train.RunConfig(
            name="warmstart",
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=START_ATTEMPTS - 1),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env=actor_environment(job.device, cfg.threads),
        ),
    )
    asks = f"{cfg.ranks} worker(s) ask for {', '.join(f'{amount:g} {name}' for name, amount in needs.items())} each"
    result = fitted(trainer, "The supervised fine-tuning", asks)
    result.checkpoint.to_directory(str(folder))
    return FineTuned(folder / WEIGHTS_FILE, **result.return_value)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """Runs in each of Ray Train's workers, which meet at rank 0's address; rank 0 leaves the weights."""
    import ray
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    context = ray.train.get_context()
    rank, world_size, local_rank = context.get_world_rank(), context.get_world_size(), context.get_local_rank()
    address, port = broadcast_from_rank_zero(free_address() if rank == 0 else None) or ("", 0)
    join_process_group(rank, world_size, address, port, config["device"], local_rank)
    place, files = config["place"], config["files"]
    spec = SupervisedSpec(
        model_path=localize(place, None if files is None else ray.get(files)),
        training=config["training"],
        seed=config["seed"],
        rank=rank,
        world_size=world_size,
        device=config["device"],
        gpu=get_device().index or 0,
        deterministic=config["deterministic"],
        trust_remote_code=place.section.trust_remote_code,
    )
    train, held_out = ray.get(config["data"])
    rows: list[dict[str, float]] = []
    trained = fit(spec, train, held_out, lambda metrics: rows.append(dict(metrics)))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = None
        if rank == 0:
            write_tensors({name: value.numpy() for name, value in trained.weights.items()}, "F32", Path(scratch) / WEIGHTS_FILE)
            checkpoint = ray.train.Checkpoint.from_directory(scratch)
        ray.train.report({"held_out_loss": trained.held_out[-1][1]}, checkpoint=checkpoint)
    return {"steps": trained.steps, "held_out": trained.held_out, "rows": rows}
