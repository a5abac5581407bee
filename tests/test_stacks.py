"""Stacks of real processes that are stuck in the ways that actors get stuck."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from next_ray import stacks

ROOT = Path(__file__).resolve().parent.parent
STUCK = {
    "time.sleep": "def stuck():\n    time.sleep(600)",
    "a Python loop": "def stuck():\n    while True:\n        pass",
    "a lock": "def stuck():\n    lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()",
    "C code that holds the interpreter's lock": "def stuck():\n    re.match('(a+)+$', 'a' * 60 + 'b')",
    "a thread": "def stuck():\n    thread = threading.Thread(target=other)\n    thread.start()\n    thread.join()",
}


@contextmanager
def process(body: str, answering: bool = True) -> Iterator[subprocess.Popen[str]]:
    code = "import re, threading, time\nfrom next_ray import stacks\n\ndef other():\n    time.sleep(600)\n\n"
    code += f"{body}\n\n{'stacks.answer()' if answering else ''}\nprint('up', flush=True)\nstuck()\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "up\n"
            time.sleep(0.2)
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("body", STUCK.values(), ids=STUCK)
def test_a_stuck_process_shows_where_and_lives_on(body: str) -> None:
    with process(body) as child:
        for _ in range(2):
            found = stacks.read(child.pid)
            assert " in stuck" in found, found
            assert found.count("in <module>") == 1, "the second reading repeats nothing of the first"
        assert ("in other" in found) == ("target=other" in body)
        assert child.poll() is None


def test_a_process_without_the_handler_is_left_alone() -> None:
    with process(STUCK["time.sleep"], answering=False) as child:
        assert not stacks.answers(child.pid)
        assert "does not show" in stacks.read(child.pid)
        assert child.poll() is None


def test_a_stopped_process_is_told_apart_and_answers_later() -> None:
    with process(STUCK["time.sleep"]) as child:
        child.send_signal(signal.SIGSTOP)
        assert "no answer to SIGUSR2 in 0.5 s" in stacks.read(child.pid, wait_s=0.5)
        child.send_signal(signal.SIGCONT)
        assert " in stuck" in stacks.read(child.pid)


def test_a_process_that_is_gone_is_no_error() -> None:
    with process(STUCK["time.sleep"]) as child:
        pass
    assert "does not show" in stacks.read(child.pid)
