"""Looking at the processes that a test's process left or should not have left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import psutil


def family(pid: int) -> list[psutil.Process]:
    """All descendants of a process, which is not among them."""
    return psutil.Process(pid).children(recursive=True)


def lines(processes: Sequence[psutil.Process]) -> list[str]:
    """What they are, for a failing test's message."""
    found = []
    for process in processes:
        try:
            found.append(f"{process.pid} {process.status()} {' '.join(process.cmdline())[:100] or process.name()}")
        except psutil.NoSuchProcess:
            continue
    return found


def are_gone_within(seconds: float, processes: Sequence[psutil.Process]) -> float:
    """Wait until none of them runs (a zombie does not); returns the seconds that took, or fails with those that are left."""
    started = time.monotonic()
    while left := [process for process in processes if _runs(process)]:
        assert time.monotonic() - started < seconds, lines(left)
        time.sleep(0.05)
    return time.monotonic() - started


def is_removed_within(seconds: float, path: Path) -> bool:
    """Wait for a file or folder to disappear."""
    deadline = time.monotonic() + seconds
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not path.exists()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def segments_of(processes: Sequence[psutil.Process]) -> set[Path]:
    """Shared memory that has a name and that one of them has mapped."""
    found: set[Path] = set()
    for process in processes:
        try:
            found |= {Path(one.path) for one in process.memory_maps() if one.path.startswith("/dev/shm/")}
        except (psutil.NoSuchProcess, FileNotFoundError):
            continue
    return {path for path in found if path.exists()}


def open_files(processes: Sequence[psutil.Process]) -> set[Path]:
    """What one of them has open."""
    found: set[Path] = set()
    for process in processes:
        try:
            found |= {Path(one.path) for one in process.open_files()}
        except psutil.NoSuchProcess:
            continue
    return found
