"""A private folder for adapter files that does not outlive its process, not even after SIGKILL."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PREFIX = "next_ray-adapters-"
LOCK_FILE = "lock"
JANITOR = 'exec 3<&0; { read _ <&3; rm -rf -- "$1"; } >/dev/null 2>&1 &'
"""A shell's script: remove the folder once the pipe from its holder breaks. It leaves at once a child behind that is nobody's, since
Ray ends the children of an actor that it kills."""


def default_root() -> Path:
    """Shared memory where there is one, else the folder for temporary files."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


class ScratchFolder:
    """A folder of mode 0700 that is removed when its holder ends, however it ends.

    A shell waits for that end. Where it was killed too, the folder, whose lock nobody holds then, is swept by the next holder.

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
        self._pipe = _start_janitor(self.path)

    def close(self) -> None:
        """Remove the folder with all that is in it; again is harmless."""
        if self._lock is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = None
        os.close(self._pipe)


def _start_janitor(folder: Path) -> int:
    """Returns the pipe's end that this process has to keep open; no process that it starts inherits it."""
    reading, writing = os.pipe()
    try:
        subprocess.run(["/bin/sh", "-c", JANITOR, "sh", str(folder)], stdin=reading, start_new_session=True, check=True)
    finally:
        os.close(reading)
    return writing


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
