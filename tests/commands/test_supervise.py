"""The supervisor over small real processes that end in every way a run may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from next_ray.commands.supervise import LONGEST_WAIT_S, Ending, ending, exit_code, wait_s

ROOT = Path(__file__).resolve().parents[2]
SUPERVISOR = """if True:
    import sys
    from next_ray.commands import supervise
    supervise.FIRST_WAIT_S = {wait_s}
    sys.exit(supervise.Supervisor([sys.executable, "-c", sys.argv[1], sys.argv[2]], {restarts}).run())
"""
CHILD = """if True:
    import os, signal, sys, time
    def note(word):
        with open(sys.argv[1], "a") as file:
            file.write(word + "\\n")
    note("start")
    times = open(sys.argv[1]).read().count("start")
"""


def start(tmp_path: Path, child: str, restarts: int = 2, wait_s: float = 0.05, **how: object) -> subprocess.Popen[str]:
    code = CHILD + "".join(f"    {line}\n" for line in child.splitlines())
    command = [sys.executable, "-c", SUPERVISOR.format(restarts=restarts, wait_s=wait_s), code, str(tmp_path / "notes")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **how)  # type: ignore[call-overload]


def notes(tmp_path: Path) -> list[str]:
    path = tmp_path / "notes"
    return path.read_text().split() if path.exists() else []


def wait_until(tmp_path: Path, word: str, times: int = 1) -> None:
    deadline = time.monotonic() + 30
    while notes(tmp_path).count(word) < times:
        assert time.monotonic() < deadline, notes(tmp_path)
        time.sleep(0.02)


HEARS = """
def heard(number, frame):
    note(signal.Signals(number).name)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, heard)
note("ready")
"""


@pytest.mark.parametrize(
    ("status", "means"),
    [
        (0, Ending.FINAL),
        (2, Ending.FINAL),
        (130, Ending.FINAL),
        (143, Ending.FINAL),
        (-signal.SIGTERM, Ending.FINAL),
        (-signal.SIGPIPE, Ending.FINAL),
        (1, Ending.FAULT),
        (-signal.SIGKILL, Ending.FAULT),
        (-signal.SIGSEGV, Ending.FAULT),
        (-signal.SIGBUS, Ending.FAULT),
        (-signal.SIGABRT, Ending.FAULT),
        (75, Ending.AGAIN),
    ],
)
def test_what_an_exit_status_means(status: int, means: Ending) -> None:
    assert ending(status) is means


def test_exit_codes_are_a_shells_and_waits_grow() -> None:
    assert [exit_code(status) for status in (0, 2, -signal.SIGKILL)] == [0, 2, 137]
    assert [wait_s(n) for n in (0, 1, 2, 3, 50)] == [1, 1, 2, 4, LONGEST_WAIT_S]


@pytest.mark.parametrize("fault", ["os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGSEGV)", "raise ValueError"])
def test_a_fault_is_followed_by_a_restart(tmp_path: Path, fault: str) -> None:
    process = start(tmp_path, f"if times < 3:\n    {fault}\nsys.exit(0)")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert notes(tmp_path) == ["start"] * 3
    assert "restart 1 of 2" in said and "restart 2 of 2" in said


def test_restarts_are_counted_and_the_last_code_is_kept(tmp_path: Path) -> None:
    process = start(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", restarts=1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 137
    assert notes(tmp_path) == ["start"] * 2
    assert "killed by SIGKILL" in said and "used up" in said


@pytest.mark.parametrize("code", [0, 2, 130, 143, 3])
def test_other_endings_are_final(tmp_path: Path, code: int) -> None:
    process = start(tmp_path, f"sys.exit({code})")
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert notes(tmp_path) == ["start"]
    assert said == ""


def test_a_run_that_asks_to_be_run_again_costs_no_restart(tmp_path: Path) -> None:
    process = start(tmp_path, "sys.exit(75 if times < 4 else 0)", restarts=1, wait_s=0.01)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert notes(tmp_path) == ["start"] * 4
    assert said.count("not counted") == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_handed_on_once_and_no_restart_follows(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, f"{HEARS}\ntime.sleep(1.5)\nsys.exit(1)")
    wait_until(tmp_path, "ready")
    process.send_signal(number)
    process.send_signal(number)  # an echo, as of a job's stop that signals process by process and then the group
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, "the child's own code"
    assert notes(tmp_path) == ["start", "ready", number.name]
    assert "anew" not in said


def test_a_second_request_is_handed_on_too(tmp_path: Path) -> None:
    process = start(tmp_path, f"{HEARS}\ntime.sleep(2.5)\nsys.exit(130)")
    wait_until(tmp_path, "ready")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.7)
    process.communicate(timeout=60)
    assert notes(tmp_path).count("SIGINT") == 2


def test_ctrl_c_in_a_terminal_reaches_the_run_once(tmp_path: Path) -> None:
    process = start(tmp_path, f"{HEARS}\ntime.sleep(1.5)\nsys.exit(130)", start_new_session=True)
    wait_until(tmp_path, "ready")
    os.killpg(process.pid, signal.SIGINT)  # what the terminal does: everybody in the group it reads from
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert notes(tmp_path) == ["start", "ready", "SIGINT"]


def test_a_stop_between_two_runs_ends_the_waiting(tmp_path: Path) -> None:
    process = start(tmp_path, "sys.exit(1)", wait_s=30)
    assert process.stderr is not None and "anew in 30 s" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 143
    assert notes(tmp_path) == ["start"]


def test_a_killed_supervisor_takes_its_run_along(tmp_path: Path) -> None:
    process = start(tmp_path, f"{HEARS}\ntime.sleep(2)")
    wait_until(tmp_path, "ready")
    process.kill()
    process.communicate(timeout=30)
    assert notes(tmp_path) == ["start", "ready", "SIGTERM"]


def test_nohup_is_respected(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(tmp_path, "note('ready')\ntime.sleep(1)\nsys.exit(0)")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until(tmp_path, "ready")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_supervisor_imports_the_standard_library_alone() -> None:
    script = (
        "import sys\nimport next_ray.commands.supervise\nprint({'pydantic', 'rich', 'ray', 'torch', 'yaml'} & set(sys.modules) or 'none')"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert found.stdout == "none\n", found.stdout + found.stderr


def test_a_users_error_under_supervision_is_one_paragraph(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "next_ray.run", "--restarts", "3", "run.steps=many", f"run.output_dir={tmp_path}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    assert found.stderr.count("error: ") == 1 and "anew" not in found.stderr
