"""One verifier process seen from its parent: non-blocking pipes, and a queue of the requests it has not answered yet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import next_ray
from next_ray.config import RewardSection

STARTUP_S = 120.0
"""Wall-clock limit of starting Python and of importing a verifier's libraries."""
READ_BYTES = 2**16
MAX_REPLY_BYTES = 2**16
"""A longer line is none of the worker's."""
POLL_S = 0.002
KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV")
"""All that a worker inherits: credentials (AWS, Ray, hubs) are not among it."""


@dataclass(frozen=True)
class Request:
    """A line sent: an item of the batch, or an import (`item` None)."""

    item: int | None
    kind: str


class VerifierProcess:
    """A running worker. Not thread-safe; owned by one pool."""

    def __init__(self, config: RewardSection) -> None:
        """Start it; blocks only for the exec. Call from a thread that lives as long as the process shall: its end kills it."""
        self._wall_clock_s = config.wall_clock_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed in `close`
        limits = (config.memory_mib, config.cpu_s, config.wall_clock_s, os.getpid())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "next_ray.reward.worker", *map(str, limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd="/",
            env=worker_environment(os.environ),
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.input, self.output = self._process.stdin, self._process.stdout
        os.set_blocking(self.input.fileno(), False)
        os.set_blocking(self.output.fileno(), False)
        self.unanswered: deque[Request] = deque([Request(None, "core")])
        self._to_write = bytearray()
        self._received = bytearray()
        self._progress = time.monotonic()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def wants_to_write(self) -> bool:
        """Whether bytes wait for room in the pipe."""
        return bool(self._to_write)

    @property
    def deadline(self) -> float:
        """When the oldest unanswered request has had its time (monotonic seconds)."""
        if not self.unanswered:
            return float("inf")
        return self._progress + (STARTUP_S if self.unanswered[0].item is None else self._wall_clock_s)

    def send(self, request: Request, line: Mapping[str, Any]) -> None:
        """Queue a request; `flush` writes it."""
        if not self.unanswered:
            self._progress = time.monotonic()
        self.unanswered.append(request)
        self._to_write += json.dumps(line).encode() + b"\n"

    def flush(self) -> None:
        """Write what the pipe takes now. A broken pipe is left for `read` to find as the end of the replies."""
        try:
            written = os.write(self.input.fileno(), self._to_write)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._to_write.clear()
            return
        del self._to_write[:written]
        self._progress = time.monotonic()

    def read(self) -> Sequence[bytes] | None:
        """Complete reply lines that have arrived; None once the process has closed its end. A line without an end is cut, to be refused."""
        try:
            received = os.read(self.output.fileno(), READ_BYTES)
        except BlockingIOError:
            return ()
        if not received:
            return None
        self._received += received
        *lines, rest = bytes(self._received).split(b"\n")
        if len(rest) > MAX_REPLY_BYTES:
            lines, rest = [*lines, rest], b""
        self._received = bytearray(rest)
        if lines:
            self._progress = time.monotonic()
        return lines

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.returncode is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def end(self, grace_s: float = 0.0) -> int:
        """Reap the process, killing it if it still runs after `grace_s`; frees its pipes. Returns its exit status. Idempotent.

        What it forked is killed with it: the group's number is not free before its leader is reaped.
        """
        patience = time.monotonic() + grace_s
        while self.is_alive() and time.monotonic() < patience:
            time.sleep(POLL_S)
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self.input.close()
        self.output.close()
        return self._process.returncode

    def last_words(self) -> str:
        """The end of what it wrote to standard error while starting."""
        if self._errors.closed:
            return ""
        self._errors.seek(0)
        return self._errors.read()[-1000:].decode(errors="replace").strip()

    def close(self) -> None:
        """`end` it, and forget the last words. Idempotent."""
        self.end()
        self._errors.close()


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The few variables a worker needs; everything else, credentials above all, stays outside."""
    kept = {name: environment[name] for name in KEPT_ENVIRONMENT if name in environment}
    root = str(Path(next_ray.__file__).resolve().parent.parent)
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
