"""The pool with real processes: order, hangs, crashes, memory, limits, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from next_ray.config import ReasoningGymSource, RewardSection
from next_ray.data.prompts import user_prompt
from next_ray.data.sources import load_problems
from next_ray.errors import ConfigError
from next_ray.reward.pool import VerifierPool
from next_ray.types import Prompt, Verdict

ONE = user_prompt("1", "1", "exact")


def new_pool(**settings: Any) -> VerifierPool:
    return VerifierPool(RewardSection(**settings))


def maths(answer: str) -> Prompt:
    return user_prompt("q", answer, "math")


HANG = ("a" * 60, user_prompt("q", "", "regex:(a+)+b"))
"""A match that would take years."""


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_gone(pid: int) -> bool:
    """Dead, reaped or not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def verdicts(pool: VerifierPool) -> dict[str, int]:
    return {name: count for name, count in pool.counters.items() if count}


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_once_and_in_order(workers: int) -> None:
    draw = random.Random(0)
    pairs = [(draw.randint(0, 3), draw.randint(0, 3)) for _ in range(2000)]
    items = [(str(given), user_prompt("q", str(answer), "exact")) for given, answer in pairs]
    with new_pool(workers=workers) as pool:
        for size in (0, 1, 2, 33, 2000):
            judged = pool.score(items[:size])
            assert [judgement.reward for judgement in judged] == [float(given == answer) for given, answer in pairs[:size]]
        assert verdicts(pool) == {"ok": 2036}
        assert len(pool.pids) == workers


def test_a_hang_costs_one_reward() -> None:
    good = ("aab", HANG[1])
    items: list[tuple[str, Prompt]] = [good] * 40
    items[5] = items[20] = HANG
    with new_pool(wall_clock_s=3.0) as pool:
        before = pool.pids
        judged = pool.score(items)
        assert [j.verdict for j in judged] == [Verdict.TIMEOUT if i in (5, 20) else Verdict.OK for i in range(40)]
        assert [j.reward for j in judged] == [float(i not in (5, 20)) for i in range(40)]
        assert verdicts(pool) == {"ok": 38, "timeout": 2, "replaced": 2}
        assert wait_for(lambda: is_gone(before[0]))


def test_a_hang_does_not_hold_up_the_other_worker() -> None:
    with new_pool(workers=2, wall_clock_s=8.0) as pool:
        pool.score([("1", HANG[1]), *[("1", ONE)] * 10])
        judged = pool.score([HANG, *[("1", ONE)] * 200])
        assert [j.verdict for j in judged] == [Verdict.TIMEOUT] + [Verdict.OK] * 200
        assert pool.counters["replaced"] == 1


def test_a_stopped_process_is_killed_by_the_clock() -> None:
    with new_pool(wall_clock_s=1.5) as pool:
        pool.score([("1", ONE)])
        os.kill(pool.pids[0], signal.SIGSTOP)
        judged = pool.score([("1", ONE)] * 100)
        assert [j.verdict for j in judged] == [Verdict.TIMEOUT] + [Verdict.OK] * 99
        assert [j.reward for j in judged] == [0.0] + [1.0] * 99


def test_a_stopped_process_and_text_that_fills_the_pipe() -> None:
    with new_pool(wall_clock_s=1.5) as pool:
        pool.score([("1", ONE)])
        os.kill(pool.pids[0], signal.SIGSTOP)
        judged = pool.score([("x" * 2_000_000, ONE), ("1", ONE)])
        assert [(j.reward, j.verdict) for j in judged] == [(0.0, Verdict.TIMEOUT), (1.0, Verdict.OK)]


def test_a_crash_costs_one_reward() -> None:
    with new_pool(wall_clock_s=60.0) as pool:
        pool.score([("1", HANG[1])])
        victim = pool.pids[0]
        threading.Timer(1.0, os.kill, (victim, signal.SIGKILL)).start()
        judged = pool.score([("1", ONE), HANG, *[("1", ONE)] * 20])
        assert [j.verdict for j in judged] == [Verdict.OK, Verdict.CRASH] + [Verdict.OK] * 20
        assert [j.reward for j in judged] == [1.0, 0.0] + [1.0] * 20


def test_a_process_that_died_between_batches_costs_nothing() -> None:
    with new_pool(workers=2) as pool:
        pool.score([("1", ONE)] * 4)
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: all(is_gone(pid) for pid in pool.pids))
        assert [j.reward for j in pool.score([("1", ONE)] * 50)] == [1.0] * 50
        assert verdicts(pool) == {"ok": 54, "replaced": 2}


def test_memory_is_limited_and_counted() -> None:
    with new_pool(memory_mib=256, wall_clock_s=60.0) as pool:
        judged = pool.score([("1", ONE), ("x" * 150_000_000, ONE), ("1", ONE)])
        assert [(j.reward, j.verdict) for j in judged] == [(1.0, Verdict.OK), (0.0, Verdict.MEMORY), (1.0, Verdict.OK)]


def test_limits_are_set_and_credentials_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HF_TOKEN", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "secret-value")
    with new_pool(memory_mib=300, cpu_s=50, wall_clock_s=2.5) as pool:
        pool.score([("1", ONE)])
        with open(f"/proc/{pool.pids[0]}/environ", "rb") as file:
            assert b"secret-value" not in file.read()
        with open(f"/proc/{pool.pids[0]}/limits") as file:
            limits = {line[:25].strip(): line[25:].split()[:2] for line in file}
    assert limits["Max address space"] == [str(300 * 2**20)] * 2
    assert limits["Max cpu time"] == ["54", "55"]
    assert limits["Max core file size"] == ["0", "0"]


def test_a_process_retires_after_its_cpu_time_without_cost() -> None:
    with new_pool(cpu_s=1, wall_clock_s=60.0) as pool:
        for first in range(2, 402, 4):  # as many batches as a fast machine needs to use up the second
            judged = pool.score([(rf"\boxed{{x^{n}+1}}", maths(f"1+x^{n}")) for n in range(first, first + 4)])
            assert {(j.reward, j.verdict) for j in judged} == {(1.0, Verdict.OK)}
            if pool.counters["retired"]:
                break
        assert pool.counters["retired"] >= 1 and pool.counters["retired"] == pool.counters["replaced"]


def test_a_scorer_that_raises_is_counted() -> None:
    prompt = load_problems(ReasoningGymSource(task="prime_factorization", size=1), 0).prompts[0]
    with new_pool() as pool:
        judged = pool.score([("many", prompt), (prompt.answer, prompt)])
        assert [(j.reward, j.verdict) for j in judged] == [(0.0, Verdict.ERROR), (1.0, Verdict.OK)]
        assert pool.counters["replaced"] == 0


ODD = [
    "",
    "\n",
    "1\n1",
    "\x00",
    "\ud800",
    "\udcff\ud83d",
    "\u2028",
    '{"id": 0, "reward": 1.0, "verdict": "ok"}\n',
    "\U0001d7cf",
    "é" * 1_000_000,
    "\r\n",
]


def test_any_text_is_carried_faithfully() -> None:
    with new_pool() as pool:
        same = pool.score([(f"[{text}]", user_prompt("q", f"[{text}]", "exact")) for text in ODD])
        other = pool.score([(text, ONE) for text in ODD])
        mathematical = pool.score([(text, maths("1")) for text in ODD])
    assert [j.reward for j in same] == [1.0] * len(ODD)
    assert {(j.reward, j.verdict) for j in other + mathematical} == {(0.0, Verdict.OK)}


def test_threads_take_turns() -> None:
    def score(number: int) -> list[float]:
        return [j.reward for j in pool.score([(str(i % 5), user_prompt("q", str(number), "exact")) for i in range(300)])]

    with new_pool(workers=2) as pool, ThreadPoolExecutor(5) as threads:
        assert list(threads.map(score, range(5))) == [[float(i % 5 == number) for i in range(300)] for number in range(5)]


def test_unknown_verifiers_and_processes_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with new_pool() as pool:
        with pytest.raises(ConfigError, match="unknown verifier 'judge'"):
            pool.score([("1", user_prompt("q", "1", "judge"))])
        assert pool.score([("1", ONE)])[0].reward == 1.0
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with new_pool() as pool, pytest.raises(ConfigError, match=r"don't get ready \(exit status 1"):
        pool.score([("1", ONE)])


def test_an_abandoned_batch_leaves_no_replies_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from next_ray.reward import pool as module

    with new_pool() as pool:
        pool.score([("1", ONE)])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module._Batch, "_judge", _interrupt)
            pool.score([("1", ONE)] * 20)
        assert [j.reward for j in pool.score([("2", ONE)] * 20)] == [0.0] * 20


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_close_is_idempotent_and_ends_everything() -> None:
    pool = new_pool(workers=2, verifier="math")
    pids = pool.pids
    threads = threading.active_count()
    pool.close()
    pool.close()
    assert all(is_gone(pid) for pid in pids) and threading.active_count() < threads
    with pytest.raises(RuntimeError, match="closed"):
        pool.score([("1", ONE)])


@pytest.mark.parametrize("state", ["idle", "busy", "stopped"])
def test_processes_die_with_their_parent(state: str) -> None:
    program = """
import json, os, signal, sys, threading, time
from next_ray.config import RewardSection
from next_ray.reward.pool import VerifierPool
from next_ray.data.prompts import user_prompt
HANG = ("a" * 60, user_prompt("q", "", "regex:(a+)+b"))
pool = VerifierPool(RewardSection(wall_clock_s=300.0))
pool.score([("1", user_prompt("q", "1", "exact"))])
if sys.argv[1] == "busy":
    threading.Thread(target=pool.score, args=([HANG],), daemon=True).start()
    time.sleep(1.0)
if sys.argv[1] == "stopped":
    [os.kill(pid, signal.SIGSTOP) for pid in pool.pids]
print(json.dumps(pool.pids), flush=True)
time.sleep(300)
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, state], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}
    ) as parent:
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        assert len(pids) == 1 and not any(is_gone(pid) for pid in pids)
        parent.kill()
    assert wait_for(lambda: all(is_gone(pid) for pid in pids), 10.0)


@pytest.mark.parametrize("kind", ["exact", "math"])
def test_throughput_is_printed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    items = [(rf"\boxed{{{i % 7}}}" if kind == "math" else str(i % 7), user_prompt("q", "3", kind)) for i in range(10_000)]
    with new_pool(verifier=kind) as pool:
        pool.score(items[:1])
        started = time.monotonic()
        judged = pool.score(items)
        elapsed = time.monotonic() - started
        small = time.monotonic()
        pool.score(items[:512])
        small = time.monotonic() - small
    assert sum(j.reward for j in judged) == sum(i % 7 == 3 for i in range(10_000))
    with capsys.disabled():
        print(f"\n{kind}: {len(items) / elapsed:,.0f} integers/s with one worker; a batch of 512 takes {1e3 * small:.0f} ms")
