"""Every command of the documents: run for real where it is cheap, read by the program's own parser, or listed with a reason."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from next_ray.errors import ConfigError
from next_ray.progress import Progress
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import CheckpointKind, LearnerState
from tests.checkpoints.test_store_run import adapter
from tests.commands.trajectories import write_run
from tests.docs.blocks import ROOT, Block, Command, all_commands, commands
from tests.docs.listed import ELSEWHERE, LISTED
from tests.docs.parsing import VARIABLES, check, check_ray, own_command

COMMANDS = all_commands()
TARGET = re.compile(r"^make(?: [A-Z]+=(?:\"[^\"]*\"|\S+)| [a-z-]+)*$")
STORE = "~/.cache/next_ray/store"
RUN = f"{STORE}/tiny"

PLACES = re.compile(rf"^(?:grpo(?:/checkpoint-\*)?|{re.escape(RUN)}(?:@\S+)?)$")
"""Inputs that the tests make: a folder of PEFT checkpoints, and a run in the default store."""


def runs_here(command: Command) -> bool:
    """Whether the command is cheap and all that it reads is made by the fixture below."""
    own = own_command(command.text)
    if own is None or command.text.startswith("ray "):
        return False
    program, words = own
    name = program.rpartition(".")[2] if program != "next-ray" else words.pop(0)
    if name == "run":
        return "--dry-run" in words
    return name in ("inspect", "extrapolate", "export") and bool(PLACES.match(words[0])) and "--base" not in words


RUNNABLE = [command for command in COMMANDS if runs_here(command)]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_read_by_its_program(command: Command) -> None:
    check_files(command.text)
    if any(re.fullmatch(pattern, command.text) for pattern in LISTED | ELSEWHERE):
        return
    if command.text.startswith("make"):
        check_make(command.text)
        return
    is_rays = VARIABLES.sub("", command.text).startswith("ray ")
    if is_rays:
        check_ray(shlex.split(VARIABLES.sub("", command.text))[1:])
    own = own_command(command.text)
    assert own is not None or is_rays, (
        f"{command.block.place}: nobody checks {command.text!r}. Let it run here (runs_here), or list it with a reason (listed.py)."
    )
    if own is not None:
        check(*own)


def check_files(text: str) -> None:
    """Files of the repository that a command names are there."""
    named = re.findall(r"(?<![\w/.-])(?:(?:jobs|docs|tests|requirements)/[\w./-]+|cluster\.yaml)", text)
    assert all((ROOT / name).exists() for name in named), text


def check_make(text: str) -> None:
    assert TARGET.match(text), text
    makefile = (ROOT / "Makefile").read_text()
    words = shlex.split(text)[1:]
    named = [word for word in words if "=" not in word]
    assert set(named) <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE)), text
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    assert all(re.search(rf"\b{name}\b", makefile.partition("\n\n")[0]) for name in variables), text
    if "run" in named:
        check("next_ray.run", shlex.split(variables.get("ARGS", "")))


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished run in the default store, and in it a clone with PEFT checkpoints of another trainer."""
    home = tmp_path_factory.mktemp("home")
    store = CheckpointStore(f"file://{home / STORE.removeprefix('~/')}", "tiny")
    store.claim_identity({"base_fingerprint": "f" * 64, "model": "tiny", "lora_rank": 4})

    def commit(step: int, kind: CheckpointKind, segment: int) -> None:
        state = LearnerState(adapter(step), {}, {"updates": step})
        store.commit(step, kind, state, (), "f" * 64, Progress(step=step, segment_start=segment).to_json())

    for step in range(3, 25, 3):
        commit(step, CheckpointKind.TRAINED, 0)
    commit(24, CheckpointKind.JUMPED, 0)
    for step in range(27, 61, 3):
        commit(step, CheckpointKind.TRAINED, 24)
    clone = home / "next_ray"
    shutil.copytree(ROOT / "jobs", clone / "jobs")
    write_run(clone / "grpo")
    return clone


@pytest.mark.parametrize("command", RUNNABLE, ids=str)
def test_a_cheap_command_runs(command: Command, newcomer: Path) -> None:
    """In a shell, as a reader would; what it makes is made anew."""
    for made in ("candidates", "my-adapter", "merged"):
        shutil.rmtree(newcomer / made, ignore_errors=True)
    text = command.text.replace(".venv/bin/python", "python")
    environment = {
        **os.environ,
        "HOME": str(newcomer.parent),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("NEXT_RAY_CACHE", None)
    done = subprocess.run(["bash", "-c", text], cwd=newcomer, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr and done.stdout.strip()


def test_the_first_commands_of_the_readme_are_among_those_that_run() -> None:
    shown = {str(command) for command in RUNNABLE}
    assert any("README.md" in name and "next_ray.inspect" in name for name in shown)
    assert any("README.md" in name and "next_ray.extrapolate" in name for name in shown)
    assert any("tutorial.md" in name and "next_ray.export" in name for name in shown)


def test_every_reason_is_for_some_command() -> None:
    assert not [pattern for pattern in LISTED if not any(re.fullmatch(pattern, command.text) for command in COMMANDS)]


def test_a_synopsis_names_options_that_exist() -> None:
    text = (ROOT / "docs" / "inspect.md").read_text().partition("```\n")[2].partition("```")[0]
    words = re.sub(r"\b(?:K|N|STEP)\b", "1", re.sub(r"[\[\]]|\.\.\.", "", text)).split()
    assert words[:3] == ["python", "-m", "next_ray.inspect"] and len(words) > 15
    check("next_ray.inspect", words[3:])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("python -m next_ray.run nowhere.yaml", "does not exist"),
        ("python -m next_ray.run run.stepz=3", "stepz"),
        ("python -m next_ray.run --dry-runn", "dry-runn"),
        ("python -m next_ray.nothing x", "no module"),
        ("ray job submit --working-dir . -- python -m next_ray.run jobs/tiny.yaml a.b=1", "unknown key a"),
        ("python -m next_ray.extrapolate x --methods two-point", "methods"),
        ("make nothing", "nothing"),
        ("kubectl apply -f jobs/nowhere/rayjob.yaml", "nowhere"),
        ("RAY_AUTH_MODE=token ray start --haed", "haed"),
        ("ray job sbumit -- true", "sbumit"),
        ("frobnicate --all", "nobody checks"),
    ],
)
def test_a_wrong_command_is_found(wrong: str, words: str) -> None:
    command = Command(Block(ROOT / "docs" / "made-up.md", 1, "bash", (wrong,)), wrong)
    with pytest.raises((AssertionError, ConfigError), match=words):
        test_a_command_is_read_by_its_program(command)


def test_commands_are_found_in_blocks() -> None:
    text = ("a = 1", "python -m x \\", "   --y   # why", "$ make run", "step 3")
    found = [command.text for command in commands(Block(ROOT / "x.md", 1, "", text))]
    assert found == ["python -m x --y", "make run"]
    everything = [command.text for command in commands(Block(ROOT / "x.md", 1, "bash", ("frobnicate", "# remark")))]
    assert everything == ["frobnicate"]
    counts = [sum(command.block.path.name == name for command in COMMANDS) for name in ("README.md", "running.md")]
    assert counts[0] >= 10 and counts[1] >= 5
