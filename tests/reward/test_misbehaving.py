"""Verifiers that do to their process what a library's worst day could: each costs its own answer, and nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from next_ray.config import RewardSection
from next_ray.data.prompts import user_prompt
from next_ray.reward.pool import VerifierPool
from next_ray.types import Verdict

FUNCTIONS = """
import ctypes, os, signal, subprocess, sys, threading, time

def behaves(completion, answer, metadata):
    return {"fine": lambda: 1.0, **globals()["DEEDS"]}[completion]()

def everywhere(data):
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, data)
        except OSError:
            pass

def forks():
    if os.fork() == 0:
        time.sleep(600)
    return 1.0

def starts():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    os._exit(3)

def returns_twice():
    os.fork()
    return 1.0

def eats():
    return float(len([bytes(2**20) for _ in range(2**20)]))

def recurses():
    return recurses() + 1

def closes():
    os.closerange(0, 64)
    time.sleep(600)

DEEDS = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": eats,
    "recursion": recurses,
    "noise": lambda: (print("noise" * 9999), sys.stderr.write("noise"), os.write(1, b"noise"), os.write(2, b"noise"), 1.0)[-1],
    "garbage": lambda: everywhere(b"garbage\\n"),
    "forged": lambda: everywhere(b'{"id": 0, "rewards": [1.0], "verdict": "ok"}\\n' * 3),
    "endless": lambda: everywhere(b"x" * 10_000_000),
    "closes": closes,
    "exit": lambda: sys.exit(0),
    "interrupt": lambda: signal.raise_signal(signal.SIGINT),
    "forks": forks,
    "starts": starts,
    "twice": returns_twice,
}
"""
LOST = {
    **dict.fromkeys(("segfault", "abort", "killed", "garbage", "endless", "closes", "starts", "exit", "interrupt"), Verdict.CRASH),
    **{"memory": Verdict.MEMORY, "recursion": Verdict.ERROR},
}
HARMLESS = ("noise", "forks", "twice")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VerifierPool]:
    (tmp_path / "deeds.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with VerifierPool(RewardSection(verifier="python:deeds:behaves", wall_clock_s=20.0, memory_mib=512)) as pool:
        yield pool


def test_each_costs_its_own_answer(pool: VerifierPool) -> None:
    prompt = user_prompt("q", "", "python:deeds:behaves")
    deeds = [*LOST, *HARMLESS]
    judged = pool.score([(text, prompt) for deed in deeds for text in ("fine", deed, "fine")])
    own = dict(zip(deeds, judged[1::3], strict=True))
    others = [judgement for i, judgement in enumerate(judged) if i % 3 != 1]
    assert {(j.reward, j.verdict) for j in others} == {(1.0, Verdict.OK)}
    assert {deed: own[deed].verdict for deed in LOST} == LOST and {own[deed].reward for deed in LOST} == {0.0}
    assert {(own[deed].reward, own[deed].verdict) for deed in HARMLESS} == {(1.0, Verdict.OK)}


def test_what_a_worker_forked_ends_with_it(pool: VerifierPool) -> None:
    prompt = user_prompt("q", "", "python:deeds:behaves")
    assert pool.score([("forks", prompt)])[0].reward == 1.0
    children = psutil.Process(pool.pids[0]).children()
    assert len(children) == 1
    before = time.monotonic()
    assert [j.verdict for j in pool.score([("starts", prompt), ("fine", prompt)])] == [Verdict.CRASH, Verdict.OK]
    assert time.monotonic() - before < 15.0  # seen at once, not when the clock runs out
    started = psutil.Process(pool.pids[0])
    pool.close()
    assert _gone(children[0]) and _gone(started)


def test_a_reply_that_is_not_due_is_a_crash_and_no_reward(pool: VerifierPool) -> None:
    """What runs in the process could write replies; it cannot give one to another answer."""
    prompt = user_prompt("q", "", "python:deeds:behaves")
    judged = pool.score([("fine", prompt), ("forged", prompt), ("fine", prompt)])
    assert [j.reward for j in judged] == [1.0, 0.0, 1.0]


def _gone(process: psutil.Process) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False
