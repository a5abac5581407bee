"""Stacks of processes that do not answer: on a signal a process writes where each of its threads is, whatever it is busy with.

The handler is C code that needs neither the interpreter's lock nor the main thread's attention, so that a process is heard that
sleeps, waits, or is stuck in a library's call. What it writes goes into memory of its own that others of the same user find in
/proc and nothing has to clean up. Linux only; elsewhere processes have no stacks to show.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

SIGNAL = signal.SIGUSR2
"""Ray, vLLM and DeepSpeed leave it alone in their workers; a process without the handler is never sent it, since it would die."""
MEMORY = "next_ray-stacks"
SETTLED_S = 0.2
"""A text that did not grow for so long is complete."""
POLL_S = 0.02
PR_SET_PDEATHSIG = 1

_answering: int | None = None


def answer() -> None:
    """Let this process write the Python stacks of all its threads when `read` asks for them. Again is harmless."""
    global _answering
    if _answering is None and sys.platform == "linux":
        _answering = os.memfd_create(MEMORY)
        faulthandler.register(SIGNAL, file=_answering, all_threads=True, chain=False)


def answers(pid: int) -> bool:
    """Whether that process has called `answer` (and may be read by this user)."""
    return _memory(pid) is not None


def read(pid: int, wait_s: float = 5.0) -> str:
    """The Python stacks of that process's threads, or a word on why there are none within `wait_s` seconds."""
    memory = _memory(pid)
    if memory is None:
        return "(this process does not show its stacks)"
    try:
        before = memory.stat().st_size
        os.kill(pid, SIGNAL)
        if _settled_size(memory, before, wait_s) == before:
            return f"(no answer to {SIGNAL.name} in {wait_s:g} s: the process is stopped, or waits for the kernel)"
        with memory.open("rb") as file:
            file.seek(before)
            return file.read().decode(errors="replace").strip()
    except OSError:
        return "(this process has just ended)"


def _settled_size(memory: Path, before: int, wait_s: float) -> int:
    """The size, in bytes, once it has grown and stands still."""
    size, grown_at, deadline = before, time.monotonic(), time.monotonic() + wait_s
    while time.monotonic() < deadline and (size == before or time.monotonic() - grown_at < SETTLED_S):
        time.sleep(POLL_S)
        if (now := memory.stat().st_size) != size:
            size, grown_at = now, time.monotonic()
    return size


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _memory(pid: int) -> Path | None:
    """Where that process writes its stacks."""
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if descriptor.readlink().name.startswith(f"memfd:{MEMORY}"):
                return descriptor
    except OSError:  # it is gone, or another user's
        return None
    return None
