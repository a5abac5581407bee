"""How a run ends early: somebody asks, the loop leaves what it is doing where that is harmless, commits, and ends."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from next_ray.errors import StoppedError
from next_ray.signals import ECHO_S, STOPS


class Stop:
    """A request to end, made at most once, and the places where it is heeded.

    `heeded` marks what can be abandoned at any moment without a trace. Everything else is finished before the request is met.
    """

    def __init__(self) -> None:
        self._asked: StoppedError | None = None
        self._inside: asyncio.Task[object] | None = None

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked."""
        return self._asked is not None

    def ask(self, stop: StoppedError) -> None:
        """Ask for an end with this error; only the first request counts."""
        if self._asked is None:
            self._asked = stop
            if self._inside is not None:
                self._inside.cancel()

    def forget(self) -> None:
        """The request was met, and the run goes on."""
        self._asked = None

    @asynccontextmanager
    async def heeded(self) -> AsyncIterator[None]:
        """Raise `StoppedError` when an end is asked for before or while what is inside runs; that is cancelled."""
        if self._asked is not None:
            raise self._asked
        task = asyncio.current_task()
        assert task is not None
        self._inside = task
        try:
            yield
        except asyncio.CancelledError:
            if self._asked is None or task.uncancel() > 0:  # somebody else cancelled, too
                raise
            raise self._asked from None
        finally:
            self._inside = None
        if self._asked is not None:  # the cancellation came too late: it is taken back, and the next one to heed the request ends
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            if task.uncancel() > 0:
                raise asyncio.CancelledError


@contextmanager
def signals_ask(stop: Stop, grace_s: float, resume: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP ask for an end while what is inside runs in the present task; those that are ignored stay so.

    A second signal, or `grace_s` seconds after the first, cancels the task: then what was done since the last checkpoint is lost. The
    same signal within half a second is the first one again, which `ray job stop` and a supervisor both send. `resume` is the command
    to go on with.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    hurried: list[StoppedError] = []
    timers: list[asyncio.TimerHandle] = []
    first: tuple[int, float] = (0, 0.0)

    def hurry(why: str, code: int) -> None:
        hurried.append(StoppedError(f"{why}: what was done after the last checkpoint is lost. Go on from there with:\n  {resume}", code))
        task.cancel()

    def handle(number: int) -> None:
        nonlocal first
        name, code = signal.Signals(number).name, 128 + number
        if first[0] == number and loop.time() - first[1] < ECHO_S:
            return
        if timers:
            hurry(f"stopped at once by a second {name}", code)
            return
        say(f"{name}: committing a checkpoint within {grace_s:g} s, then ending; once more ends at once")
        first = (number, loop.time())
        stop.ask(StoppedError(f"stopped by {name}, with everything committed. Go on with:\n  {resume}", code))
        timers.append(loop.call_later(grace_s, hurry, f"stopped by {name} and not done within recovery.grace_s={grace_s:g} s", code))

    before = {number: handler for number in STOPS if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    except asyncio.CancelledError:
        if hurried and task.uncancel() == 0:
            raise hurried[0] from None
        raise
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
