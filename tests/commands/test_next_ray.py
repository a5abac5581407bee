"""`next-ray`: what it offers, how fast it answers, and what it says to a mistake."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.startup import LIMIT_S, start
from next_ray.commands import runs
from next_ray.commands.main import TABLE, main
from next_ray.commands.table import Table

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "ray", "vllm", "transformers", "deepspeed", "numpy", "pyarrow", "fsspec", "rich"}


@pytest.fixture(autouse=True)
def own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program writes what a command sees of its words."""
    monkeypatch.setattr(sys, "argv", ["next-ray"])


def commands(table: Table = TABLE, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for command in table.commands:
        yield (*before, command.name)
    if not before:
        yield from commands(runs.TABLE, ("runs",))


ALL = sorted(commands())


def shown(words: list[str], capsys: pytest.CaptureFixture[str], program: str = "next-ray") -> str:
    try:
        code = main(words, program)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("program", ["next-ray", "python -m next_ray"])
@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
def test_help_fits_a_screen_and_ends_in_examples(words: tuple[str, ...], program: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown([*words, "--help"], capsys, program)
    lines = text.splitlines()
    assert len(lines) <= 24, text
    assert max(map(len, lines)) <= 80, [line for line in lines if len(line) > 80]
    examples = lines[lines.index("examples:") + 1 :]
    assert examples and all(line.startswith(f"  {' '.join([program, *words])}") for line in examples), examples


@pytest.mark.parametrize("command", [*TABLE.commands, *runs.TABLE.commands], ids=lambda command: command.name)
def test_every_row_names_a_module_that_is_there(command: object) -> None:
    module = command.module  # type: ignore[attr-defined]
    assert importlib.util.find_spec(module) is not None
    loaded = command.load()  # type: ignore[attr-defined]
    assert callable(loaded.main)
    assert hasattr(loaded, "TABLE") or callable(loaded.parser)


def test_all_options_are_in_the_long_help(capsys: pytest.CaptureFixture[str]) -> None:
    short, long = shown(["evaluate", "--help"], capsys), shown(["evaluate", "--help-all"], capsys)
    assert "--top-p" not in short and "--help-all" in short
    assert "--top-p" in long and max(map(len, long.splitlines())) <= 80


LIGHT = [
    ["--help"],
    ["--version"],
    *([*words, "--help"] for words in ALL if words not in {("inspect",), ("completion",)}),
    ["rnu"],
    ["run", "--dryrun"],
    ["runs", "prune", "x", "--keep", "no"],
]


def test_no_answer_about_words_imports_a_heavy_library() -> None:
    """All in one process, cold: what one of them imported the others would not show, so that the whole set counts."""
    script = f"""
import sys
from next_ray.commands.main import main
for words in {LIGHT!r}:
    before = set(sys.modules)
    try:
        main(words)
    except SystemExit:
        pass
    if found := {HEAVY!r} & (set(sys.modules) - before):
        print("heavy:", words, found)
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "heavy:" not in found.stdout and found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("words", [["run", "run.stepz=3"], ["inspect", "--help"], ["warmstart", "training.epochz=1"]])
def test_mistakes_in_settings_wait_for_no_engine(words: list[str]) -> None:
    heavy = HEAVY - {"numpy", "rich", "fsspec"}
    script = (
        f"import sys\nfrom next_ray.commands.main import main\ntry:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print('heavy:', {heavy!r} & set(sys.modules) or 'none')"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.stdout.endswith("heavy: none\n"), found.stdout + found.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["rnu"], ["'rnu' is not a command", "Did you mean run?"]),
        (["--verson"], ["not an option"]),
        (["jobs/tiny.yaml"], ["Write: next-ray run jobs/tiny.yaml"]),
        (["run.steps=3"], ["Write: next-ray run run.steps=3"]),
        (["runs", "lst"], ["of next-ray runs", "Did you mean list?"]),
        (["run", "--dryrun"], ["--dryrun", "Did you mean --dry-run?", "`next-ray run --help`"]),
        (["run", "rollout.promts_per_step=3"], ["did you mean rollout.prompts_per_step?"]),
        (["run", "jobs/tinny.yaml"], ["jobs/tinny.yaml does not exist", "jobs/tiny.yaml"]),
        (["export", "a", "b", "--dtype", "floot32"], ["Did you mean float32?"]),
        (["runs", "prune", "x", "--keep", "0"], ["whole number from 1 on"]),
        (["completion", "bsh"], ["Did you mean bash?"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_with_what_was_meant(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code == 2 and said.out == ""
    assert said.err.lstrip().startswith("error: ") and "usage:" not in said.err
    for part in parts:
        assert part in said.err


def test_no_words_show_the_commands_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "warmstart" in capsys.readouterr().err


def test_a_run_is_gone_on_with_by_the_program_it_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from next_ray.run import resume_command

    monkeypatch.setattr(sys, "argv", ["next-ray run", "run.steps=3"])
    assert resume_command() == "next-ray run run.steps=3"
    monkeypatch.setattr(sys, "argv", ["/x/next_ray/run.py", "run.steps=3"])
    assert resume_command() == "python -m next_ray.run run.steps=3"


@pytest.mark.parametrize("words", [["--help"], ["runs", "--help"], ["inspect", "--help"], ["run", "rollout.promts_per_step=3"]])
def test_answers_take_less_than_a_second(words: list[str]) -> None:
    """Of CPU, the better of two starts: others use this machine too."""
    assert min(start(words).cpu_s for _ in range(2)) < LIMIT_S


BASH = """
source "$1"
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=(); _next_ray next-ray "${@: -1}" "" 2> /dev/null; echo "${COMPREPLY[*]}"; }
ask next-ray ru
ask next-ray runs pr
ask next-ray run run.stepn
ask next-ray run run.st
ask next-ray run jobs/ti
ask next-ray run jobs/tiny.yaml --dry
ask next-ray warmstart training.lora.r
"""


def test_bash_completes_commands_options_jobs_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "next-ray.bash"
    script.write_text(shown(["completion", "bash"], capsys))
    found = subprocess.run(["bash", "-c", BASH, "bash", str(script)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    expected = ["run runs", "prune", "", "run.steps=", "jobs/tiny.yaml", "--dry-run", "training.lora.rank="]
    assert found.stdout.splitlines() == expected, found.stdout + found.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_the_settings_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(["completion", shell], capsys)
    assert "run.steps=" in text and "training.lora.rank=" in text and "{keys}" not in text


def test_the_module_is_the_same_program(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-m", "next_ray", "run", "--help"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.startswith("usage: python -m next_ray run ")
