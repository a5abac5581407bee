"""The verifier processes of a pool: started by one thread, replaced when they are gone."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from next_ray.config import RewardSection
from next_ray.errors import ConfigError
from next_ray.reward.process import Request, VerifierProcess
from next_ray.reward.verifiers import PYTHON, family
from next_ray.reward.worker import RETIRED

MAX_FAILED_STARTS = 3


class Crew:
    """`config.workers` running processes. Not thread-safe."""

    def __init__(self, config: RewardSection) -> None:
        self._config = config
        self._families: set[str] = set()
        self._failed_starts = 0
        self.counters: Counter[str] = Counter()
        # The kernel kills a worker when the thread that started it ends, so one thread starts them all and lives with the crew.
        self._spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verifier-spawner")
        self.processes = [self._spawn() for _ in range(config.workers)]

    def preload(self, families: Iterable[str]) -> None:
        """Have every process, and every later one, import these verifiers' libraries; returns before they have."""
        for name in sorted(set(families) - self._families):
            self._families.add(name)
            for process in self.processes:
                _load(process, name)

    def revive(self) -> None:
        """Replace processes that died unnoticed."""
        self.processes = [process if process.is_alive() else self._fresh(process) for process in self.processes]

    def renew(self) -> None:
        """Replace all: nothing that was sent before will be answered."""
        self.processes = [self._fresh(process) for process in self.processes]

    def replace(self, process: VerifierProcess, status: int) -> VerifierProcess:
        """A new process in the place of one that ended with `status`; raises `ConfigError` when they never get ready."""
        starting = bool(process.unanswered) and process.unanswered[0].item is None and status != RETIRED
        self._failed_starts = self._failed_starts + 1 if starting else 0
        self.counters["retired"] += status == RETIRED
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._failed_starts = 0
            raise ConfigError(
                f"verifier processes don't get ready (exit status {status}; reward.memory_mib={self._config.memory_mib}, "
                f"reward.cpu_s={self._config.cpu_s}): {process.last_words() or 'no message'}. Raise the limits, or mend the installation."
            )
        fresh = self._fresh(process)
        self.processes[self.processes.index(process)] = fresh
        return fresh

    def close(self) -> None:
        """End all processes and the thread that started them. Idempotent."""
        for process in self.processes:
            process.close()
        self._spawner.shutdown()

    def _fresh(self, process: VerifierProcess) -> VerifierProcess:
        process.close()
        self.counters["replaced"] += 1
        return self._spawn()

    def _spawn(self) -> VerifierProcess:
        process = self._spawner.submit(VerifierProcess, self._config).result()
        for name in sorted(self._families):
            _load(process, name)
        return process


def _load(process: VerifierProcess, name: str) -> None:
    paths = {"paths": [os.path.abspath(path) for path in sys.path]} if family(name) == PYTHON else {}
    process.send(Request(None, name), {"load": name, **paths})
