"""Documents do not rot: links lead somewhere, make targets, settings and metrics exist. Their commands: tests/docs/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from next_ray.dashboard.catalogue import METRICS
from next_ray.settings import load_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "jobs" / "README.md"])


def identifiers(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", DOCUMENTS, ids=identifiers(DOCUMENTS))
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


def test_make_targets_that_documents_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"`make ([a-z]+)", path.read_text())}
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
