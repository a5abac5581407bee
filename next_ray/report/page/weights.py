"""What the adapters show: rank-1 energy (NExt, figure 2), linearity (figure 3), layers, and the path of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from next_ray.report.page.axes import whole_percent
from next_ray.report.page.charts import Axis, Series, key, line_chart, share_key, shares
from next_ray.report.page.data import RunData
from next_ray.report.page.layout import Table, figure, grid, notes, section, soft
from next_ray.report.page.maps import heat_map, plane_map
from next_ray.report.page.markup import Markup
from next_ray.report.text import percent

if TYPE_CHECKING:
    from next_ray.inspect.analysis import Inspection
    from next_ray.inspect.linearity import Linearity
    from next_ray.inspect.summaries import GroupSummary

RANGES = ("below -0.5", "-0.5 to 0", "0 to 0.5", "0.5 to 1")


def weights(run: RunData, name: str, level: int) -> Markup:
    """All figures of the weights, as far as there is something to draw."""
    measured = run.weights
    figures: list[Markup | None] = []
    if measured.inspection is not None:
        from next_ray.inspect.summaries import summaries

        groups = summaries(measured.inspection)
        figures += [_energy(measured.inspection, groups, name, level + 1), _layers(measured.inspection, name, level + 1)]
        figures += _linearity(measured.inspection, groups, name, level + 1)
        figures.append(_foretold(measured.inspection, name, level + 1))
    figures.append(_plane(run, name, level + 1))
    shown = [one for one in figures if one is not None]
    content = grid(*shown) if shown else soft("Two trained checkpoints are needed before anything can be said of the weights.")
    return section(f"{name}-weights", "Weights", level, content, notes(measured.notes))


def _energy(inspection: Inspection, groups: Sequence[GroupSummary], name: str, level: int) -> Markup:
    """Mean over all modules, the span of the kinds of matrix, and what random factors of that rank would have."""
    steps, all_, kinds = inspection.steps, groups[-1], groups[:-1]
    measure = "nuclear" if any(value is not None for value in all_.energy["nuclear"]) else "frobenius"
    band = []
    for i, step in enumerate(steps):
        values = [value for group in kinds if (value := group.energy[measure][i]) is not None]
        band += [(step, min(values), max(values))] if values else []
    series = [
        Series("all modules, mean", _known(steps, all_.energy[measure]), 0, marked=True),
        Series("random factors of that rank", _known(steps, all_.random[measure]), kind="ref dash"),
        Series("least possible, 1/rank", _known(steps, all_.floor), kind="ref dot"),
    ]
    mean = series[0].points
    said = f"from {mean[0][1]:.2f} to {mean[-1][1]:.2f}" if mean else "not known"
    what = "sigma_1 / sum of sigma" if measure == "nuclear" else "sigma_1^2 / |W - W_0|^2"
    picture = line_chart(
        f"{name}-energy",
        "Rank-1 energy by step",
        f"Mean over all modules {said}.",
        series,
        Axis("training step"),
        Axis(what, zero=True),
        band=band,
    )
    rows = [(step, *(group.energy[measure][i] for group in groups), all_.random[measure][i]) for i, step in enumerate(steps)]
    table = Table(("step", *(group.name for group in groups), "random"), rows)
    caption = "Share of a delta that lies in its first singular direction (NExt, figure 2). The band spans the kinds of matrix."
    return figure(f"{name}-energy", "Rank-1 energy", picture, caption, table, level, key(series))


def _known(steps: Sequence[int], values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]


def _layers(inspection: Inspection, name: str, level: int) -> Markup | None:
    from next_ray.inspect.groups import by_group

    modules = [module for module in inspection.modules if module.layer is not None and module.energy[-1].frobenius is not None]
    if not modules:
        return None
    columns = list(by_group(module.name for module in modules))
    layers = sorted({module.layer for module in modules if module.layer is not None})
    measure = "nuclear" if all(module.energy[-1].nuclear is not None for module in modules) else "frobenius"
    values = {(layers.index(m.layer or 0), columns.index(m.group)): float(getattr(m.energy[-1], measure)) for m in modules}
    low, high = min(values, key=lambda cell: values[cell]), max(values, key=lambda cell: values[cell])
    ends = [f"{values[cell]:.2f} in layer {layers[cell[0]]}, {columns[cell[1]]}" for cell in (low, high)]
    said = f"Lowest {ends[0]}; highest {ends[1]}."
    heading = f"Rank-1 energy by layer at step {inspection.steps[-1]}"
    picture = heat_map(f"{name}-layers", heading, said, [str(layer) for layer in layers], columns, values)
    rows = [(str(layer), *(values.get((i, j)) for j in range(len(columns)))) for i, layer in enumerate(layers)]
    return figure(f"{name}-layers", heading, picture, said, Table(("layer", *columns), rows), level)


def _linearity(inspection: Inspection, groups: Sequence[GroupSummary], name: str, level: int) -> list[Markup]:
    """Out of sample as NExt has it, in sample as RL-Extra has it; both beside a random walk."""
    found = []
    fitted = f"A line through checkpoints 1 to {inspection.num_train} is judged on the rest, by entry of the rank-1 delta (NExt, figure 3)."
    within = "A line through all checkpoints, judged on these, by entry of the weights (RL-Extra)."
    for part, heading, caption in (
        ("ahead", "Linearity ahead: R\N{SUPERSCRIPT TWO} on unseen checkpoints", fitted),
        ("within", "Linearity in sample: R\N{SUPERSCRIPT TWO}", within),
    ):
        rows: list[tuple[str, Linearity]] = [(group.name, one) for group in groups if (one := getattr(group, part)) is not None]
        if not rows:
            continue
        walk: Linearity | None = getattr(inspection, f"walk_{part}")
        rows += [("random walk", walk)] if walk is not None else []
        straight = dict(rows)[groups[-1].name]
        said = (
            f"{percent(straight.shares[3])} of all entries have an R\N{SUPERSCRIPT TWO} above 0.5"
            + (f", of a random walk {percent(walk.shares[3])}" if walk else "")
            + "."
        )
        picture = shares(f"{name}-{part}", heading, said, [(label, one.shares) for label, one in rows])
        table = Table(
            ("matrix", *RANGES, "entries"),
            [(label, *(round(100 * share, 1) for share in one.shares), one.entries) for label, one in rows],
            "Percent of the entries.",
        )
        found.append(figure(f"{name}-{part}", heading, picture, f"{caption} {said}", table, level, share_key(RANGES)))
    return found


def _foretold(inspection: Inspection, name: str, level: int) -> Markup | None:
    """How near simple methods would have come to checkpoints that were hidden from them."""
    methods = [method for method in inspection.backtest.methods if method.scores and method.forecast is not None]
    if not methods:
        return None
    steps = (0, *inspection.steps)
    series = [
        Series(method.name, [(steps[s.origin], s.pooled) for s in method.at(method.forecast or 0.0)], i, marked=True)
        for i, method in enumerate(methods)
    ]
    xs = [x for one in series for x, _ in one.points]
    series.append(Series("staying put", [(min(xs), 1.0), (max(xs), 1.0)], kind="ref dash"))
    horizon = inspection.backtest.horizon
    said = "; ".join(f"{method.name} {method.error(method.forecast or 0.0):.2f}" for method in methods)
    heading = f"Foretold and realised: all weights, {horizon} checkpoint{'s' if horizon > 1 else ''} ahead"
    picture = line_chart(
        f"{name}-hidden",
        heading,
        f"Median relative errors: {said}.",
        series,
        Axis("step foretold from", range=None),
        Axis("relative error", zero=True),
    )
    rows = [(method.name, steps[score.origin], score.pooled) for method in methods for score in method.at(method.forecast or 0.0)]
    caption = (
        f"Checkpoints were hidden and foretold; below 1 the forecast is nearer to the realised weights than staying put. Median: {said}. "
        "python -m next_ray.inspect tries every method and gives a verdict."
    )
    return figure(f"{name}-hidden", heading, picture, caption, Table(("method", "step", "error"), rows), level, key(series))


def _plane(run: RunData, name: str, level: int) -> Markup | None:
    plane = run.weights.plane
    if plane is None:
        return None
    by_id = {one.id: one for one in run.checkpoints}
    chosen = [by_id[id_] for id_ in plane.ids]
    jumps = sum(one.kind == "jumped" for one in chosen)
    said = f"{len(chosen)} checkpoints and the base; the plane shows {whole_percent(plane.explained)} of their squared distances"
    description = f"Path of the weights in two dimensions, with {jumps} jump{'s' if jumps != 1 else ''}: {said}."
    picture = plane_map(f"{name}-plane", "Path of the weights", description, chosen, plane.places, plane.base)
    rows = [(one.id, one.step, one.kind, round(x, 5), round(y, 5)) for one, (x, y) in zip(chosen, plane.places, strict=True)]
    caption = (
        f"{said[0].upper()}{said[1:]}. Star: base; discs: trained; dashed arrow and diamond: predicted and jumped to; hollow square: a "
        "jump taken back."
    )
    return figure(
        f"{name}-plane",
        "Predicted and realised path of the weights",
        picture,
        caption,
        Table(("checkpoint", "step", "kind", "x", "y"), rows),
        level,
    )
