"""The engine's thread: order, room, dropped batches, errors and the end, over an engine whose steps the test allows one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

from next_ray.errors import ConfigError, ModelError, NextRayError, StaleCompletionError
from next_ray.rollout.engine import VllmEngine
from next_ray.rollout.probe import probe_adapter
from next_ray.rollout.stepping import Batch
from next_ray.rollout.worker import EngineThread
from next_ray.types import BASE_VERSION, Group, RolloutRequest, Sampling
from tests.rollout.test_engine import RANK, make_spec, requests_for
from tests.rollout.tiny_model import linear_shapes, prompt, save_tiny_model

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=8)
PATIENCE_S = 60


class ScriptedEngine:
    """Two adapter slots; a batch takes as many steps as its first request has samples, and the test pays for every step."""

    def __init__(self, deterministic: bool = False) -> None:
        self.deterministic = deterministic
        self.paid = threading.Semaphore(0)
        self.stepping = threading.Event()
        self.log: list[str] = []
        self.thread = threading.get_ident()
        self.served: set[int] = set()
        self.left: dict[Batch, int] = {}
        self.broken: Exception | None = None

    def __enter__(self) -> ScriptedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append("close")

    @property
    def busy(self) -> bool:
        return bool(self.left)

    def has_room(self, num_adapters: int, in_force: int = BASE_VERSION) -> bool:
        return num_adapters + len({batch.requests[0].version for batch in self.left} - {BASE_VERSION}) <= 2

    def load(self, adapters: Mapping[int, Any], in_force: int) -> None:
        assert threading.get_ident() == self.thread
        if in_force == 13:
            raise ModelError("vLLM does not accept it")
        if len(adapters) > 2:
            raise ConfigError("too many")
        assert self.has_room(len(adapters))
        self.served = set(adapters)
        self.log.append(f"load {sorted(adapters)}")

    def begin(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Batch:
        assert threading.get_ident() == self.thread
        if requests[0].version not in {BASE_VERSION, *self.served}:
            raise StaleCompletionError("not served")
        batch = Batch(list(requests), [[1]] * len(requests), sampling)
        self.left[batch] = requests[0].num_samples
        self.log.append(f"begin {requests[0].prompt.id}")
        return batch

    restarts = False

    def reload(self, version: int, parts: Any) -> None:
        assert not self.left or self.restarts
        self.log.append(f"reload {version}")

    def step(self) -> list[Batch]:
        self.stepping.set()
        assert self.paid.acquire(timeout=PATIENCE_S)
        if self.broken is not None:
            raise self.broken
        self.left = {batch: left - 1 for batch, left in self.left.items()}
        done = [batch for batch, left in self.left.items() if left == 0]
        self.left = {batch: left for batch, left in self.left.items() if left}
        self.log += [f"done {batch.requests[0].prompt.id}" for batch in done]
        return done

    def abort(self, batch: Batch) -> None:
        del self.left[batch]
        self.log.append(f"abort {batch.requests[0].prompt.id}")

    def groups(self, batch: Batch) -> list[Group]:
        return []


class Driver:
    """The engine, its thread, and what is asked of it."""

    def __init__(self, deterministic: bool = False) -> None:
        self.thread = EngineThread(lambda: self._built(deterministic))  # pyright: ignore[reportArgumentType]
        self.thread.ready.result(PATIENCE_S)

    def _built(self, deterministic: bool) -> ScriptedEngine:
        self.engine = ScriptedEngine(deterministic)
        return self.engine

    def generate(self, name: str, version: int = 0, steps: int = 1) -> Future[Any]:
        return self.thread.generate([RolloutRequest(prompt(name), version, 0, steps)], SAMPLING)

    def load(self, *versions: int, in_force: int = 0) -> Future[None]:
        return self.thread.load({version: {} for version in versions}, in_force)

    def pay(self, steps: int) -> None:
        self.engine.paid.release(steps)


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.pay(1000)
    made.thread.close()


def test_adapters_and_batches_are_taken_while_others_are_in_flight(driver: Driver) -> None:
    driver.load(1).result(PATIENCE_S)
    long = driver.generate("long", 1, steps=5)
    driver.engine.stepping.wait(PATIENCE_S)
    load, short = driver.load(2), driver.generate("short", 2, steps=2)
    driver.pay(1)
    load.result(PATIENCE_S)
    assert not long.done()
    driver.pay(2)
    short.result(PATIENCE_S)
    assert not long.done()
    driver.pay(2)
    long.result(PATIENCE_S)
    assert driver.engine.log == ["load [1]", "begin long", "load [2]", "begin short", "done short", "done long"]


def test_without_room_adapters_and_what_was_asked_after_them_wait_and_sampling_goes_on(driver: Driver) -> None:
    asked: list[Future[Any]] = [driver.load(1, 2), driver.generate("one", 1, steps=3), driver.generate("two", 2, steps=6)]
    asked += [driver.load(3), driver.generate("three", 3, steps=1)]
    driver.pay(100)
    wait(asked, PATIENCE_S)
    expected = ["load [1, 2]", "begin one", "begin two", "done one", "load [3]", "begin three", "done three", "done two"]
    assert driver.engine.log == expected


def test_a_deterministic_engine_takes_one_thing_at_a_time() -> None:
    driver = Driver(deterministic=True)
    asked: list[Future[Any]] = [driver.generate("a", steps=3), driver.load(1), driver.generate("b", 1, steps=2), driver.generate("c")]
    driver.pay(100)
    wait(asked, PATIENCE_S)
    assert driver.engine.log == ["begin a", "done a", "load [1]", "begin b", "done b", "begin c", "done c"]
    driver.thread.close()


@pytest.mark.parametrize("restarts", [False, True])
def test_full_weights_wait_for_what_is_in_flight_unless_it_is_begun_anew(driver: Driver, restarts: bool) -> None:
    driver.engine.restarts = restarts
    asked: list[Future[Any]] = [driver.generate("a", steps=3)]
    driver.engine.stepping.wait(PATIENCE_S)
    asked += [driver.thread.reload(5, None), driver.generate("b")]
    driver.pay(10)
    wait(asked, PATIENCE_S)
    order = ["reload 5", "begin b", "done b", "done a"] if restarts else ["done a", "reload 5", "begin b", "done b"]
    assert driver.engine.log == ["begin a", *order]


def test_a_refusal_is_its_callers_alone(driver: Driver) -> None:
    good = driver.generate("good", steps=2)
    with pytest.raises(StaleCompletionError):
        stale = driver.generate("stale", version=9)
        driver.pay(1)
        stale.result(PATIENCE_S)
    with pytest.raises(ConfigError):
        wide = driver.load(1, 2, 3)
        driver.pay(1)
        wide.result(PATIENCE_S)
    good.result(PATIENCE_S)


def test_a_batch_that_nobody_waits_for_is_dropped_begun_or_not(driver: Driver) -> None:
    kept, begun = driver.generate("kept", steps=4), driver.generate("begun", steps=50)
    driver.engine.stepping.wait(PATIENCE_S)
    asked = driver.generate("asked")
    assert asked.cancel() and begun.cancel()
    driver.pay(4)
    kept.result(PATIENCE_S)
    assert driver.engine.log[-2:] == ["abort begun", "done kept"] and "begin asked" not in driver.engine.log
    driver.pay(1)
    driver.generate("next").result(PATIENCE_S)


@pytest.mark.parametrize("where", ["step", "load"])
def test_an_error_of_vllm_reaches_everybody_who_waits_or_comes_later(driver: Driver, where: str) -> None:
    waiting: list[Future[Any]] = [driver.generate("a", steps=5), driver.generate("b", steps=5)]
    driver.engine.stepping.wait(PATIENCE_S)
    if where == "step":
        driver.engine.broken = RuntimeError("vLLM does not accept it")
    else:
        waiting.append(driver.load(1, in_force=13))
    waiting.append(driver.generate("queued"))
    driver.pay(1)
    for future in waiting:
        with pytest.raises(ModelError if where == "load" else RuntimeError, match="does not accept"):
            future.result(PATIENCE_S)
    with pytest.raises(Exception, match="does not accept"):
        driver.generate("later").result(PATIENCE_S)
    driver.thread.close()
    assert driver.engine.log[-1] == "close"


def test_closing_ends_what_is_in_flight_and_in_the_queue(driver: Driver) -> None:
    waiting: list[Future[Any]] = [driver.load(1), driver.generate("a", 1, steps=50), driver.generate("b", steps=50), driver.load(2, 3)]
    driver.engine.stepping.wait(PATIENCE_S)
    closer = threading.Thread(target=driver.thread.close)
    closer.start()
    driver.pay(2)
    closer.join(PATIENCE_S)
    assert not closer.is_alive()
    for future in waiting[1:]:
        with pytest.raises(NextRayError, match="closed"):
            future.result(0)
    with pytest.raises(NextRayError, match="closed"):
        driver.generate("later").result(0)
    driver.thread.close()
    assert driver.engine.log.count("close") == 1


def test_an_engine_that_cannot_be_built_says_so_to_everybody() -> None:
    def build() -> VllmEngine:
        raise ConfigError("no such device")

    thread = EngineThread(build)
    for future in (thread.ready, thread.generate([], SAMPLING), thread.load({}, 0)):
        with pytest.raises(ConfigError, match="no such device"):
            future.result(PATIENCE_S)
    thread.close()


@pytest.mark.vllm
def test_vllm_in_a_thread_changes_adapters_under_way_and_closes_with_requests_in_flight(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    adapter = probe_adapter(linear_shapes(tmp_path / "model"), RANK, scale=0.5, seed=1, amplitude=0.5)
    thread = EngineThread(lambda: VllmEngine(make_spec(tmp_path / "model", tmp_path / "adapters")))
    thread.ready.result(10 * PATIENCE_S)
    long = Sampling(temperature=2.0, top_p=1.0, max_tokens=80)
    first = thread.generate(requests_for([0] * 16, samples=32), long)
    thread.load({1: adapter}, 1).result(PATIENCE_S)
    second = thread.generate(requests_for([1]), SAMPLING)
    assert not first.done(), "the load waited for the batch"
    answer = second.result(PATIENCE_S)
    assert {c.version for group in answer.groups for c in group.completions} == {1}
    assert answer.restarts == 0
    assert not first.done(), "the second batch waited for the first"
    with pytest.raises(StaleCompletionError, match=r"serves \[0, 1\]"):
        thread.generate(requests_for([2]), SAMPLING).result(PATIENCE_S)
    thread.close()
    with pytest.raises(NextRayError, match="closed"):
        first.result(0)
    assert not list((tmp_path / "adapters").iterdir())
