"""What the site shows beside docs/: files that its pages link to, the settings, the Python API. All made in memory, nothing is written."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import python_api  # noqa: E402
import settings_reference  # noqa: E402

from next_ray.config import Config  # noqa: E402
from next_ray.config.warmstart import WarmstartConfig  # noqa: E402

DOCS = "docs"
PROJECT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "jobs/README.md")
"""Documents outside docs/ that are pages of the site, at the same path."""
LINK = re.compile(r"(\]\()([^)#\s]+)([)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand nowhere below docs/."""
    made = {
        "reference/config.md": settings_reference.page(Config, "Settings of a run", settings_reference.OF_A_RUN),
        "reference/warmstart-config.md": settings_reference.page(
            WarmstartConfig, "Settings of a warm start", settings_reference.OF_A_WARM_START
        ),
        "reference/python.md": python_api.page(),
        **{name: (ROOT / name).read_text(encoding="utf-8") for name in PROJECT_PAGES},
    }
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    texts = {DOCS + "/" + file.src_uri: file.content_string for file in files.documentation_pages()}
    for path in sorted({path for source, text in texts.items() for path in outside(source, text)}):
        files.append(File.generated(config, site_place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as a code host understands them become links of the site."""
    here = page.file.src_uri
    if here == "index.md":
        page.meta["hide"] = ["navigation", "toc"]
    source = here if here in PROJECT_PAGES else f"{DOCS}/{here}"

    def moved(link: re.Match[str]) -> str:
        path = repository_path(source, link[2])
        if path is None or not (ROOT / path).is_file():
            return link[0]
        return f"{link[1]}{posixpath.relpath(site_place(path), posixpath.dirname(here) or '.')}{link[3]}"

    return LINK.sub(moved, markdown)


def outside(source: str, text: str) -> set[str]:
    """Files (paths in the repository) that a page below docs/ links to and that are not below it, nor pages already."""
    paths = {repository_path(source, match[2]) for match in LINK.finditer(text)}
    return {p for p in paths if p and not p.startswith(f"{DOCS}/") and p not in PROJECT_PAGES and (ROOT / p).is_file()}


def repository_path(source: str, target: str) -> str | None:
    """Where a relative link of `source` leads, from the repository's top; None: to another place."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return None if "://" in target or target.startswith("/") or path.startswith("..") else path


def site_place(path: str) -> str:
    """Where the site has a file of the repository."""
    if path == "README.md":
        return "index.md"  # its place on the site has a page of its own
    return path.removeprefix(f"{DOCS}/")
