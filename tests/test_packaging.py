"""The wheel and the source distribution, as somebody elsewhere gets them: built, looked into, installed and run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import date
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml

import next_ray

ROOT = Path(__file__).resolve().parent.parent
DATA = (".json", ".yaml", ".yml", ".html", ".css", ".js", ".svg")
BUILD = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"
DOES_NOT_TRAVEL = shutil.ignore_patterns(
    ".git", ".venv", "outputs", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "tests"
)


def do(*words: str | Path, cwd: Path) -> str:
    """Run without this checkout on the path."""
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "NEXT_RAY_CACHE": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(list(map(str, words)), cwd=cwd, env=clean, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built offline from a copy, since building writes beside the sources."""
    source, dist = tmp_path_factory.mktemp("source") / "next_ray", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=DOES_NOT_TRAVEL, symlinks=True)
    do(sys.executable, "-c", BUILD, dist, cwd=source)
    return dist


@pytest.fixture(scope="module")
def elsewhere(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with the wheel of the source distribution, over this environment's libraries."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(unpacked, filter="data")
    do(sys.executable, "-c", BUILD, unpacked, cwd=next(unpacked.iterdir()))
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
    do(sys.executable, "-m", "venv", "--without-pip", place, cwd=unpacked)
    [wheel] = unpacked.glob("*.whl")
    site = next(place.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # whose own .pth files, this checkout's too, do not count
    do(sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--no-index", "--no-deps", wheel, cwd=unpacked)
    yield place


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_its_data_and_nothing_else(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    assert wheel.name == f"next_ray-{next_ray.__version__}-py3-none-any.whl"
    names = {name for name in names_in(wheel) if ".dist-info/" not in name}
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "next_ray").rglob("*")
        if path.suffix in (".py", *DATA) or path.name == "py.typed"
    }
    assert names == there
    assert "next_ray/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names_in(wheel))


def test_all_that_lies_in_the_package_travels() -> None:
    """A new kind of file needs its pattern in `[tool.setuptools.package-data]`."""
    odd = [p for p in (ROOT / "next_ray").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", *DATA) and p.name != "py.typed"]
    assert odd == []


def test_the_source_distribution_holds_what_a_packager_needs(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "pyproject.toml",
        "jobs/tiny.yaml",
        "docs/design.md",
        "next_ray/py.typed",
    ):
        assert name in names
    assert not [name for name in names if name.startswith("tests")]


def test_what_was_installed_elsewhere_runs(elsewhere: Path, tmp_path: Path) -> None:
    python, program = elsewhere / "bin" / "python", elsewhere / "bin" / "next-ray"
    where = do(python, "-c", "import next_ray; print(next_ray.__file__)", cwd=tmp_path)
    assert where.startswith(str(elsewhere)), where
    assert do(program, "--version", cwd=tmp_path) == f"next-ray {next_ray.__version__}\n"
    assert "usage: next-ray COMMAND" in do(program, "--help", cwd=tmp_path)
    assert "Nothing was started" in do(program, "run", "run.steps=20", "--dry-run", cwd=tmp_path)
    assert "No runs in" in do(program, "runs", "list", tmp_path / "store", cwd=tmp_path)
    assert "run.steps=" in do(program, "completion", "bash", cwd=tmp_path)
    assert "usage: python -m next_ray.run" in do(python, "-m", "next_ray.run", "--help", cwd=tmp_path)


def test_the_metadata_are_those_of_the_project(elsewhere: Path) -> None:
    [info] = elsewhere.glob("lib/python*/site-packages/next_ray-*.dist-info")
    found = PathDistribution(info)
    assert found.version == next_ray.__version__
    assert found.metadata["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in (found.metadata.get_all("Classifier") or [])


def test_the_version_has_one_place_and_the_changelog_knows_it() -> None:
    """The newest section is `## Unreleased (VERSION)` or `## VERSION (YYYY-MM-DD)`, and older ones are of lower versions."""
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    matches = [re.fullmatch(r"Unreleased \((\d+\.\d+\.\d+)\)|(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", section) for section in sections]
    assert sections and all(matches), sections
    versions = [tuple(map(int, (match[1] or match[2]).split("."))) for match in matches if match]
    assert versions == sorted(set(versions), reverse=True)
    assert all(match[2] and date.fromisoformat(match[3]) for match in matches[1:] if match), "only the newest can be unreleased"
    assert ".".join(map(str, versions[0])) == next_ray.__version__
    assert re.search(r'^version = "', (ROOT / "pyproject.toml").read_text(), re.MULTILINE) is None


def test_the_citation_names_this_version_and_the_paper() -> None:
    """Citation File Format 1.2.0: its required keys, and those of a reference and of a person."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "cff-version"} <= set(found)
    assert str(found["version"]) == next_ray.__version__ and found["license"] == "Apache-2.0"
    known = {
        "message",
        "title",
        "authors",
        "cff-version",
        "type",
        "version",
        "license",
        "keywords",
        "references",
        "abstract",
        "date-released",
    }
    assert set(found) <= known
    [paper] = found["references"]
    assert {"type", "title", "authors"} <= set(paper) and "2604.11446" in paper["url"]
    assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])
    assert all(set(author) == {"name"} for author in found["authors"])
