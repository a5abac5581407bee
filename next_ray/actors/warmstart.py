"""The tiny model's supervised warm start as a Ray Train job.

One worker, which may sit on any node: the finished folder (a few megabytes) comes back as the training function's return
value, so no storage is shared between nodes.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from next_ray.errors import NextRayError, PlacementError, TrainingError
from next_ray.models.folder import read_files, write_files
from next_ray.models.tiny import train
from next_ray.models.tiny_spec import TinySpec

START_ATTEMPTS = 10
"""How often Ray Train tries to place the worker (a minute each) before the run gives up."""


def train_tiny_with_ray(spec: TinySpec, folder: Path, num_cpus: float = 1.0) -> None:
    """Train the tiny model of `spec` on the connected cluster and write its files to `folder` on this machine.

    `num_cpus` reserves CPUs for the worker; the training itself is single-threaded so that `spec` determines the bytes.
    Raises `PlacementError` when no node can take the worker and `TrainingError` when the training fails.
    """
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    with tempfile.TemporaryDirectory(prefix="next_ray-warmstart-") as storage:
        # Not a TorchTrainer: one worker needs no process group, and torch's listens to all the world.
        trainer = DataParallelTrainer(
            _train_worker,
            train_loop_config=asdict(spec),
            scaling_config=ray.train.ScalingConfig(num_workers=1, use_gpu=False, resources_per_worker={"CPU": num_cpus}),
            run_config=ray.train.RunConfig(
                name="tiny",
                storage_path=storage,
                failure_config=ray.train.FailureConfig(max_failures=1, controller_failure_limit=START_ATTEMPTS - 1),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        result = fitted(trainer, "The tiny model's supervised warm start", f"its worker asks for {num_cpus:g} CPU")
    files: Any = result.return_value
    write_files(files, folder)


def _train_worker(config: dict[str, Any]) -> dict[str, bytes]:
    """Runs in Ray Train's worker: train in a scratch folder and return its files."""
    import ray.train

    with tempfile.TemporaryDirectory() as scratch:
        train(TinySpec(**config), Path(scratch), lambda metrics: ray.train.report(dict(metrics)))
        return read_files(Path(scratch))


def fitted(trainer: Any, what: str, asks: str) -> Any:
    """`trainer.fit()`, quietly; failures come out as `TrainingError` and `PlacementError`.

    `what` names the job at the start of a sentence, `asks` says what its workers need.
    """
    import ray.train

    with _sigint_restored():
        try:
            with _quiet_logger("ray.train"):
                return trainer.fit()
        except ray.train.WorkerGroupError as error:
            cause = next(iter(error.worker_failures.values()), error)
            raise TrainingError(f"{what} failed: {_first_line(cause)}") from error
        except ray.train.ControllerError as error:
            raise _not_started(error.controller_failure, what, asks) from error


def _not_started(cause: BaseException, what: str, asks: str) -> NextRayError:
    """No room for the worker, or a worker that cannot start (for example because it cannot import this package)."""
    import ray

    if type(cause).__name__ != "WorkerGroupStartupTimeoutError":  # private to Ray Train
        return TrainingError(
            f"{what} could not start its workers: {_first_line(cause)}. "
            "Every node needs next_ray: install it there, or submit the job with --working-dir."
        )
    return PlacementError(
        f"{what} has no place: {asks}, the cluster has {ray.cluster_resources().get('CPU', 0):g} in all, "
        f"{ray.available_resources().get('CPU', 0):g} free. "
        "Add nodes, free some, or wait and start again."
    )


def _first_line(error: BaseException) -> str:
    """What a user needs of a worker's failure: our own message, else type and first line."""
    inner = getattr(error, "cause", None)
    error = inner if isinstance(inner, BaseException) else error
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if isinstance(error, NextRayError) else f"{type(error).__name__}: {text}"


@contextmanager
def _quiet_logger(name: str) -> Iterator[None]:
    """Only errors of one logger of this process, for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _sigint_restored() -> Iterator[None]:
    """Ray Train takes SIGINT over on the main thread and keeps it; give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
