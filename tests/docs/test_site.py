"""The site builds without a warning, asks nobody else for anything, and can be read on a phone and in the dark."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from pydantic import BaseModel

from next_ray.config import Config
from tests.docs.blocks import ROOT

PAGES = [
    "index.html",
    "tutorial.html",
    "reference/config.html",
    "reference/python.html",
    "comparison.html",
    "methods.html",
    "CHANGELOG.html",
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def build(target: Path, *, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """`make docs` into another folder."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=config.parent, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site") / "site"
    done = build(target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


class Resources(HTMLParser):
    """What a page loads by itself, links that a reader follows aside."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if identifier := facts.get("id"):
            self.anchors.add(identifier)
        address = facts.get("src") or (
            facts.get("href") if tag == "link" and facts.get("rel") not in ("prev", "next", "canonical") else None
        )
        if address:
            self.found.append(address)


def test_no_page_names_a_resource_of_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        foreign = [address for address in Resources(page.read_text()).found if re.match(r"(?:[a-z]+:)?//", address)]
        assert not foreign, (page, foreign)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text()), sheet


def test_every_key_of_a_job_has_its_place(site: Path) -> None:
    anchors = Resources((site / "reference" / "config.html").read_text()).anchors

    def keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    wanted = set(keys(Config, ""))
    assert len(wanted) > 120 and wanted <= anchors, wanted - anchors


def test_a_link_to_nowhere_fails_the_build(tmp_path: Path) -> None:
    """Both kinds, in a copy: the hooks find the repository by the place of their file."""
    copy = tmp_path / "copy"
    for name in ("docs", "jobs", "next_ray"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "docs" / "wrong.md").write_text("# Wrong\n[a](nowhere.md) [b](running.md#nowhere-either)\n")
    done = build(tmp_path / "site", config=copy / "mkdocs.yml")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr and "#nowhere-either" in done.stderr


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


def watched(page: Page) -> tuple[list[str], list[str]]:
    """Addresses that the page asks for from now on, and what goes wrong in it."""
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("response", lambda response: wrong.append(response.url) if response.status >= 400 else None)
    return asked, wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pages_in_a_browser(site: Path, address: str, browser: Browser, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light")
    page = context.new_page()
    asked, wrong = watched(page)
    for name in PAGES:
        page.goto(f"{address}/{name}", wait_until="networkidle")
        assert page.locator("h1").count() == 1, name
        too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert too_wide <= 0, f"{name} is {too_wide} pixels wider than the {size}"
        red, green, blue = (int(part) for part in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])
        assert (red + green + blue < 200) == (scheme == "dark"), name
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{folder}/{name.replace('/', '-').removesuffix('.html')}-{size}-{scheme}.png")
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked), [u for u in asked if not u.startswith(address)]
    assert not wrong
    context.close()


def test_search_finds_a_setting(address: str, browser: Browser) -> None:
    page = browser.new_page()
    asked, wrong = watched(page)
    page.goto(address, wait_until="networkidle")
    page.keyboard.press("/")
    page.keyboard.type("watch_level", delay=30)
    page.wait_for_selector(".md-search-result__item a[href*='config.html']", timeout=30_000)
    assert all(url.startswith((address, "data:", "blob:")) for url in asked) and not wrong
    page.close()


def test_the_folder_can_be_opened_without_a_server(site: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"file://{site / 'index.html'}", wait_until="load")
    page.get_by_role("link", name="tutorial", exact=True).first.click()
    page.wait_for_url("**/tutorial.html")
    assert page.locator("h1").inner_text().startswith("From zero to a jump")
    page.close()
