"""A private folder for adapter files that does not outlive its process, not even after SIGKILL."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

import psutil

from next_ray.aftermath import Aftermath

PREFIX = "next_ray-adapters-"
LOCK_FILE = "lock"
SHARED_MEMORY = Path("/dev/shm")
SEGMENTS = ("psm_", "sem.mp-", "vllm_dist_")
"""Beginnings of the names that Python and vLLM give to shared memory. It outlives its processes, and who would remove it is killed, too."""


def default_root() -> Path:
    """Shared memory where there is one, else the folder for temporary files."""
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def shared_segments() -> list[str]:
    """Files of the shared memory by which this process and its descendants talk to each other."""
    found: set[str] = set()
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:  # it has just ended, or there is no /proc
            continue
        found |= {
            line.split(maxsplit=5)[5] for line in maps.splitlines() if f" {SHARED_MEMORY}/" in line and not line.endswith(" (deleted)")
        }
    return sorted(path for path in found if Path(path).name.startswith(SEGMENTS))


def remove_segments_after_us(but: Collection[str] = ()) -> Aftermath | None:
    """Have the present segments, without those named, removed once this process is gone; None when there are none."""
    segments = [path for path in shared_segments() if path not in but]
    return Aftermath('rm -f -- "$@"', *segments) if segments else None


class ScratchFolder:
    """A folder of mode 0700 that is removed when its holder ends, however it ends.

    Should that fail, the folder, whose lock nobody holds then, is swept by the next holder on the machine.

    Args:
        root: where to make it; `default_root()` when None.
    """

    def __init__(self, root: str | None = None) -> None:
        parent = Path(root).expanduser() if root else default_root()
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock: int | None = os.open(self.path / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._aftermath = Aftermath('rm -rf -- "$1"', str(self.path))

    def close(self) -> None:
        """Remove the folder with all that is in it; again is harmless."""
        if self._lock is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = None
        self._aftermath.close()


def sweep(parent: Path) -> list[Path]:
    """Remove this user's scratch folders that nobody holds any more; returns them.

    A folder without a lock file may be one that is being made this moment, so it stays.
    """
    removed: list[Path] = []
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, or not yet locked
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its process lives
        else:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        finally:
            os.close(lock)
    return removed
