"""How every command ends: with one paragraph and an exit code, whatever stops it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from next_ray.errors import ActorLostError, NextRayError, StoppedError

USER_ERROR = 2
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
PIPE_CLOSED = 128 + signal.SIGPIPE
"""What a shell reports of a program that its reader left."""


def ended(work: Callable[[], object], interrupted: str) -> int:
    """Do `work`; returns the exit code: 0, or after a word on stderr 2 for a user error, 130 for Ctrl-C, 143 for SIGTERM.

    A reader of the output that has left (`| head -1`) is 141 without a word.

    Args:
        work: everything, its imports and the reading of arguments included.
        interrupted: what Ctrl-C and SIGTERM leave behind, said to the user.
    """
    terminated: list[int] = []
    try:
        with _sigterm_as_ctrl_c(terminated):
            try:
                work()
            finally:
                sys.stdout.flush()
    except StoppedError as stop:
        print(f"\n{stop}", file=sys.stderr)
        return stop.exit_code
    except ActorLostError as error:
        print(f"\nerror: {error} {interrupted[0].upper()}{interrupted[1:]}.", file=sys.stderr)
        return USER_ERROR
    except NextRayError as error:
        print(f"\nerror: {printable(str(error))}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return _stopped(TERMINATED if terminated else INTERRUPTED, interrupted)
    except BrokenPipeError:
        return _without_readers()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich's way to say so
            return _without_readers()
        if end.code == signal.SIGTERM:  # Ray's handler, which takes the place of ours while Ray runs
            return _stopped(TERMINATED, interrupted)
        raise
    return 0


def printable(text: str) -> str:
    """The text with control characters and the like spelled out: it may quote a file, and a terminal would obey it."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def _stopped(code: int, interrupted: str) -> int:
    print(f"\n{'terminated' if code == TERMINATED else 'interrupted'}; {interrupted}", file=sys.stderr)
    return code


@contextmanager
def _sigterm_as_ctrl_c(terminated: list[int]) -> Iterator[None]:
    """SIGTERM takes Ctrl-C's way, asyncio's included, and is noted in `terminated`."""

    def handle(number: int, frame: FrameType | None) -> None:
        terminated.append(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: deaf to Ctrl-C, but not to this
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    interrupt, before = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)


def _without_readers() -> int:
    """Nobody is told: what is still buffered would fail again when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    return PIPE_CLOSED
