"""The page as text: every element closed, nothing unescaped, a table behind every picture, headings without gaps."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from next_ray.report.page.data import RunData
from next_ray.report.page.markup import Markup, joined, tag
from next_ray.report.page.page import page
from tests.report.page.runs import a_run, checkpoint

HOSTILE = "</pre></script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"' onload=alert(2) \u202e\x00\ud800&lt;"
VOID = {"meta", "br", "hr"}
NAMES = (
    "html head meta title style body a header main footer nav section h1 h2 h3 h4 p ul li dl dt dd div span small table thead tbody tr th "
    "td figure figcaption details summary pre svg desc g text line rect circle polygon polyline path defs marker"
)
ELEMENTS = set(NAMES.split())


class Page(HTMLParser):
    """Elements with their attributes, in order; raises AssertionError for what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, words: str) -> None:
        self.words += words

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == name]


def hostile() -> RunData:
    run = a_run()
    rows = [*run.rows, {"kind": "alarm", "step": 5, "alarm": HOSTILE, "message": HOSTILE}]
    rows.append({"kind": "fault", "step": 5, "what": HOSTILE, "event": HOSTILE, "detail": HOSTILE, "time_s": 3.0})
    candidates = [{"name": f"{HOSTILE}@1", "accuracy": 0.5, "difference": 0.1, "p_value": 0.5}, {"name": HOSTILE}]
    attempts = [{**run.attempts[0], "reason": HOSTILE, "accepted": HOSTILE, "candidates": candidates, "abstained": {HOSTILE: HOSTILE}}]
    samples = [{"step": 1, "prompt_id": HOSTILE, "prompt": HOSTILE, "completion": HOSTILE * 100, "answer": HOSTILE, "reward": 1.0}]
    summary = {**(run.summary or {}), "faults": [row for row in rows if row["kind"] == "fault"]}
    summary["models"] = [{**model, "label": HOSTILE} for model in summary["models"]]
    jumped = (checkpoint(4), checkpoint(4, "jumped", (HOSTILE,), 4))
    return replace(
        run, name=HOSTILE, url=HOSTILE, model=HOSTILE, rows=rows, attempts=attempts, samples=samples, summary=summary, checkpoints=jumped,
        settings={"run": {"steps": 10, HOSTILE: HOSTILE}}, version=HOSTILE, device=HOSTILE, holder=HOSTILE, notes=(HOSTILE,),
    )  # fmt: skip


def test_text_is_escaped_wherever_it_is_put() -> None:
    made = tag("p", "<b>&", tag("i", "x"), 3, None, class_='"><', title="a'b", hidden=True, id=None, open=False)
    assert made == '<p class="&quot;&gt;&lt;" title="a&#x27;b" hidden>&lt;b&gt;&amp;<i>x</i>3</p>'
    assert joined("a\x1b[31m\u202eb\u00a0c\n", "\ud800") == "a\N{MIDDLE DOT}[31m\N{MIDDLE DOT}b c\n\N{MIDDLE DOT}"
    assert isinstance(made, Markup) and not isinstance(made + "", Markup)


@pytest.mark.parametrize("runs", [(hostile(),), (hostile(), a_run("plain", extrapolates=False))], ids=["one", "two"])
def test_hostile_names_prompts_and_samples_stay_text(runs: tuple[RunData, ...]) -> None:
    text = page(runs, "now")
    text.encode("utf-8")
    found = Page(text)
    assert {name for name, _ in found.found} <= ELEMENTS
    for name, attributes in found.found:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "style")], (name, attributes)
        assert "href" not in attributes or (attributes["href"] or "").startswith("#")
    assert "alert(1)" in found.words and "\x00" not in text and "\u202e" not in text


def test_the_policy_allows_this_style_and_nothing_else() -> None:
    text = page([a_run()], "now")
    (policy,) = [one["content"] or "" for one in Page(text).all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    (style,) = re.findall("<style>(.*?)</style>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in style and "@import" not in style and "http" not in style


@pytest.mark.parametrize("number", [1, 2, 6])
def test_the_page_is_made_for_those_who_hear_it_too(number: int) -> None:
    runs = [a_run(f"run-{i}", extrapolates=i != 1) for i in range(number)]
    text = page(runs, "now")
    found = Page(text)
    ids = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id is there twice"
    named = {value for _, attributes in found.found for key in ("aria-labelledby", "aria-describedby") if (value := attributes.get(key))}
    assert named <= set(ids)
    assert {(one["href"] or "")[1:] for one in found.all("a")} <= set(ids)
    assert all(one.get("role") == "img" or one.get("aria-hidden") == "true" for one in found.all("svg"))
    assert len(found.all("h1")) == len(found.all("main")) == len(found.all("header")) == len(found.all("nav")) == 1
    levels = [int(name[1]) for name, _ in found.found if re.fullmatch("h[1-4]", name)]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels)), levels
    assert all(one.get("tabindex") == "0" and one.get("aria-label") for one in found.all("div") if one.get("class") == "wide")
    for figure in re.findall("<figure.*?</figure>", text, re.S):
        assert 'role="img"' not in figure or "<table" in figure, figure[:200]


def test_numbers_are_on_the_page_as_they_are() -> None:
    words = Page(page([a_run()], "2026-01-02 03:04 UTC")).words
    for said in (
        "one",
        "finished after 10 of 10 steps",
        "75.0 % [75.0, 75.0]",
        "+50.0 [+50.0, +50.0]",
        "jumped with two-point@1.5",
        "24 s",
    ):
        assert said in words, said
    assert "What the jump saved shows only against the same budget without it" in words


def test_a_run_that_goes_on_claims_nothing() -> None:
    words = Page(page([a_run(ended=False, holder="process 1 on host")], "now")).words
    assert "running: step 10 of 10 committed at 2026-01-02 03:04:05 UTC" in words
    assert "The run has not ended, so nothing is said about what was gained." in words
    assert "nobody writes it now" in Page(page([a_run(ended=False)], "now")).words


def test_a_run_of_which_nothing_is_known_yet_has_a_page() -> None:
    words = Page(page([RunData("new", "file:///new")], "now")).words
    assert "no checkpoint is committed yet" in words and "No jump was tried" in words
    assert "A" in Page(page([RunData("new", "u"), a_run()], "now")).words


def test_a_long_completion_is_cut_and_says_so() -> None:
    sample = {"step": 1, "prompt_id": "p", "prompt": "x", "completion": "y" * 2000, "answer": "z", "reward": 0.0}
    words = Page(page([a_run(samples=[sample])], "now")).words
    assert "(500 characters more)" in words and "not rewarded 0.00" in words and "y" * 1501 not in words
