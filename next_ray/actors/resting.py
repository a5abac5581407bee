"""Who has had nothing to do for how long, and what happens then."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from next_ray.actors.seats import Seat


class Resting:
    """A timer for each seat that starts when its work ends, and calls `over` with the seat after `idle_s` seconds (None: never).

    Who has not worked yet is not timed: an actor that has just come is about to get its first work.
    """

    def __init__(self, idle_s: float | None, over: Callable[[Seat], None]) -> None:
        self._idle_s, self._over = idle_s, over
        self._under_way: Counter[Seat] = Counter()
        self._timers: dict[Seat, asyncio.TimerHandle] = {}

    @contextmanager
    def work(self, seat: Seat) -> Iterator[None]:
        """What is inside is work of this seat's actor."""
        self._stop(seat)
        self._under_way[seat] += 1
        try:
            yield
        finally:
            self._under_way[seat] -= 1
            if self._idle_s is not None and not self._under_way[seat]:
                self._stop(seat)
                self._timers[seat] = asyncio.get_running_loop().call_later(self._idle_s, self._over, seat)

    def close(self) -> None:
        """Time nobody any more."""
        self._idle_s = None
        for seat in list(self._timers):
            self._stop(seat)

    def _stop(self, seat: Seat) -> None:
        if (timer := self._timers.pop(seat, None)) is not None:
            timer.cancel()
