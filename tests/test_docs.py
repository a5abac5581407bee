"""Documents do not rot: links lead somewhere, commands are valid, make targets and metrics exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

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
    text = (ROOT / "docs" / "running.md").read_text()
    source = (ROOT / "next_ray" / "actors" / "metrics.py").read_text()
    named = set(re.findall(r"`(next_ray_[a-z_]+)(?:\{[a-z]+\})?`", text)) - {"next_ray_"}
    assert len(named) >= 7
    assert all(f'"{name}"' in source for name in named)
