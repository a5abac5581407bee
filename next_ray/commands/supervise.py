"""`python -m next_ray.run --restarts N ...`: a parent that starts the run anew when it was killed or broke down.

It imports the standard library alone, so that it weighs little beside the run and survives what kills it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto

from next_ray.signals import ECHO_S, RUN_ME_AGAIN, STOPS

BROKE_DOWN = 1
"""Exit code of Python after an exception that nobody handled."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
LIVED_S = 60.0
"""A run that lasted longer is not counted among those that fail at once, which are started anew more and more slowly."""
PR_SET_PDEATHSIG = 1


class Ending(Enum):
    """What an exit status means for the supervisor."""

    FINAL = auto()
    FAULT = auto()
    AGAIN = auto()


def ending(status: int) -> Ending:
    """Of a `Popen.returncode`: a fault is worth a restart, being asked to stop, a user's error and success are not."""
    if status == RUN_ME_AGAIN:
        return Ending.AGAIN
    if status == BROKE_DOWN or (status < 0 and -status not in (*STOPS, signal.SIGPIPE)):
        return Ending.FAULT
    return Ending.FINAL


def exit_code(status: int) -> int:
    """A `Popen.returncode` as a shell reports it: 128 + n for a process that signal n ended."""
    return status if status >= 0 else 128 - status


def wait_s(quick_ends: int) -> float:
    """The wait before a restart, seconds, when so many runs in a row ended soon after their start."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** max(0, quick_ends - 1))


RESTARTS_VARIABLE = "NEXT_RAY_RESTARTS"
"""Environment variable of a supervised run: how often it is started anew, for the command that it prints to go on with."""


@dataclass
class Supervisor:
    """Runs a command again and again, `restarts` times at most after faults."""

    command: Sequence[str]
    restarts: int
    _child: subprocess.Popen[bytes] | None = None
    _pending: list[int] = field(default_factory=list)
    _stopped_by: int | None = None
    _heard: tuple[int, float] = (0, 0.0)

    def run(self) -> int:
        """Until the command ends for good; returns its last exit code. Handles the stop signals meanwhile; main thread only."""
        before = {number: signal.getsignal(number) for number in STOPS}
        heeded = [number for number in STOPS if before[number] is not signal.SIG_IGN]  # `nohup` and a shell's background jobs ignore some
        try:
            for number in heeded:
                signal.signal(number, self._stop)
            return self._run()
        finally:
            for number in heeded:
                signal.signal(number, before[number])

    def _run(self) -> int:
        used, quick_ends = 0, 0
        while True:
            started = time.monotonic()
            status = self._once()
            lasted = time.monotonic() - started
            if self._stopped_by is not None or ending(status) is Ending.FINAL:
                return exit_code(status)
            is_fault = ending(status) is Ending.FAULT
            what = f"the run {_words(status)} after {lasted:.0f} s"
            if is_fault and used == self.restarts:
                say(f"{what}, and all of its {used} restarts (--restarts) are used up")
                return exit_code(status)
            used += is_fault
            quick_ends = quick_ends + 1 if lasted < LIVED_S else 0
            pause = wait_s(quick_ends)
            say(f"{what}; starting it anew in {pause:g} s ({f'restart {used} of {self.restarts}' if is_fault else 'not counted'})")
            if not self._sleep(pause):
                return 128 + (self._stopped_by or 0)

    def _once(self) -> int:
        """Run the command in a process group of its own: a terminal's Ctrl-C reaches this process alone, which hands it on."""
        parent, libc = os.getpid(), ctypes.CDLL(None)
        with subprocess.Popen(self.command, process_group=0, preexec_fn=lambda: _share_fate(parent, libc)) as self._child:
            self._hand_on()
            status = self._child.wait()
        self._child = None
        return status

    def _stop(self, number: int, _: object) -> None:
        is_echo = self._heard[0] == number and time.monotonic() - self._heard[1] < ECHO_S
        self._heard = (number, time.monotonic())
        if not is_echo:
            self._stopped_by = number
            self._pending.append(number)
            self._hand_on()

    def _hand_on(self) -> None:
        """Send what has arrived, once there is somebody to send it to."""
        while self._child is not None and self._pending:
            with suppress(ProcessLookupError):
                self._child.send_signal(self._pending.pop(0))

    def _sleep(self, seconds: float) -> bool:
        """False when a stop was asked for meanwhile."""
        until = time.monotonic() + seconds
        while self._stopped_by is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return self._stopped_by is None


def _share_fate(parent: int, libc: ctypes.CDLL) -> None:
    """In the child, before the command: it is asked to stop when its supervisor is killed, since nobody could stop it then."""
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(exit_code(-signal.SIGTERM))


def _words(status: int) -> str:
    if status == RUN_ME_AGAIN:
        return "stopped after a checkpoint because its place goes away"
    if status >= 0:
        return f"broke down (exit code {status})"
    name = signal.Signals(-status).name
    return f"was killed by {name}{' (perhaps for want of memory)' if -status == signal.SIGKILL else ''}"


def say(sentence: str) -> None:
    """To standard error, where messages of the run's end go."""
    print(f"next_ray: {sentence}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """`RESTARTS WORD...`: supervise `python -m next_ray.run WORD...`."""
    return Supervisor([sys.executable, "-m", "next_ray.run", *arguments[1:]], int(arguments[0])).run()


def become_supervisor(restarts: int, words: Sequence[str]) -> None:
    """Turn this process, with all that it has imported, into a supervisor that has imported next to nothing; does not return."""
    os.environ[RESTARTS_VARIABLE] = str(restarts)
    os.execv(sys.executable, [sys.executable, "-m", "next_ray.commands.supervise", str(restarts), *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
