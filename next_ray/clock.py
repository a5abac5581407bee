"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from next_ray.ports import Reporter


class Clock:
    """Seconds on the critical path, by phase, of the present step."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self.times: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what runs inside to `name`."""
        self._report.phase(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The times since the last call."""
        times, self.times = self.times, {}
        return times
