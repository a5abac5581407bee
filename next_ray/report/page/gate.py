"""Attempts to jump: candidates by alpha (NExt, figure 6), the gate's word, and how well the methods had foretold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from next_ray.report.page.axes import STYLES, whole_percent
from next_ray.report.page.charts import Axis, Series, key, line_chart
from next_ray.report.page.data import RunData
from next_ray.report.page.layout import Shown, Table, figure, grid, scrolled, section, share, soft
from next_ray.report.page.markup import Markup, tag
from next_ray.report.page.numbers import outcome, parted
from next_ray.report.text import duration, jump_sentence, percent

DRAWN = 4
"""Attempts whose candidates are drawn, the accepted and the newest first; the table has all."""

BACKTESTED = (("next", "NExt"), ("persistence", "persistence"), ("linear", "linear fit"))


def gate(run: RunData, name: str, level: int) -> Markup:
    """Everything about a run's attempts to jump."""
    heading = "Jumps"
    if not run.attempts:
        why = "This run does not extrapolate." if run.extrapolates is False else _not_yet(run)
        return section(f"{name}-gate", heading, level, soft(why))
    said = tag("ul", *(tag("li", _tag(row), " ", jump_sentence(dict(row)), _cost(row)) for row in run.attempts))
    sweeps = [_sweep(row, f"{name}-sweep-{row['step']}", level + 1) for row in _chosen(run.attempts)]
    charts = [chart for chart in (*sweeps, _foretold(run, name, level + 1)) if chart is not None]
    return section(f"{name}-gate", heading, level, said, grid(*charts) if charts else None, _all_candidates(run))


def _not_yet(run: RunData) -> str:
    every, number = run.setting("extrapolation.interval_steps"), run.setting("extrapolation.checkpoints")
    when = f" The first attempt is due after step {every * number}." if every and number else ""
    return f"No jump was tried in the committed steps.{when}"


def _tag(row: Mapping[str, Any]) -> Markup:
    sign, word = outcome(row)
    return tag("span", f"{sign} {word}", class_=f"tag {'good' if word == 'jump' else 'warn'}")


def _cost(row: Mapping[str, Any]) -> str | None:
    seconds = sum(value for key_, value in row.items() if key_.startswith("time_"))
    return f" It took {duration(seconds)}." if seconds else None


def _chosen(attempts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    drawn = [row for row in attempts if any("accuracy" in one for one in row.get("candidates", ()))]
    first = sorted(drawn, key=lambda row: ("accepted" not in row, -row["step"]))[:DRAWN]
    return sorted(first, key=lambda row: row["step"])


def _sweep(row: Mapping[str, Any], name: str, level: int) -> Markup | None:
    """Accuracy on the gate's prompts over alpha, a curve a method; the level that was to be beaten is dashed."""
    by_method: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for one in row["candidates"]:
        method, alpha = parted(one["name"])
        if alpha is not None and "accuracy" in one:
            by_method.setdefault(method, []).append((alpha, one))
    if not by_method:
        return None
    series = []
    for i, (method, found) in enumerate(by_method.items()):
        found.sort(key=lambda pair: pair[0])
        titles = [_shown(one) for _, one in found]
        series.append(Series(method, [(alpha, one["accuracy"]) for alpha, one in found], i % STYLES, marked=True, titles=titles))
    chosen = [(alpha, one["accuracy"]) for found in by_method.values() for alpha, one in found if one["name"] == row.get("accepted")]
    if chosen:
        series.append(Series("accepted", chosen, 5, joined=False, marked=True))
    alphas = [alpha for found in by_method.values() for alpha, _ in found]
    ends = (min([0.0, *alphas]), max(alphas) * 1.05)
    if "baseline_accuracy" in row:
        level_ = row["baseline_accuracy"]
        series.append(
            Series(f"checkpoint of step {row['step']}: {percent(level_)}", [(ends[0], level_), (ends[1], level_)], kind="ref dash")
        )
    heading = f"Candidates at step {row['step']}, by how far they reach"
    best = max(row["candidates"], key=lambda one: one.get("accuracy", -1.0))
    word = f"accepted: {row['accepted']}" if "accepted" in row else "none was accepted"
    description = f"Accuracy on the gate's prompts over alpha; best {_shown(best)}; {word}."
    picture = line_chart(
        name, heading, description, series, Axis("alpha", range=ends), Axis("accuracy on the gate's prompts", whole_percent)
    )
    caption = (
        f"Of these, {word}. Differences count only with the p-values of the table, corrected for the number of candidates (NExt, figure 6)."
    )
    return figure(
        name,
        heading,
        picture,
        caption,
        Table(("candidate", "accuracy", "points", "p"), [_row(one) for one in row["candidates"]]),
        level,
        key(series),
    )


def _shown(one: Mapping[str, Any]) -> str:
    difference = f", {100 * one['difference']:+.1f} points, p = {one['p_value']:.3g}" if "difference" in one else ""
    return f"{one['name']}: {percent(one['accuracy'])}{difference}" if "accuracy" in one else one["name"]


def _row(one: Mapping[str, Any]) -> tuple[object, ...]:
    points = Shown(f"{100 * one['difference']:+.1f}") if "difference" in one else None
    return one["name"], share(one.get("accuracy")), points, one.get("p_value")


def _foretold(run: RunData, name: str, level: int) -> Markup | None:
    """The errors of the running back test, of the attempt that knew most."""
    row = max(run.attempts, key=lambda one: len(one.get("backtest", ())))
    scores = row.get("backtest", ())
    if not scores:
        return None
    every = run.setting("extrapolation.interval_steps")
    unit, times = ("training step that was foretold from", every) if every else ("checkpoint that was foretold from", 1)
    series = [
        Series(label, [(one["index"] * times, one[key_]) for one in scores if key_ in one], i, marked=True)
        for i, (key_, label) in enumerate(BACKTESTED)
    ]
    series = [one for one in series if one.points]
    xs = [point[0] for one in series for point in one.points]
    series.append(Series("as good as staying put", [(min(xs), 1.0), (max(xs), 1.0)], kind="ref dash"))
    last = ", ".join(f"{label} {scores[-1][key_]:.2f}" for key_, label in BACKTESTED if key_ in scores[-1])
    heading = "Foretold and realised: error of each forecast"
    picture = line_chart(
        f"{name}-foretold",
        heading,
        f"Relative error on transitions no method had seen; the last: {last}.",
        series,
        Axis(unit),
        Axis("relative error", zero=True),
    )
    rows = [(one["index"], *(one.get(key_) for key_, _ in BACKTESTED)) for one in scores]
    abstained = "; ".join(f"{method} abstained: {why}" for method, why in row.get("abstained", {}).items())
    caption = f"Rank-1 deltas, mean over modules; below 1 a forecast was nearer to what training did than staying put. {abstained}".strip()
    return figure(
        f"{name}-foretold", heading, picture, caption, Table(("checkpoint", *(label for _, label in BACKTESTED)), rows), level, key(series)
    )


def _all_candidates(run: RunData) -> Markup | None:
    rows = [
        (
            f"step {row['step']}",
            one["name"],
            kind,
            share(one.get("accuracy")),
            Shown(f"{100 * one['difference']:+.1f}") if "difference" in one else None,
            one.get("p_value"),
        )
        for row in run.attempts
        for kind, found in (("screened", row.get("screened", ())), ("tested", row.get("candidates", ())))
        for one in found
    ]
    if not rows:
        return None
    table = Table(("attempt", "candidate", "", "accuracy", "points", "p"), rows)
    return tag(
        "details", tag("summary", f"All candidates of all attempts ({len(rows)})"), scrolled(table, "all candidates"), class_="numbers"
    )
