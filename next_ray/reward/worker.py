"""A disposable verifier process: `python -m next_ray.reward.worker MEMORY_MIB CPU_S WALL_S PARENT_PID`.

Requests are JSON lines on standard input, replies on what was standard output; anything a library prints goes nowhere.

    {"load": "math"}                                              -> {"loaded": "math"} or {"failed": "why"}
    {"id": 7, "kinds": [...], "text": ..., "answer": ..., "metadata": ...} -> {"id": 7, "rewards": [1.0], "verdict": "ok"}

The process limits itself before it does anything, dies with its parent, and leaves with `RETIRED` between two answers when
it has used up its CPU time or grown large, so that no answer pays for what others consumed.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from typing import Any, BinaryIO

from next_ray.stacks import die_with_parent

RETIRED = 77
"""Exit status: everything answered so far is valid, nothing else was begun."""
OUT_OF_MEMORY = 78
"""Exit status: memory ran out in the middle of the request at hand."""

MAX_FILE_BYTES = 2**20
SLOW_S = 0.02
"""Answers that took longer are followed by a look at the memory; quicker ones by one every `LOOK_EVERY` answers."""
LOOK_EVERY = 256


def main(arguments: list[str]) -> int:
    """Serve until standard input ends; returns the exit status."""
    memory_mib, cpu_s, wall_s, parent = (float(argument) for argument in arguments)
    limit(int(memory_mib) * 2**20, int(cpu_s) + math.ceil(wall_s) + 1)
    die_with(int(parent))
    replies = _private_replies()
    try:
        _reply(replies, {"loaded": "core"})
        return _serve(sys.stdin.buffer, replies, int(memory_mib) * 2**20, cpu_s)
    except MemoryError:
        return OUT_OF_MEMORY


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Cap address space, CPU time and file sizes of this process; no core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the spawning thread ends; leave at once if that has happened already."""
    die_with_parent()
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


def _private_replies() -> BinaryIO:
    """The pipe to the parent under another descriptor; 1 and 2 lead nowhere from now on."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.register_at_fork(after_in_child=replies.close)  # else the parent would wait for the children of a worker that is gone
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return replies


def _serve(requests: BinaryIO, replies: BinaryIO, memory_bytes: int, cpu_s: float) -> int:
    from next_ray.reward.functions import search
    from next_ray.reward.verifiers import load

    answered = 0
    own_pid = os.getpid()
    ceiling = _ceiling(memory_bytes)
    for line in requests:
        request = json.loads(line)
        if "load" in request:
            try:
                search(request.get("paths", ()))
                load(request["load"])
            except (ImportError, MemoryError, OSError) as error:
                _reply(replies, {"failed": f"{type(error).__name__}: {error}"})
                return RETIRED
            _reply(replies, {"loaded": request["load"]})
            ceiling = _ceiling(memory_bytes)
            continue
        started = time.monotonic()
        verdict, rewards = judge(request)
        if os.getpid() != own_pid:
            return 0  # a copy that a verifier forked and forgot
        _reply(replies, {"id": request["id"], "rewards": rewards, "verdict": verdict})
        answered += 1
        if verdict == "memory" or time.process_time() > cpu_s:
            return RETIRED
        look = answered % LOOK_EVERY == 0 or time.monotonic() - started > SLOW_S
        if look and address_space_bytes() > ceiling:
            return RETIRED
    return 0


def judge(request: dict[str, Any]) -> tuple[str, list[float]]:
    """Verdict and the reward of each part of one request; whatever a verifier raises costs this answer and no other."""
    from next_ray.reward.verifiers import verify

    try:
        return "ok", [verify(kind, request["text"], request["answer"], request["metadata"]) for kind in request["kinds"]]
    except MemoryError:
        return "memory", []
    except Exception:
        return "error", []


def _ceiling(memory_bytes: int) -> int:
    """Three quarters of the way from the present size to the limit."""
    present = address_space_bytes()
    return present + (memory_bytes - present) * 3 // 4


def address_space_bytes() -> int:
    """Present size of this process' address space: what RLIMIT_AS limits."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _reply(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    # No tear-down of the interpreter: it takes long after sympy, and the parent waits for the exit status.
    os._exit(main(sys.argv[1:]))
