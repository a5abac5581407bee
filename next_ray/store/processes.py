"""Which process of which machine somebody is, and whether it still runs, as far as this machine can tell."""

from __future__ import annotations

import os
from pathlib import Path


def machine() -> str:
    """This boot of this machine and its process name space; empty where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> str:
    """When the process started, in clock ticks since boot; empty when there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def is_dead(where: str, pid: int, start: str) -> bool:
    """Whether process `pid` of machine `where` that began at `start` no longer runs; False when that cannot be known."""
    here = machine()
    return bool(here) and where == here and started(pid) != start
