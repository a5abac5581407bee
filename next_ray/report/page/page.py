"""The whole page: one file, no script, nothing from elsewhere, and a policy that holds the browser to that."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from next_ray.report.page import gate, learning, overview, story, weights
from next_ray.report.page.data import RunData
from next_ray.report.page.layout import letter, section
from next_ray.report.page.markup import Markup, joined, tag
from next_ray.report.page.style import CSS

PARTS = (
    ("gate", "Jumps"),
    ("weights", "Weights"),
    ("lineage", "Lineage"),
    ("samples", "Samples"),
    ("faults", "Faults"),
    ("config", "Configuration"),
)


def page(runs: Sequence[RunData], written_at: str) -> str:
    """The report of one run, or of up to six side by side; the first of several is run A.

    Args:
        runs: as the store had them.
        written_at: when, for the reader.
    """
    one = runs[0]
    title = f"{one.name} - next_ray report" if len(runs) == 1 else f"{' and '.join(run.name for run in runs)} - next_ray report"
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#verdict", class_="skip"),
        tag("header", *_head(runs, written_at), _contents(runs)),
        tag("main", *_main(runs), id="content"),
        tag("footer", f"Written {written_at} by next_ray from the checkpoint store alone. Nothing on this page comes from anywhere else."),
    )
    return "<!doctype html>\n" + tag("html", _meta(title), body, lang="en")


def _meta(title: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(CSS)),
    )


def _head(runs: Sequence[RunData], written_at: str) -> list[Markup]:
    if len(runs) > 1:
        names = joined(*(joined(None if i == 0 else " ", letter(i), " ", run.name) for i, run in enumerate(runs)))
        return [tag("p", f"next_ray, {len(runs)} runs side by side", class_="kicker"), tag("h1", names)]
    run = runs[0]
    model = f"{run.model}, " if run.model else ""
    return [
        tag("p", "next_ray run", class_="kicker"),
        tag("h1", run.name),
        tag("p", f"{model}{overview.status(run)}. Written {written_at}.", class_="soft"),
        overview.facts(run),
    ]


def _contents(runs: Sequence[RunData]) -> Markup:
    entries = [("verdict", "What came out"), ("learning", "Learning"), ("time", "Time")]
    entries += (
        [(f"run0-{part}", words) for part, words in PARTS] if len(runs) == 1 else [(f"run{i}", run.name) for i, run in enumerate(runs)]
    )
    return tag("nav", tag("ul", *(tag("li", tag("a", words, href=f"#{name}")) for name, words in entries)), aria_label="Contents")


def _main(runs: Sequence[RunData]) -> list[Markup]:
    first = overview.single(runs[0]) if len(runs) == 1 else overview.several(runs)
    shared = [first, learning.learning(runs), learning.time(runs)]
    if len(runs) == 1:
        return [*shared, *_own(runs[0], "run0", 2)]
    return [
        *shared,
        *(
            section(f"run{i}", joined(letter(i), " Run ", run.name), 2, overview.facts(run), *_own(run, f"run{i}", 3))
            for i, run in enumerate(runs)
        ),
    ]


def _own(run: RunData, name: str, level: int) -> list[Markup]:
    """What a run does not share with others."""
    parts = (gate.gate, weights.weights, story.lineage, story.samples, story.faults, story.settings)
    return [part(run, name, level) for part in parts]
