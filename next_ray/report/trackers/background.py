"""A tracker in a thread of its own: whatever it does, training neither waits for it nor ends with it."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

LONGEST_QUEUE = 1000
"""Records that wait for a slow tracker; a record beyond them is lost."""
RETRY_S = 30.0
"""A tracker that could not begin is asked again after so long."""
CLOSE_S = 20.0
"""How long the end of a run waits for a tracker."""
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME")
_IN_URL = re.compile(r"//[^/@\s]+@")


class Tracker(Protocol):
    """A place for metrics. Every method may be slow and may raise anything; all are called in one thread."""

    def begin(self, from_step: int) -> None:
        """Be ready for rows after `from_step`; called again when the run goes back to an earlier step."""
        ...

    def write(self, row: Mapping[str, Any]) -> None:
        """Take a row."""
        ...

    def finish(self, step: int, summary: Mapping[str, Any]) -> None:
        """Take the final table."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


Job = tuple[str, tuple[Any, ...]]


class Background:
    """Hands records to a tracker, called `name` in messages, through a bounded queue; says that some are lost, and at the end how many."""

    def __init__(self, name: str, tracker: Tracker, say: Callable[[str], None], longest: int = LONGEST_QUEUE) -> None:
        self._name, self._tracker, self._say = name, tracker, say
        self._jobs: queue.Queue[Job | None] = queue.Queue(longest)
        self._num_given, self._num_done = 0, 0
        self._has_complained = threading.Lock()
        self._begun = False
        self._from_step, self._next_try = 0, 0.0
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def begin(self, from_step: int) -> None:
        """Rows after `from_step` follow."""
        self._put("begin", from_step)

    def write(self, row: Mapping[str, Any]) -> None:
        """Hand over a row."""
        self._num_given += 1
        self._put("write", dict(row))

    def finish(self, step: int, summary: Mapping[str, Any]) -> None:
        """Hand over the final table."""
        self._num_given += 1
        self._put("finish", step, summary)

    def close(self, wait_s: float | None = None) -> None:
        """Let the tracker send what is left, and go on without it after `wait_s` (default `CLOSE_S`); closing twice does nothing."""
        if not self._thread.is_alive():
            return
        wait_s = CLOSE_S if wait_s is None else wait_s
        deadline = time.monotonic() + wait_s
        with suppress(queue.Full):
            self._jobs.put(None, timeout=wait_s)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._has_complained.acquire(blocking=False)  # nobody listens any more
        if lost := self._num_given - self._num_done:
            self._say(f"{self._name}: {lost} of {self._num_given} records were not logged.")
        elif self._thread.is_alive():
            self._say(f"{self._name} did not end within {wait_s:g} s.")

    def _put(self, verb: str, *arguments: Any) -> None:
        try:
            self._jobs.put_nowait((verb, arguments))
        except queue.Full:
            self._complain("it is too slow")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            verb, arguments = job
            if verb == "begin":
                self._begun, self._from_step, self._next_try = False, arguments[0], 0.0
            if not self._begun and time.monotonic() >= self._next_try:
                self._begun = self._try(self._tracker.begin, self._from_step)
                self._next_try = time.monotonic() + RETRY_S
            if self._begun and verb != "begin":
                self._num_done += self._try(getattr(self._tracker, verb), *arguments)
        if self._begun:
            self._try(self._tracker.close)

    def _try(self, action: Callable[..., None], *arguments: Any) -> bool:
        """Whether it worked; a tracker's failures, of any kind, are its own."""
        try:
            action(*arguments)
        except Exception as error:
            self._complain(f"{type(error).__name__}: {error}")
            return False
        return True

    def _complain(self, why: str) -> None:
        if self._has_complained.acquire(blocking=False):
            self._say(f"{self._name} does not log everything, training goes on without it ({scrubbed(why)}).")


def scrubbed(text: str, limit: int = 300) -> str:
    """`text` on one line, without credentials of trackers and of URLs."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return " ".join(_IN_URL.sub("//***@", text).split())[:limit]
