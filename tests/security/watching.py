"""Watch what this process does while it reads something hostile: whatever it starts, connects to or writes outside is an offence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "os.fork", "os.forkpty"}
READS_CODE = {"pickle.find_class"}
NETWORK = {"socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"}
CHANGES = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.chmod": ((0, 2),),
    "os.truncate": ((0, None),),
}
"""Events about paths: which of their arguments are paths that change, and the folders' descriptors that these start from."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Watch:
    """Offences while it is active; writing below `allowed` is none."""

    allowed: tuple[Path, ...]
    offences: list[str] = field(default_factory=list)
    active: bool = False

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The interpreter's audit hook."""
        if event in STARTS or event in READS_CODE or event in NETWORK:
            self.offences.append(f"{event} {arguments!r:.200}")
        elif (
            event == "ctypes.dlopen"
            and isinstance(arguments[0], str)
            and any(folder in Path(arguments[0]).parents for folder in self.allowed)
        ):
            self.offences.append(f"{event} {arguments[0]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self._write(event, arguments[0])
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                self._write(event, arguments[path], None if folder is None else arguments[folder])

    def _is_hostile(self, file: Path) -> bool:
        return any(file.is_relative_to(folder) for folder in self.allowed)

    def _write(self, event: str, path: Any, folder: int | None = None) -> None:
        if not isinstance(path, str | bytes):
            return
        start = Path(f"/proc/self/fd/{folder}").resolve() if folder is not None and folder >= 0 else Path.cwd()
        place = start / os.fsdecode(path)
        if place == Path(os.devnull) or any(place.resolve().is_relative_to(folder) for folder in self.allowed):
            return
        self.offences.append(f"{event} {place}")


_watches: list[Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _watches:
        if watch.active:
            watch.active = False  # what the watch itself does is not watched
            try:
                watch.see(event, arguments)
            finally:
                watch.active = True


sys.addaudithook(_hook)  # there is no way to take one off again


@contextmanager
def watched(*allowed: Path) -> Iterator[Watch]:
    """A watch that can be switched on and off; fails at the end when it saw an offence."""
    watch = Watch(tuple(folder.resolve() for folder in allowed))
    _watches.append(watch)
    try:
        yield watch
    finally:
        watch.active = False
        _watches.remove(watch)
    assert not watch.offences, "\n".join(watch.offences[:10])


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: content of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
