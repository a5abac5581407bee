"""How the commands end when they cannot go on: no traceback, the exit code that shells expect, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from next_ray.commands.ending import ended
from next_ray.errors import ConfigError
from tests.commands.trajectories import write_run

ROOT = Path(__file__).resolve().parents[2]


def start(module: str, *words: str, **how: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"next_ray.{module}", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(command, cwd=ROOT, text=True, env={**environment, "OMP_NUM_THREADS": "1"}, **pipes)  # type: ignore[call-overload]


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(word):
            return
    raise AssertionError(f"ended with {process.wait()} before {word!r}")


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("That was wrong."), 2, "\nerror: That was wrong.\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; all is lost\n"),
        (SystemExit(15), 143, "\nterminated; all is lost\n"),  # what Ray's own handler makes of SIGTERM
    ],
)
def test_errors_and_interruptions(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: fail(error), "all is lost") == code
    assert capsys.readouterr().err == said


def test_what_is_no_users_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        ended(lambda: fail(ZeroDivisionError()), "")


def test_sigterm_ends_like_ctrl_c_and_handlers_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    cleaned: list[str] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append("yes")

    assert ended(work, "all is lost") == 143
    assert cleaned == ["yes"] and capsys.readouterr().err == "\nterminated; all is lost\n"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("in_asyncio", [False, True])
def test_sigterm_ends_a_shells_background_job_too(in_asyncio: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Shells without job control start such jobs with SIGINT ignored."""
    cleaned: list[str] = []

    async def job() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)  # ignored
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(10)
        finally:
            cleaned.append("yes")

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append("yes")

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert ended((lambda: asyncio.run(job())) if in_asyncio else work, "all is lost") == 143
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert cleaned == ["yes"]
    assert capsys.readouterr().err == "\nterminated; all is lost\n"


@pytest.mark.parametrize("module", ["inspect", "extrapolate"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_ctrl_c_during_the_first_imports_is_no_traceback(module: str, library: str, tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "out")] if module == "extrapolate" else []
    script = f"""
import sys
class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, CtrlC())
from next_ray.commands.{module} import main
sys.exit(main({[str(write_run(tmp_path / "run")), *output]!r}))
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 130 and "Traceback" not in found.stderr, found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("module", ["inspect", "extrapolate"])
def test_help_and_mistakes_do_not_wait_for_torch(module: str, tmp_path: Path) -> None:
    """Names, paths and settings are looked at before the heavy libraries are."""
    run, out = str(write_run(tmp_path / "run")), ["--output", str(tmp_path / "out")] if module == "extrapolate" else []
    method = "--method" if module == "extrapolate" else "--methods"
    calls = [["--help"], [run, method, "two-pont", *out], [str(tmp_path / "missing"), method, "two-point", *out]]
    calls += [["--list"], [run, method, "two-point", "--set", "strat=1", *out]] if module == "extrapolate" else []
    heavy = "{'torch', 'transformers', 'ray', 'pyarrow', 'fsspec'} & set(sys.modules)"
    for words in calls:
        script = (
            f"import sys\nfrom next_ray.commands.{module} import main\n"
            f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\nprint('heavy:', {heavy} or 'none')"
        )
        found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert found.stdout.endswith("heavy: none\n"), (words, found.stdout[-200:], found.stderr)


@pytest.mark.parametrize(
    "words", [["extrapolate", "--list"], ["extrapolate", "{run}", "--dry-run", "--method", "two-point"], ["inspect", "--help"]]
)
def test_a_closed_pipe_is_the_readers_choice(words: list[str], tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run"))
    module, *rest = [word.format(run=run) for word in words]
    reader, writer = os.pipe()
    os.close(reader)
    process = start(module, *rest, stdout=writer)
    os.close(writer)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 141 and error == ""


def test_sigterm_while_writing_leaves_nothing(tmp_path: Path) -> None:
    words = [str(write_run(tmp_path / "run")), "--horizon", "1", "--set", "fit_steps=1000000", "--output", str(tmp_path / "out")]
    process = start("extrapolate", *words)
    wait_for(process, "fitting")
    time.sleep(0.5)
    assert any(path.name.startswith(".out.") for path in tmp_path.iterdir())
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and "terminated; nothing was written" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_run_left_is_swept_by_the_next_but_a_living_ones_is_not(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run"))
    words = [run, "--horizon", "1", "--set", "fit_steps=1000000", "--output", str(tmp_path / "out")]
    killed, living = start("extrapolate", *words), None
    try:
        wait_for(killed, "fitting")
        killed.kill()
        killed.communicate(timeout=60)
        (remains,) = tmp_path.glob(".out.*")
        living = start("extrapolate", *words)
        wait_for(living, "fitting")
        (draft,) = tmp_path.glob(".out.*")
        assert draft != remains
        done = start("extrapolate", run, "--method", "two-point", "--alpha", "1", "--output", str(tmp_path / "out"))
        done.communicate(timeout=120)
        assert done.returncode == 0
        assert (tmp_path / "out" / "adapter_config.json").exists() and list(tmp_path.glob(".out.*")) == [draft]
    finally:
        for process in (killed, living):
            if process is not None:
                process.kill()
                process.communicate(timeout=60)
