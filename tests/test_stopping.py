"""A run that is asked to end, at every moment of it: what is done is committed, and the next driver ends where one run would have."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from next_ray.errors import StoppedError
from next_ray.loop import TrainingLoop
from next_ray.stopping import Stop, signals_ask
from tests.test_loop import World, config

MOMENTS = {
    "generate": "rollout",
    "load": "rollout",
    "update": "learner",
    "snapshot": "learner",
    "adopt": "learner",
    "commit": "archive",
    "table": "archive",
    "record": "archive",
    "propose": "trajectory",
    "restart": "trajectory",
}
"""Calls of the stages before which, and after which, the end is asked for."""


def watched(loop: TrainingLoop, name: str, at: Callable[[int, bool], None]) -> None:
    """Call `at(count, is_over)` before and after every call `name` of its stage."""
    stage = getattr(loop.stages, MOMENTS[name])
    inner, count = getattr(stage, name), itertools.count(1)

    async def call(*arguments: Any) -> Any:
        i = next(count)
        at(i, False)
        await asyncio.sleep(0)  # where a cancellation can meet it
        value = await inner(*arguments)
        at(i, True)
        return value

    object.__setattr__(stage, name, call)


async def go(loop: TrainingLoop) -> None:
    await loop.rebuild_trajectory()
    await loop.run()


def last(world: World) -> Any:
    order = {"trained": 0, "jumped": 1}
    return max(world.archive.committed, key=lambda found: (found[0].step, order[found[0].kind]), default=None)


def settings() -> Any:
    plain = config(steps=8, checkpoints=3)
    return plain.model_copy(update={"evaluation": plain.evaluation.model_copy(update={"every_steps": 3})})


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize("name", MOMENTS)
def test_an_end_at_any_moment_loses_no_finished_step(name: str, is_over: bool) -> None:
    whole = World(settings(), gains={"next@1": 0.4})
    asyncio.run(go(whole.loop()))
    for number in itertools.count(1):
        stop = Stop()
        world = World(settings(), gains={"next@1": 0.4}, stop=stop)
        loop = world.loop()

        def at(i: int, over: bool, stop: Stop = stop, wanted: tuple[int, bool] = (number, is_over)) -> None:
            if (i, over) == wanted:
                stop.ask(StoppedError("asked", 143))

        watched(loop, name, at)
        with contextlib.suppress(StoppedError):
            asyncio.run(go(loop))
        if not stop.is_asked:
            break
        told = [(r.step, r.reward_mean) for r in world.report.steps]
        evaluated = [step for step, _ in world.report.evaluations]
        at_end = last(world)
        assert (at_end[0].step if at_end else 0) == (told[-1][0] if told else 0), "a finished step was not committed"
        world.stop = None
        asyncio.run(go(world.loop(at_end)))
        assert world.learner.skill == whole.learner.skill
        assert [*told, *((r.step, r.reward_mean) for r in world.report.steps)] == [(r.step, r.reward_mean) for r in whole.report.steps]
        assert [*evaluated, *(step for step, _ in world.report.evaluations)] == [3, 6]
        assert sum(m.kind == "jumped" for m, _ in world.archive.committed) == 1
    assert number > 1


def test_only_what_is_heeded_is_abandoned() -> None:
    async def scenario() -> list[str]:
        stop, said = Stop(), list[str]()

        async def work() -> None:
            await asyncio.sleep(0.01)
            said.append("finished what must be finished")
            async with stop.heeded():
                await asyncio.sleep(30)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        stop.ask(StoppedError("enough"))
        stop.ask(StoppedError("the second request does not count"))
        with pytest.raises(StoppedError, match="enough"):
            await task
        stop.forget()
        async with stop.heeded():
            said.append("and goes on")
        return said

    assert asyncio.run(scenario()) == ["finished what must be finished", "and goes on"]


def test_a_cancellation_is_no_request() -> None:
    async def scenario() -> None:
        stop = Stop()

        async def work() -> None:
            async with stop.heeded():
                await asyncio.sleep(30)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def ended_by(
    number: int, work: Callable[[Stop], Awaitable[None]], again: bool = False, grace_s: float = 30
) -> tuple[StoppedError, list[str]]:
    said: list[str] = []

    async def scenario() -> None:
        stop = Stop()
        loop = asyncio.get_running_loop()
        with signals_ask(stop, grace_s, "python -m next_ray.run job.yaml", said.append):
            loop.call_later(0.02, os.kill, os.getpid(), number)
            loop.call_later(0.03, os.kill, os.getpid(), number)  # an echo
            if again:
                loop.call_later(0.7, os.kill, os.getpid(), number)
            await work(stop)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError) as caught:
        asyncio.run(scenario())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    return caught.value, said


async def patient(stop: Stop) -> None:
    async with stop.heeded():
        await asyncio.sleep(30)


async def busy(stop: Stop) -> None:
    await asyncio.sleep(30)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_asks_and_says_how_to_go_on(number: int, code: int) -> None:
    error, said = ended_by(number, patient)
    assert error.exit_code == code
    assert "python -m next_ray.run job.yaml" in str(error)
    assert "everything committed" in str(error)
    assert len(said) == 1


def test_a_second_signal_ends_at_once() -> None:
    error, said = ended_by(signal.SIGTERM, busy, again=True)
    assert error.exit_code == 143
    assert len(said) == 1
    assert "second SIGTERM" in str(error)


def test_what_is_not_done_in_time_is_left() -> None:
    error, _ = ended_by(signal.SIGINT, busy, grace_s=0.05)
    assert "recovery.grace_s=0.05" in str(error)
