"""The watchdog over real actors that hang in the ways that actors hang."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from next_ray.actors.cluster import actor_environment, open_cluster, result
from next_ray.actors.observed import NAME_VARIABLE, RunActor, run_actors
from next_ray.actors.waits import called, waits
from next_ray.actors.watchdog import FILE, task_stack, watchdog
from next_ray.config import ClusterSection, RecoverySection
from next_ray.errors import NextRayError

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
HANG_S = 2.0


class Worker(RunActor):
    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def pid(self) -> int:
        return os.getpid()

    def oversleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def search_without_end(self) -> None:
        re.match("(a+)+$", "a" * 60 + "b")  # C code that never lets go of the interpreter


class AsyncWorker(RunActor):
    async def wait(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "waited"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with open_cluster(ClusterSection(dashboard=False), "test-watchdog", embedded_cpus=2):
            yield


@contextlib.contextmanager
def actor(cls: Any, what: str) -> Iterator[Any]:
    environment = actor_environment("cpu", 1, {NAME_VARIABLE: what})
    handle = ray.remote(cls).options(num_cpus=0, runtime_env=environment).remote()
    ray.get(handle.__ray_ready__.remote())
    try:
        yield handle
    finally:
        ray.kill(handle)


def section(**fields: Any) -> RecoverySection:
    return RecoverySection(**{"hang_s": HANG_S, **fields})


def test_who_hangs_is_named_and_everybody_shows_where_he_is(tmp_path: Path) -> None:
    said: list[str] = []

    async def run() -> list[str]:
        async with watchdog(section(), tmp_path, said.append):
            quick = [result(fast.oversleep.remote(0.1), "quick ones") for _ in range(3)]
            verifier = result(slow.oversleep.remote(9), "a verifier")
            engine = result(waiting.wait.remote(9), "a rollout engine")
            return await asyncio.gather(verifier, engine, *quick)

    with actor(Worker, "verifier 0") as slow, actor(AsyncWorker, "rollout engine 0") as waiting, actor(Worker, "archive") as fast:
        pid = ray.get(slow.pid.remote())
        assert [one.name for one in run_actors()] == ["archive", "rollout engine 0", "verifier 0"]
        assert asyncio.run(run()) == ["slept", "waited", *["slept"] * 3], "warned of, not ended"
    words = "\n".join(said)
    call = r"oversleep \(test_watchdog.py:\d+\) for \d s, since \d\d:\d\d:\d\d"
    assert re.search(rf"hang: verifier 0 \(pid {pid} on [\d.]+, alive\) has not answered {call}", words), words
    assert "hang: rollout engine 0" in words and "archive" not in words
    assert words.count("stacks of 3 actors") == 1 and str(tmp_path / FILE) in words
    text = (tmp_path / FILE).read_text()
    assert "oversleep" in text and "Worker.oversleep" in text
    for name in ("verifier 0", "rollout engine 0", "archive"):
        assert f"==== {name} (pid" in text
    assert "process of" not in text
    assert "test_who_hangs_is_named_and_everybody_shows_where_he_is.<locals>.run" in text, "the driver's own task"
    assert waits() == []


@pytest.mark.parametrize("fault", ["a call in C", "stopped"])
def test_abort_ends_who_does_not_answer(tmp_path: Path, fault: str) -> None:
    said: list[str] = []

    async def run(call: Any) -> None:
        async with watchdog(section(on_hang="abort"), tmp_path, said.append):
            await result(call, "learner rank 0")

    with actor(Worker, "learner rank 0") as stuck, actor(Worker, "bystander") as other:
        pid: Any = ray.get(stuck.pid.remote())
        call = stuck.search_without_end.remote()
        if fault == "stopped":
            time.sleep(1)
            os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(NextRayError, match="learner rank 0 died"):
            asyncio.run(run(call))
        assert time.monotonic() - started < 30
        assert any("killing learner rank 0 (recovery.on_hang=abort)" in sentence for sentence in said), said
        assert ray.get(other.pid.remote()) != pid
        deadline = time.monotonic() + 15
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, "the process lives on"
            time.sleep(0.1)
    text = (tmp_path / FILE).read_text()
    assert (" in search_without_end" in text) == (fault == "a call in C")
    assert ("no answer to SIGUSR2" in text) == (fault == "stopped")


def test_without_a_hang_there_is_no_file_and_no_word(tmp_path: Path) -> None:
    said: list[str] = []

    async def run() -> None:
        async with watchdog(section(hang_s=60), tmp_path, said.append):
            with actor(Worker, "quick") as quick:
                await result(quick.pid.remote(), "quick")

    asyncio.run(run())
    assert said == [] and list(tmp_path.iterdir()) == []


BLOCKED = """if True:
    import asyncio, sys, time
    from pathlib import Path
    from next_ray.actors.watchdog import watchdog
    from next_ray.config import ClusterSection, RecoverySection
    def forget_to_await():
        time.sleep(3)
    async def run():
        async with watchdog(RecoverySection(hang_s=0.5, on_hang=sys.argv[2]), Path(sys.argv[1]), print):
            await asyncio.sleep(1)
            forget_to_await()
    asyncio.run(run())
"""


@pytest.mark.parametrize(("on_hang", "code"), [("warn", 0), ("abort", 1)])
def test_a_driver_that_does_not_come_to_its_turn_shows_where(tmp_path: Path, on_hang: str, code: int) -> None:
    command = [sys.executable, "-c", BLOCKED, str(tmp_path), on_hang]
    started = time.monotonic()
    found = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, capture_output=True, text=True)
    assert found.returncode == code, found.stderr
    assert "in forget_to_await" in (tmp_path / FILE).read_text()
    assert time.monotonic() - started > (3 if on_hang == "warn" else 0)


def test_a_tasks_stack_is_its_whole_chain_of_calls() -> None:
    async def inner() -> None:
        await asyncio.sleep(60)

    async def outer() -> None:
        await inner()

    async def look() -> str:
        task = asyncio.create_task(outer(), name="an example")
        await asyncio.sleep(0)
        text = task_stack(task)
        task.cancel()
        return text

    lines = asyncio.run(look()).splitlines()
    assert lines[0] == "an example:"
    assert [line.rpartition(" ")[2].rpartition(".")[2] for line in lines[1:4]] == ["outer", "inner", "sleep"]


def test_the_call_is_read_from_rays_note() -> None:
    lines = Path(__file__).read_text().splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if "slow.oversleep.remote(9)" in line)
    assert called(f"(actor call) | {__file__}:run:{number} | /elsewhere.py:main:3") == f" oversleep (test_watchdog.py:{number})"
    assert called("(actor call) | /gone.py:run:7") == " (gone.py:7)"
    assert called("") == "" and called("disabled") == ""
