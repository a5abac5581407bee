"""Documents do not rot: links lead somewhere, commands are valid, make targets and metrics exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from next_ray.commands.main import TABLE
from next_ray.dashboard.catalogue import METRICS
from next_ray.settings import load_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "jobs" / "README.md"])
FLAGS = {"--dry-run", "--baseline", "--restarts"}


def identifiers(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", DOCUMENTS, ids=identifiers(DOCUMENTS))
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


def commands(text: str) -> list[list[str]]:
    """Arguments of every `python -m next_ray.run` line, comments and flags of other programs aside."""
    found = []
    for line in text.splitlines():
        before, run, after = line.partition("-m next_ray.run ")
        if run and before.lstrip("# ").startswith(("python", ".venv", "ray job submit")):
            found.append(shlex.split(after, comments=True))
    return found


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "jobs").glob("*.yaml"))], ids=lambda path: path.name)
def test_commands_are_valid(path: Path) -> None:
    for words in commands(path.read_text()):
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= FLAGS
        arguments = [word for word in words if not word.startswith("--")]
        files = [word for word in arguments if "=" not in word]
        assert len(files) <= 1
        load_config(str(ROOT / files[0]) if files else None, [word for word in arguments if "=" in word])


def test_the_commands_are_found_at_all() -> None:
    counts = {str(path.relative_to(ROOT)): len(commands(path.read_text())) for path in DOCUMENTS}
    assert counts["README.md"] >= 3 and counts["docs/running.md"] >= 3


def program_lines(text: str) -> list[list[str]]:
    """The words of every line that starts `next-ray`, up to a redirection."""
    lines = [line for line in text.splitlines() if line.startswith("next-ray ")]
    return [shlex.split(re.split(r" [>|]", line)[0], comments=True)[1:] for line in lines]


@pytest.mark.parametrize("path", DOCUMENTS, ids=identifiers(DOCUMENTS))
def test_lines_of_the_program_are_valid(path: Path) -> None:
    for words in program_lines(path.read_text()):
        table = TABLE
        while (nested := getattr(module := table.command(words[0]).load(), "TABLE", None)) is not None:
            table, words = nested, words[1:]
        module.parser().parse_intermixed_args(words[1:])


def test_make_targets_that_documents_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(), re.MULTILINE)}
    assert named and named <= targets


def test_settings_that_documents_name_exist() -> None:
    text = (ROOT / "docs" / "running.md").read_text()
    sections = "run|model|data|rollout|reward|learner|store|extrapolation|evaluation|cluster|report"
    for name in set(re.findall(rf"`((?:{sections})\.[a-z_.]+)`", text)) - {"cluster.yaml"}:
        value = load_config(None)
        for part in name.split("."):
            if value is None:
                break  # an optional section that is not set
            assert hasattr(value, part), name
            value = getattr(value, part)


def test_metrics_that_documents_name_are_exported() -> None:
    exported = {name for metric in METRICS for name in (metric.name, metric.exported)}
    named = {name for path in DOCUMENTS for name in re.findall(r"`((?:ray_)?next_ray_[a-z0-9_]+)(?:\{[a-z, ]+\})?`", path.read_text())}
    assert len(named) >= len(METRICS) and named <= exported
