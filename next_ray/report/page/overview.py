"""The top of the page: what was run, what came out, and what may be said of it."""

from __future__ import annotations

from collections.abc import Sequence

from next_ray.report.final import verdict as run_verdict
from next_ray.report.page import compare
from next_ray.report.page.data import RunData
from next_ray.report.page.layout import LETTERS, Shown, Table, callout, interval, letter, notes, scrolled, section, share, when
from next_ray.report.page.markup import Markup, tag
from next_ray.report.page.numbers import evaluated, models, seconds_by_phase, totals
from next_ray.report.text import duration, jump_sentence, percent


def status(run: RunData) -> str:
    """Where a run stands, in words."""
    of = f" of {run.planned}" if run.planned else ""
    if run.summary:
        return f"finished after {run.last_step}{of} steps"
    if not run.checkpoints:
        return "no checkpoint is committed yet"
    where = f"step {run.last_step}{of} committed at {when(run.checkpoints[-1].created_at)}"
    return f"running: {where}" if run.holder else f"not finished: {where}; nobody writes it now"


def facts(run: RunData) -> Markup:
    """The numbers people ask for first."""
    found = models(run)
    seconds = sum(seconds_by_phase(run).values())
    tokens = run.summary["num_tokens"] if run.summary else totals(run).num_tokens
    cards = [("steps", f"{run.last_step}", f"of {run.planned}" if run.planned else "")]
    if found:
        final, base = found["final"], found["base"]
        low, high = final["avg_at_k"]["low"], final["avg_at_k"]["high"]
        cards.append(("accuracy at the end", percent(final["avg_at_k"]["mean"]), f"95 %: {100 * low:.1f} to {100 * high:.1f}"))
        if final["gain"]:
            gain = final["gain"]
            cards.append(("gain over the base", f"{100 * gain['mean']:+.1f} points", f"base {percent(base['avg_at_k']['mean'])}"))
    elif points := evaluated(run):
        cards.append(("accuracy, last measured", percent(points[-1].avg["mean"]), f"step {points[-1].step}"))
    cards.append(("jumps", *_jumps(run)))
    cards.append(("critical path", duration(seconds), "rollout, update and all that they wait for"))
    cards.append(("tokens", _short(tokens), f"{tokens / seconds:,.0f} a second" if seconds else ""))
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value, tag("small", more) if more else None)) for name, value, more in cards),
        class_="facts",
    )


def single(run: RunData) -> Markup:
    """What may be said of one run."""
    return section("verdict", "What came out", 2, callout(_said(run), "Verdict"), _models_table(run), notes(run.notes))


def several(runs: Sequence[RunData]) -> Markup:
    """What may be said of runs side by side."""
    lines = compare.verdict(runs)
    rows = [
        tag("tr", tag("th", letter(i), " ", run.name, scope="row"), tag("td", _kind(run)), tag("td", status(run)))
        for i, run in enumerate(runs)
    ]
    head = tag("tr", *(tag("th", name, scope="col") for name in ("run", "kind", "state")))
    who = tag("table", tag("thead", head), tag("tbody", *rows))
    wide = tag("div", who, class_="wide", tabindex=0, role="region", aria_label="Table: runs that are compared")
    tables = (wide, scrolled(_side_by_side(runs), "the runs in numbers"), _settings(runs))
    remarks = notes([note for run in runs for note in run.notes])
    return section("verdict", "What came out", 2, callout(lines, "Verdict"), *tables, remarks)


def _said(run: RunData) -> list[str]:
    """The run's own last words, the answer first; before its end what is known so far."""
    if run.summary:
        lines = run_verdict(run.summary)
        answer = next((line for line in lines if "inal model" in line), lines[0])
        return [answer, *(line for line in lines if line != answer)]
    lines = ["The run has not ended, so nothing is said about what was gained."]
    if points := evaluated(run):
        last = points[-1]
        lines.append(
            f"Last evaluation, step {last.step}: {percent(last.avg['mean'])} [{100 * last.avg['low']:.1f}, {100 * last.avg['high']:.1f}]."
        )
    return [*lines, *map(jump_sentence, run.attempts)]


def _models_table(run: RunData) -> Markup | None:
    if not run.summary:
        return None
    found = run.summary["models"]
    k = found[0]["num_samples"]
    rows = [
        (
            model["label"],
            model["steps"],
            interval(model["avg_at_k"]),
            interval(model["pass_at_k"]),
            interval(model["gain"], sign=True),
            None if not model["steps"] else Shown("undefined") if model["icer"] is None else Shown(f"{model['icer']:.1f}"),
        )
        for model in found
    ]
    caption = (
        f"{found[0]['num_prompts']} held-out prompts x {k} samples at temperature {found[0]['temperature']:g}; 95 % intervals by bootstrap "
        "over prompts. ICER: training steps for each accuracy point gained, lower is better."
    )
    table = Table(("model", "steps", f"avg@{k} [95 %]", f"pass@{k} [95 %]", "points over base [95 %]", "ICER"), rows, caption)
    return scrolled(table, "models that were evaluated at the end")


def _side_by_side(runs: Sequence[RunData]) -> Table:
    rows = []
    for i, run in enumerate(runs):
        found, seconds = models(run), sum(seconds_by_phase(run).values())
        base, final = found.get("base"), found.get("final")
        rows.append(
            (
                LETTERS[i],
                run.last_step,
                share(base["avg_at_k"]["mean"]) if base else None,
                interval(final["avg_at_k"]) if final else None,
                interval(final["gain"], sign=True) if final else None,
                Shown(f"{final['icer']:.1f}") if final and final["icer"] is not None else None,
                Shown(duration(seconds)) if seconds else None,
            )
        )
    return Table(("run", "steps", "base", "final accuracy [95 %]", "points over base [95 %]", "ICER", "critical path"), rows)


def _settings(runs: Sequence[RunData]) -> Markup | None:
    found = compare.differences(runs)
    if not found:
        return None
    rows = [(name, *(str(value) for value in values)) for name, values in found.items()]
    table = Table(("setting", *LETTERS[: len(runs)]), rows, "Settings that are not the same.")
    return tag("details", tag("summary", f"Settings in which they differ ({len(rows)})"), scrolled(table, "settings that differ"))


def _kind(run: RunData) -> str:
    if run.extrapolates is None:
        return "not known"
    if not run.extrapolates:
        return "plain"
    return ", ".join(("with extrapolation", *_jumps(run)))


def _jumps(run: RunData) -> tuple[str, str]:
    if run.extrapolates is False:
        return "none", "a plain run"
    stood = [row for row in run.accepted if "rolled_back" not in row]
    back = len(run.accepted) - len(stood)
    tried = len(run.attempts)
    more = f"{tried} tried" + (f", {back} taken back" if back else "")
    if len(stood) == 1:
        return "1 jump", f"{stood[0]['accepted']} at step {stood[0]['step']}; {more}"
    return f"{len(stood) or 'no'} jump{'s' if len(stood) > 1 else ''}", more


def _short(count: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
