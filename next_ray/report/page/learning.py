"""Learning curves and where the time went, of one run or of several in the same pictures."""

from __future__ import annotations

from collections.abc import Sequence

from next_ray.report.page.axes import whole_percent
from next_ray.report.page.charts import Axis, Mark, Series, bars, key, line_chart, smoothed
from next_ray.report.page.data import RunData
from next_ray.report.page.layout import LETTERS, Shown, Table, called, figure, grid, interval, section, soft
from next_ray.report.page.markup import Markup
from next_ray.report.page.numbers import (
    ACCEPTED,
    EXTRAPOLATION,
    REFUSED,
    TAKEN_BACK,
    Point,
    elapsed,
    evaluated,
    outcome,
    seconds_by_phase,
    series_of,
)
from next_ray.report.text import duration, percent

SMOOTHED_SHARE = 20
"""The mean of a step and those before it goes over a twentieth of the steps."""

OTHERS = (
    ("completion_tokens_mean", "Tokens of a completion", "mean length"),
    ("entropy", "Entropy of the policy", "nats"),
    ("kl", "KL divergence", "nats"),
    ("grad_norm", "Gradient norm", "norm"),
    ("equal_reward_groups", "Groups without signal", "share of the groups whose rewards are all equal"),
    ("truncated_fraction", "Completions cut off", "share of the completions"),
)
"""Columns that are drawn where a run has them: name, heading, label."""


def learning(runs: Sequence[RunData]) -> Markup:
    """Reward by step, held-out accuracy by step, and by time."""
    content = [_reward(runs), _accuracy(runs, by_time=False)]
    if any(elapsed(run) for run in runs) and any(run.evaluations for run in runs):
        content.append(_accuracy(runs, by_time=True))
    others = [chart for name, heading, label in OTHERS if (chart := _other(runs, name, heading, label)) is not None]
    return section("learning", "Learning", 2, grid(*content, *others))


def marks(runs: Sequence[RunData]) -> list[Mark]:
    """What became of the attempts, by step; with the run's letter where there are several."""
    found = []
    for i, run in enumerate(runs):
        for attempt in run.attempts:
            sign, word = outcome(attempt)
            found.append(Mark(attempt["step"], sign, f"{word} ({LETTERS[i]})" if len(runs) > 1 else word))
    return found


def _reward(runs: Sequence[RunData]) -> Markup:
    found = [series_of(run.steps, "reward_mean") for run in runs]
    series = [one for i, points in enumerate(found) for one in _pair(points, i, called(runs, i), len(runs) > 1)]
    rows = [(LETTERS[i], x, y) for i, points in enumerate(found) for x, y in points]
    heading = "Reward of the training prompts"
    if not rows:
        return figure("reward", heading, None, "No step is committed yet.", None, 3)
    axes = Axis("training step"), Axis("mean reward")
    picture = line_chart("reward", heading, f"Mean reward of a step's completions: {_span(series)}.", series, *axes, marks(runs))
    return figure("reward", heading, picture, _caption(runs), _table(("run", "step", "reward"), rows, runs), 3, key(series))


def _accuracy(runs: Sequence[RunData], by_time: bool) -> Markup:
    series, rows = [], []
    for i, run in enumerate(runs):
        times = {0: 0.0, **elapsed(run)} if by_time else {}
        found = [(times.get(p.step) if by_time else float(p.step), p) for p in evaluated(run)]
        known = [(x / 60 if by_time else x, p) for x, p in found if x is not None]
        series += _curves(runs, i, known)
        rows += [
            (LETTERS[i], p.label, p.step, Shown(duration(x)) if by_time else None, interval(p.avg), interval(p.pass_))
            for x, p in found
            if x is not None
        ]
    name, heading = ("accuracy-time", "Held-out accuracy by time") if by_time else ("accuracy", "Held-out accuracy")
    if not rows:
        return figure(name, heading, None, "Nothing was evaluated yet: set evaluation.every_steps, or wait for the end.", None, 3)
    axis = Axis("minutes of critical path" if by_time else "training step")
    last = "; ".join(f"{called(runs, i)} last {percent(p[-1].avg['mean'])}" for i, run in enumerate(runs) if (p := evaluated(run)))
    picture = line_chart(
        name,
        heading,
        f"Mean accuracy with 95 % intervals: {last}.",
        series,
        axis,
        Axis("avg@k", whole_percent),
        () if by_time else marks(runs),
    )
    caption = "Bars: 95 % intervals by bootstrap over the test prompts." + (" The gate's time is counted." if by_time else "")
    if not by_time:
        rows = [(run, label, step, avg, pass_) for run, label, step, _, avg, pass_ in rows]
    columns = ("run", "model", "step", *(("critical path",) if by_time else ()), "avg@k [95 %]", "pass@k [95 %]")
    return figure(name, heading, picture, caption, _table(columns, rows, runs), 3, key(series))


def _curves(runs: Sequence[RunData], number: int, known: Sequence[tuple[float, Point]]) -> list[Series]:
    """The curve as the run went, and beside it the model before a jump, which the jump left behind."""
    on_way = [(x, p) for x, p in known if not p.label.startswith("before the jump")]
    left = [(x, p) for x, p in known if p.label.startswith("before the jump")]
    found = [Series(called(runs, number), _means(on_way), number, _ends(on_way), marked=True, titles=_titles(on_way))]
    if left:
        found.append(Series("before the jump", _means(left), number + 2, _ends(left), joined=False, marked=True, titles=_titles(left)))
    return found


def _means(known: Sequence[tuple[float, Point]]) -> list[tuple[float, float]]:
    return [(x, p.avg["mean"]) for x, p in known]


def _ends(known: Sequence[tuple[float, Point]]) -> list[tuple[float, float]]:
    return [(p.avg["low"], p.avg["high"]) for _, p in known]


def _titles(known: Sequence[tuple[float, Point]]) -> list[str]:
    return [f"{p.label}: {percent(p.avg['mean'])}, 95 % {100 * p.avg['low']:.1f} to {100 * p.avg['high']:.1f}" for _, p in known]


def _other(runs: Sequence[RunData], column: str, heading: str, label: str) -> Markup | None:
    found = [series_of(run.steps, column) for run in runs]
    if not any(found):
        return None
    series = [one for i, points in enumerate(found) for one in _pair(points, i, called(runs, i), len(runs) > 1)]
    rows = [(LETTERS[i], x, y) for i, points in enumerate(found) for x, y in points]
    axes = Axis("training step"), Axis(label, zero=True)
    name = column.replace("_", "-")
    picture = line_chart(name, heading, f"{heading} by step: {_span(series)}.", series, *axes, marks(runs))
    shown = key(series) if len(runs) > 1 else None
    return figure(name, heading, picture, None, _table(("run", "step", label), rows, runs), 3, shown)


def _pair(points: Sequence[tuple[float, float]], style: int, name: str, quiet: bool) -> list[Series]:
    """Every step as a thin line and the mean of some in front; the mean alone where that is the same."""
    window = max(1, len(points) // SMOOTHED_SHARE)
    mean = [(x, y) for (x, _), y in zip(points, smoothed([y for _, y in points], window), strict=True)]
    if window == 1:
        return [Series(name, mean, style, marked=len(points) < 2)]
    return [Series("" if quiet else "each step", points, style, kind="thin solid"), Series(f"{name}, mean of {window} steps", mean, style)]


def _span(series: Sequence[Series]) -> str:
    """Where the means begin and end, for those who cannot see them."""
    means = [one for one in series if "thin" not in one.kind and one.points]
    return "; ".join(f"{one.name} from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in means)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], runs: Sequence[RunData]) -> Table:
    """Without the letter where there is one run."""
    return Table(columns, rows) if len(runs) > 1 else Table(columns[1:], [row[1:] for row in rows])


def _caption(runs: Sequence[RunData]) -> str | None:
    if not any(run.attempts for run in runs):
        return None
    return f"Dotted lines: attempts to jump ({ACCEPTED} accepted, {REFUSED} refused, {TAKEN_BACK} taken back)."


def time(runs: Sequence[RunData]) -> Markup:
    """Seconds of the critical path by phase, and what runs beside it."""
    found = [seconds_by_phase(run) for run in runs]
    phases = sorted(
        (phase for phase in found[0] if any(one[phase] > 0 for one in found)), key=lambda phase: -max(one[phase] for one in found)
    )
    sums = [sum(one.values()) for one in found]
    if not any(sums):
        return section("time", "Where the time went", 2, soft("No step is committed yet."))
    rows = [("all", sums), *((phase, [one[phase] for one in found]) for phase in phases)]
    cost = [sum(one[phase] for phase in EXTRAPOLATION) for one in found]
    said = "; ".join(
        f"{called(runs, i)} {duration(total)}, {percent(c / total if total else 0)} of it for extrapolation"
        for i, (total, c) in enumerate(zip(sums, cost, strict=True))
    )
    picture = bars("time-phases", "Seconds on the critical path by phase", f"{said}.", rows, duration, LETTERS[: len(runs)])
    table = Table(
        ("phase", *(f"{LETTERS[i]}, seconds" if len(runs) > 1 else "seconds" for i in range(len(runs)))),
        [(phase, *(round(v, 2) for v in values)) for phase, values in rows],
    )
    names = key([Series(called(runs, i), [(0, 0)], i, joined=False, marked=True) for i in range(len(runs))]) if len(runs) > 1 else None
    caption = f"{said}. Candidates, gate and jump are what extrapolation costs on the critical path (NExt, figure 5)."
    content = [figure("time-phases", "By phase", picture, caption, table, 3, names), _speed(runs)]
    return section("time", "Where the time went", 2, grid(*content), _beside(runs))


def _speed(runs: Sequence[RunData]) -> Markup | None:
    return _other(runs, "time_total_s", "Seconds a step, from prompts to the adapter that is served", "seconds")


def _beside(runs: Sequence[RunData]) -> Markup | None:
    said = []
    for i, run in enumerate(runs):
        off = run.summary["seconds_off_critical_path"] if run.summary else {}
        said += [f"{called(runs, i)}: " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in off.items())] if off else []
    return soft("Beside training, off the critical path: ", "; ".join(said), ".") if said else None
