"""Run a command and sample the memory of it and of every process it started."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MIB = 2**20


@dataclass
class Watched:
    """What was seen of a finished command. `series[pid]` lists (mark, MiB of proportional set size)."""

    returncode: int = -1
    wall_s: float = 0.0
    peak_mib: float = 0.0
    names: dict[int, str] = field(default_factory=dict)
    series: dict[int, list[tuple[int, float]]] = field(default_factory=dict)


def watch(command: Sequence[str], log: Path, mark: Callable[[], int] = int, interval_s: float = 1.0) -> Watched:
    """Run `command` with its output in `log`; proportional set sizes count shared pages once over all processes.

    `mark` is asked at every sample where the command is, for example how many steps are done.
    """
    seen = Watched()
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, seen, mark, interval_s, done))
        sampler.start()
        seen.returncode = process.wait()
        done.set()
        sampler.join()
    seen.wall_s = time.monotonic() - started
    return seen


def _sample(pid: int, seen: Watched, mark: Callable[[], int], interval_s: float, done: threading.Event) -> None:
    while not done.wait(interval_s):
        total, at = 0.0, mark()
        try:
            root = psutil.Process(pid)
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                mib = process.memory_full_info().pss / MIB
                name = " ".join(process.cmdline())[:80] or process.name()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            total += mib
            seen.names[process.pid] = name
            seen.series.setdefault(process.pid, []).append((at, mib))
        seen.peak_mib = max(seen.peak_mib, total)
