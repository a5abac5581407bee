"""What a process asked of a storage so far: counted where it is asked, exported by whoever has a place for numbers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Operation = Literal["read", "write", "list", "delete"]


@dataclass
class Usage:
    """Sums since the process began, safe to be counted by several threads.

    `operations`, `seconds` (pauses between attempts included) and `num_bytes` are by kind of operation; `retries` are repetitions of
    what a busy server or a lost connection had spoilt, `failures` are operations that failed all the same.
    """

    operations: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    failures: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def counted(self, operation: Operation, is_fault: Callable[[BaseException], bool]) -> Iterator[None]:
        """Count the block as one operation, and as a failure when it raises what `is_fault` says is one."""
        started, failed = time.perf_counter(), 0
        try:
            yield
        except BaseException as error:
            failed = int(is_fault(error))
            raise
        finally:
            with self._lock:
                self.operations[operation] += 1
                self.seconds[operation] += time.perf_counter() - started  # pyright: ignore[reportArgumentType] counters hold any number
                self.failures += failed

    def moved(self, operation: Operation, num_bytes: int) -> None:
        """Count bytes that were read or written."""
        with self._lock:
            self.num_bytes[operation] += num_bytes

    def retried(self) -> None:
        """Count one repetition."""
        with self._lock:
            self.retries += 1

    def sums(self) -> dict[tuple[str, str], float]:
        """All sums by name and kind of operation (empty where there is none)."""
        with self._lock:
            named = {"operations": self.operations, "seconds": self.seconds, "bytes": self.num_bytes}
            found = {(name, kind): float(value) for name, sums in named.items() for kind, value in sums.items()}
            return {**found, ("retries", ""): float(self.retries), ("failures", ""): float(self.failures)}
