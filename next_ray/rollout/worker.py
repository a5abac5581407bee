"""An engine in a thread of its own: others hand batches and adapters to it while it samples."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from next_ray.errors import ConfigError, DataError, NextRayError, StaleCompletionError
from next_ray.rollout.engine import VllmEngine
from next_ray.rollout.stepping import Batch
from next_ray.types import Adapter, Group, RolloutRequest, Sampling, Weights

REFUSALS = (ConfigError, DataError, StaleCompletionError)
"""What an engine raises before it has changed anything: the caller's alone. Every other error ends the engine."""


@dataclass(frozen=True)
class Answer:
    """The groups of a batch in request order, and how many of its requests were begun anew under a newer adapter."""

    groups: list[Group]
    restarts: int


@dataclass(frozen=True)
class _Generate:
    requests: Sequence[RolloutRequest]
    sampling: Sampling
    future: Future[Answer] = field(default_factory=Future)


@dataclass(frozen=True)
class _Reload:
    version: int
    parts: Iterable[Weights] | None
    future: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class _Load:
    adapters: Mapping[int, Adapter]
    in_force: int
    future: Future[None] = field(default_factory=Future)


_Command = _Generate | _Load | _Reload


class EngineThread:
    """Builds, steps and closes a `VllmEngine` in one thread, since CPU threads and vLLM belong to the thread that built them.

    What is asked for is begun in the order of asking, between two steps of vLLM: a batch beside those in flight, adapters as soon
    as the slots have room for them beside those still in use. A deterministic engine takes the next thing when it has finished
    the last. The queue holds what callers wait for and nothing else: with a run's feed, at most `rollout.max_staleness` + 1
    batches and one load or evaluation.

    Args:
        build: makes the engine; called in the thread.
    """

    def __init__(self, build: Callable[[], VllmEngine]) -> None:
        self.ready: Future[None] = Future()
        self._build = build
        self._wake = threading.Condition()
        self._asked: deque[_Command] = deque()
        self._running: dict[Batch, Future[Answer]] = {}
        self._closing = False
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="rollout-engine", daemon=True)
        self._thread.start()

    def generate(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Future[Answer]:
        """Sample a batch. Cancelling the future drops what is left of it; errors are those of `VllmEngine.begin`."""
        command = _Generate(requests, sampling)
        self._ask(command)
        return command.future

    def load(self, adapters: Mapping[int, Adapter], in_force: int) -> Future[None]:
        """Serve these versions from the next step on; errors are those of `VllmEngine.load`."""
        command = _Load(adapters, in_force)
        self._ask(command)
        return command.future

    def reload(self, version: int, parts: Iterable[Weights] | None) -> Future[None]:
        """Serve other full weights once nothing is in flight any more, or at once where that is begun anew; as `VllmEngine.reload`.

        What is asked for later waits for it.
        """
        command = _Reload(version, parts)
        self._ask(command)
        return command.future

    def close(self) -> None:
        """End after the present step: every caller that waits gets an error, the engine is closed. Again is harmless."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _ask(self, command: _Command) -> None:
        with self._wake:
            if self._ended is not None:
                command.future.set_exception(self._ended)
            else:
                self._asked.append(command)
                self._wake.notify()

    def _work(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:
            self.ready.set_exception(error)
            self._end(error)
            return
        self.ready.set_result(None)
        with engine:
            try:
                while self._take(engine):
                    self._step(engine)
            except BaseException as error:
                self._end(error)
            else:
                self._end(NextRayError("The rollout engine was closed before it had answered. Run the same command again to go on."))

    def _take(self, engine: VllmEngine) -> bool:
        """Begin what was asked for and can be begun, waiting while there is nothing to do at all; False: it is time to close."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._asked or engine.busy)
        for batch in [batch for batch, future in self._running.items() if future.cancelled()]:
            engine.abort(batch)
            del self._running[batch]
        while not self._closing and self._asked and self._fits(engine, self._asked[0]):
            self._do(engine, self._asked[0])
            self._asked.popleft()  # only now: what fails in between is ended with the others
        return not self._closing

    def _fits(self, engine: VllmEngine, command: _Command) -> bool:
        if not engine.busy:
            return True
        if engine.deterministic:
            return False
        if isinstance(command, _Reload):
            return engine.restarts
        return isinstance(command, _Generate) or engine.has_room(len(command.adapters), command.in_force)

    def _do(self, engine: VllmEngine, command: _Command) -> None:
        if command.future.cancelled():
            return
        try:
            if isinstance(command, _Load):
                engine.load(command.adapters, command.in_force)
                _settle(command.future, None)
            elif isinstance(command, _Reload):
                engine.reload(command.version, command.parts)
                _settle(command.future, None)
            else:
                self._running[engine.begin(command.requests, command.sampling)] = command.future
        except REFUSALS as error:
            _settle(command.future, error)

    def _step(self, engine: VllmEngine) -> None:
        for batch in engine.step() if engine.busy else ():
            _settle(self._running.pop(batch), Answer(engine.groups(batch), batch.restarts))

    def _end(self, reason: BaseException) -> None:
        """Nobody waits for ever: all that is running or asked for, and all that will be, ends with `reason`."""
        with self._wake:
            self._ended = reason
            waiting = [*self._running.values(), *(command.future for command in self._asked)]
            self._running.clear()
            self._asked.clear()
        for future in waiting:
            _settle(future, reason)


def _settle(future: Future[Any], outcome: object) -> None:
    """Give a future its result or exception, unless it has one or its caller has lost interest."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
