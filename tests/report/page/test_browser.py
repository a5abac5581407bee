"""The page in a real Chromium: silent, alone with itself, fast, as wide as a phone, for the keyboard, and on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import CHROMIUM, first_paint_ms
from benchmarks.stored_runs import MadeUp, write_run
from next_ray.commands.report import write
from tests.report.page.test_page import HOSTILE

pytestmark = pytest.mark.skipif(not shutil.which(CHROMIUM), reason=f"no browser at {CHROMIUM}: apt-get install chromium")

FIRST_PAINT_MS = 1000
PAGE_MIB = 5


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 400 steps, the same beside a plain one, and one that goes on with hostile prompts."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {"long": MadeUp("long"), "plain": MadeUp("plain", steps=60, planned=60, jump_at=None, layers=1)}
    runs["on"] = MadeUp("on", steps=40, interval=5, jump_at=20, back_at=30, layers=1)
    for name, made in runs.items():
        write_run(f"file://{folder}/store", made, HOSTILE.replace("\ud800", "") if name == "on" else "{a}+{b}=").close()
    for names in (["long"], ["on"], ["long", "plain"]):
        write([f"{folder}/store/{name}" for name in names], folder / f"{'-'.join(names)}.html")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser: Any, path: Path, log: list[str], **settings: Any) -> Any:
    """The page, with what the console says and what is asked of the network in `log`."""
    page = browser.new_context(**settings).new_page()
    page.on("console", lambda message: log.append(message.text))
    page.on("pageerror", lambda error: log.append(str(error)))
    page.on("dialog", lambda dialog: (log.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: log.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("name", ["long", "on", "long-plain"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_silent_asks_for_nothing_and_fits_a_phone(name: str, scheme: str, pages: Path, browser: Any) -> None:
    log: list[str] = []
    path = pages / f"{name}.html"
    page = opened(browser, path, log, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == 360, "an open table makes the page wider"
    cut = page.evaluate(
        """[...document.querySelectorAll('svg[role=img] text')].filter(one => {
            const inner = one.getBoundingClientRect(), outer = one.ownerSVGElement.getBoundingClientRect()
            return inner.left < outer.left - 1 || inner.right > outer.right + 1
        }).map(one => one.textContent)"""
    )
    assert cut == [], "words are cut at the edge of a picture"
    background, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (contrast(background, ink) > 7) and (luminance(background) > 0.5) == (scheme == "light")
    assert log == []
    page.context.close()


def test_the_policy_of_the_page_refuses_scripts_and_images(pages: Path, browser: Any, tmp_path: Path) -> None:
    """Were something to slip through the escaping, the browser would still not run it: here it is put there on purpose."""
    text = (pages / "on.html").read_text()
    bad = tmp_path / "bad.html"
    bad.write_text(text.replace("</main>", "<script>document.title = 'owned'</script><img src='http://127.0.0.1:9/x'></main>"))
    log: list[str] = []
    page = opened(browser, bad, log)
    assert page.title() != "owned" and sum("Content Security Policy" in line for line in log) == 2
    page.context.close()


def test_the_keyboard_reaches_everything_that_does_something(pages: Path, browser: Any) -> None:
    page = opened(browser, pages / "long.html", [], viewport={"width": 1280, "height": 900})
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    wanted = page.evaluate("document.querySelectorAll('a, summary').length")
    reached = 1
    for _ in range(300):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.tagName")
        if name == "BODY":
            break
        reached += name in ("A", "SUMMARY")
    assert reached == wanted
    page.focus("figure summary")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region", "an open table scrolls with the arrow keys"
    page.context.close()


def test_pictures_have_names_for_a_screen_reader(pages: Path, browser: Any) -> None:
    page = opened(browser, pages / "long.html", [])
    images = page.get_by_role("img").all()
    assert len(images) >= 12
    assert page.get_by_role("img", name="Held-out accuracy", exact=True).count() == 1
    for landmark in ("banner", "main", "contentinfo", "navigation"):
        assert page.get_by_role(landmark).count() == 1
    page.context.close()


def test_it_prints(pages: Path, browser: Any) -> None:
    page = opened(browser, pages / "long.html", [], color_scheme="dark")
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF") and 3 <= paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") <= 20
    page.emulate_media(media="print")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 1.0
    assert not page.get_by_text("Numbers as a table").first.is_visible()
    page.context.close()


def test_a_run_of_400_steps_is_small_and_shown_at_once(pages: Path, browser: Any) -> None:
    assert (pages / "long.html").stat().st_size < PAGE_MIB * 2**20
    assert min(first_paint_ms(browser, pages / "long.html") for _ in range(3)) < FIRST_PAINT_MS


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(...)` (WCAG 2)."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
