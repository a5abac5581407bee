"""The watchdog: says who does not answer, writes where everybody is, and by configuration kills who keeps the run waiting."""

from __future__ import annotations

import asyncio
import faulthandler
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import ray
from ray._private.worker import global_worker
from ray.exceptions import RayError

from next_ray.actors.observed import Whereabouts, read_stacks, run_actors
from next_ray.actors.waits import Wait, overdue
from next_ray.config import RecoverySection

FILE = "hangs.txt"
"""In the run's output folder: stacks of actors and driver, one report a hang."""
LOOKS = 10
"""How often the waits are looked at within `recovery.hang_s`."""
LONGEST_PAUSE_S = 10.0
STATE_S = 30.0
"""How long the cluster may take to list the actors."""


@asynccontextmanager
async def watchdog(config: RecoverySection, folder: Path, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Watch the driver's waits, and the driver itself, for as long as the block lasts."""
    path = folder / FILE
    with _report_file(path) as file:
        dog = _Watchdog(config, path, file, say)
        tasks = [asyncio.create_task(dog.watch(), name="watchdog"), asyncio.create_task(_beat(config, file), name="watchdog's heartbeat")]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _report_file(path: Path) -> Iterator[IO[str]]:
    """Open for what comes; a run without hangs leaves no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        yield file
    if path.stat().st_size == 0:
        path.unlink()


async def _beat(config: RecoverySection, file: IO[str]) -> None:
    """Put off again and again that C code writes the driver's threads, and with `abort` ends it: the event loop is alive."""
    pause = pause_s(config)
    try:
        while True:
            faulthandler.dump_traceback_later(config.hang_s + pause, file=file, exit=config.on_hang == "abort")
            await asyncio.sleep(pause)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pause_s(config: RecoverySection) -> float:
    """Between two looks, seconds."""
    return min(config.hang_s / LOOKS, LONGEST_PAUSE_S)


class _Watchdog:
    def __init__(self, config: RecoverySection, path: Path, file: IO[str], say: Callable[[str], None]) -> None:
        self._config, self._path, self._file, self._say = config, path, file, say
        self._reported: list[Wait] = []

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(pause_s(self._config))
            late = overdue(self._config.hang_s)
            news = [wait for wait in late if wait not in self._reported]
            if news:
                is_same_hang = any(wait in late for wait in self._reported)
                self._reported = late
                await self._report(news, is_same_hang)

    async def _report(self, news: Sequence[Wait], is_same_hang: bool) -> None:
        """Say who is waited for; write the stacks, once a hang; kill who was called, if so configured."""
        actors = await _listed()
        by_id = {one.actor_id: one for one in actors}
        sentences = [_sentence(wait, by_id.get(wait.actor_id or "")) for wait in news]
        for sentence in sentences:
            self._say(f"hang: {sentence}")
        if not is_same_hang:
            self._write_driver(sentences)
            self._write_actors(actors, await read_stacks(actors))
            self._say(f"hang: the stacks of {len(actors)} actors and of the driver are in {self._path}")
        if self._config.on_hang == "abort":
            for wait in news:
                self._abort(wait, by_id.get(wait.actor_id or ""))

    def _abort(self, wait: Wait, actor: Whereabouts | None) -> None:
        if actor is not None and wait in overdue(self._config.hang_s):
            self._say(f"hang: killing {actor.name} (recovery.on_hang=abort)")
            kill(actor.actor_id)

    def _write_driver(self, sentences: Sequence[str]) -> None:
        write = self._file.write
        write(f"==== {datetime.now().astimezone().isoformat(timespec='seconds')}\n")
        write("".join(f"{sentence}\n" for sentence in sentences))
        write("\n==== driver: what its tasks wait for, the innermost call last\n")
        write("\n".join(task_stack(task) for task in asyncio.all_tasks()))
        write("\n==== driver: threads, the innermost call first\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file)

    def _write_actors(self, actors: Sequence[Whereabouts], texts: dict[str, str]) -> None:
        for one in actors:
            self._file.write(f"\n==== {one.describe()}: threads, the innermost call first\n{texts[one.actor_id]}\n")
        self._file.write("\n")
        self._file.flush()


async def _listed() -> list[Whereabouts]:
    """The run's actors; none when the cluster does not say."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(run_actors), STATE_S)
    except (TimeoutError, RayError):
        return []


def _sentence(wait: Wait, actor: Whereabouts | None) -> str:
    who = wait.what if actor is None else actor.describe()
    waited = time.monotonic() - wait.since
    since = datetime.fromtimestamp(time.time() - waited).strftime("%H:%M:%S")
    return f"{who} has not answered{wait.call} for {waited:.0f} s, since {since}"


def kill(actor_id: str) -> None:
    """End an actor of this driver at once, as `ray.kill` does, whose handle is not at hand; one that is dead is no error."""
    worker: Any = global_worker
    worker.core_worker.kill_actor(ray.ActorID.from_hex(actor_id), True)


def task_stack(task: asyncio.Task[Any]) -> str:
    """A task's name and the chain of calls it waits in, the innermost last."""
    lines = [f"{task.get_name()}:"]
    at: Any = task.get_coro()
    while at is not None:
        code = getattr(at, "cr_code", None) or getattr(at, "gi_code", None) or getattr(at, "ag_code", None)
        frame = getattr(at, "cr_frame", None) or getattr(at, "gi_frame", None) or getattr(at, "ag_frame", None)
        if code is None:
            break
        line = frame.f_lineno if frame is not None else code.co_firstlineno
        lines.append(f'  File "{code.co_filename}", line {line} in {code.co_qualname}')
        at = getattr(at, "cr_await", None) or getattr(at, "gi_yieldfrom", None) or getattr(at, "ag_await", None)
    return "\n".join(lines) + "\n"
