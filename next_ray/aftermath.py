"""What is done when this process has ended, however it ended: a shell waits for that."""

from __future__ import annotations

import os
import subprocess

WAITING = "exec 3<&0; { read _ <&3; %s; } >/dev/null 2>&1 &"
"""The shell leaves the one that waits behind as nobody's child: Ray ends the children of an actor that it kills."""


class Aftermath:
    """Commands of a POSIX shell that run once this process is gone, or at `close`; they must be harmless by then.

    Args:
        commands: the script; `$1`, `$2` ... are its arguments.
        arguments: words, handed over unchanged.
    """

    def __init__(self, commands: str, *arguments: str) -> None:
        reading, self._writing = os.pipe()  # processes that this one starts do not inherit the end that is kept open
        try:
            subprocess.run(["/bin/sh", "-c", WAITING % commands, "sh", *arguments], stdin=reading, start_new_session=True, check=True)
        finally:
            os.close(reading)

    def close(self) -> None:
        """Run them now, without waiting for their end. Idempotent."""
        writing, self._writing = self._writing, -1
        if writing >= 0:
            os.close(writing)
