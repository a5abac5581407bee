"""An actor that is killed takes everything that it started along, also what is stuck."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from next_ray.actors.cluster import actor_environment, open_cluster
from next_ray.actors.engines import EngineRemote
from next_ray.actors.observed import NAME_VARIABLE, read_stacks, run_actors
from next_ray.actors.shipping import ModelPlace
from next_ray.actors.verifiers import VerifierRemote
from next_ray.config import ClusterSection, ModelSection, RewardSection
from tests.processes import are_gone_within, family, is_removed_within, lines, segments_of
from tests.rollout.test_engine import make_spec
from tests.rollout.tiny_model import save_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.vllm]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with open_cluster(ClusterSection(dashboard=False), "test-reaping", embedded_cpus=2):
            yield


def start(remote: Any, what: str, *arguments: Any) -> Any:
    return remote.options(num_cpus=0, runtime_env=actor_environment("cpu", 1, {NAME_VARIABLE: what})).remote(*arguments)


def pid_of(what: str) -> int:
    (found,) = [one.pid for one in run_actors() if one.name == what]
    return found


def commands(processes: list[psutil.Process]) -> str:
    return "\n".join(lines(processes))


def test_an_engines_worker_processes_end_with_it_though_one_is_stuck(tmp_path: Path) -> None:
    model, scratch = tmp_path / "model", tmp_path / "scratch"
    model.mkdir()
    save_tiny_model(model)
    spec = make_spec(model, scratch)
    two = spec.rollout.model_copy(update={"dtype": "float32", "tensor_parallel_size": 2})
    place = ModelPlace(ModelSection(), str(model), "")
    engine = start(EngineRemote, "rollout engine 0", replace(spec, rollout=two), place, None)
    ray.get(engine.ready.remote())
    pid = pid_of("rollout engine 0")
    started = family(pid)
    workers = [process for process in started if "VLLM" in commands([process]).upper()]
    assert len(workers) == 2, commands(started)
    (folder,) = scratch.iterdir()
    segments = segments_of([psutil.Process(pid), *started])
    assert segments, "vLLM's processes share memory"

    texts = asyncio.run(read_stacks(run_actors()))
    assert sum(text.count("worker_busy_loop") for text in texts.values()) >= 2, "vLLM's own processes show their stacks too"

    workers[0].send_signal(signal.SIGSTOP)  # as one that waits for its peer for ever: it will not look at any pipe
    os.kill(pid, signal.SIGKILL)
    are_gone_within(5, started)
    assert all(is_removed_within(5, path) for path in [folder, *segments])


def test_a_verifiers_processes_end_with_it() -> None:
    verifier = start(VerifierRemote, "verifier 0", RewardSection(workers=2), ["math"])
    ray.get(verifier.__ray_ready__.remote())
    pid = pid_of("verifier 0")
    started = family(pid)
    assert commands(started).count("next_ray.reward.worker") == 2
    os.kill(pid, signal.SIGKILL)
    are_gone_within(5, started)
