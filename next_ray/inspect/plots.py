"""The figures of an inspection as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from next_ray.inspect.analysis import Inspection
from next_ray.inspect.backtest import MethodBacktest
from next_ray.inspect.groups import by_group
from next_ray.inspect.linearity import Linearity
from next_ray.inspect.summaries import ALL, GroupSummary, summaries
from next_ray.inspect.verdict import UNIVERSAL

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
"""Okabe and Ito's palette and one of Tol's, apart for colour-blind readers too; markers tell the lines apart once more."""

ERROR_SHOWN = 2.0
"""Bars end there; their number stands beside them."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
RANGES = ("R² < -0.5", "-0.5 to 0", "0 to 0.5", "0.5 to 1")
RANGE_COLOURS = ("#B2182B", "#F4A582", "#92C5DE", "#2166AC")
NUCLEAR = "$E_1 = \\sigma_1 / \\Sigma_i\\, \\sigma_i$"
FROBENIUS = "$\\sigma_1^2 / \\|W_t - W_0\\|_F^2$"
DPI = 150
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def draw(inspection: Inspection, folder: Path) -> list[Path]:
    """Write what there is data for and return the files; the folder is made. Files of an earlier inspection are replaced."""
    groups = summaries(inspection)
    with matplotlib.rc_context(STYLE):
        figures = {
            "energy": _energy(inspection, groups),
            "heatmap": _heatmap(inspection),
            "linearity": _linearity(inspection, groups),
            "angles": _angles(inspection, groups),
            "backtest": _backtest(inspection),
        }
        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            FigureCanvasAgg(figure)
            figure.savefig(path, dpi=DPI)
            written.append(path)
    return written


def _energy(inspection: Inspection, groups: Sequence[GroupSummary]) -> Figure:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = (("nuclear", "share of the sum of singular values", NUCLEAR), ("frobenius", "share of the squared Frobenius norm", FROBENIUS))
    axes = figure.subplots(1, 2)
    for axis, (measure, what, label) in zip(axes, panels, strict=True):
        for index, group in enumerate(groups):
            _line(axis, inspection.steps, group.energy[measure], index, group.name, "mean")
        everything = groups[-1]
        axis.plot(inspection.steps, _nan(everything.random[measure]), "--", color="#555555", label="random, same rank")
        axis.plot(inspection.steps, _nan(everything.floor), ":", color="#555555", label="floor 1/rank")
        axis.set(xlabel="training step", ylabel=label, title=f"Rank-1 energy of $W_t - W_0$\n{what}", ylim=(0, None))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _heatmap(inspection: Inspection) -> Figure | None:
    """Layer by kind of matrix at the last checkpoint; None when no module that moved belongs to a layer."""
    modules = [module for module in inspection.modules if module.layer is not None and module.energy[-1].frobenius is not None]
    if not modules:
        return None
    columns = list(by_group(module.name for module in modules))
    layers = sorted({module.layer for module in modules if module.layer is not None})
    measure = "nuclear" if all(m.energy[-1].nuclear is not None for m in modules) else "frobenius"
    values = np.full((len(layers), len(columns)), np.nan)
    for module in modules:
        value = getattr(module.energy[-1], measure)
        values[layers.index(module.layer or 0), columns.index(module.group)] = np.nan if value is None else value
    height = min(12.0, 2.0 + 0.28 * len(layers))
    figure = Figure(figsize=(max(5.0, 1.8 + 0.85 * len(columns)), height), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, aspect="auto", cmap="cividis", origin="lower")
    axis.set_xticks(range(len(columns)), columns)
    every = max(1, len(layers) // 16)
    axis.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    axis.grid(visible=False)
    label = NUCLEAR if measure == "nuclear" else FROBENIUS
    axis.set(xlabel="kind of matrix", ylabel="layer", title=f"Rank-1 energy at step {inspection.steps[-1]}")
    figure.colorbar(image, ax=axis, label=label)
    if values.size <= 300:
        _write_values(axis, values)
    return figure


def _write_values(axis: Axes, values: np.ndarray) -> None:
    low, high = np.nanmin(values), np.nanmax(values)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = value < low + 0.55 * (high - low)
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _linearity(inspection: Inspection, groups: Sequence[GroupSummary]) -> Figure | None:
    rows = [(group.name, group.ahead, group.within) for group in groups if group.ahead is not None or group.within is not None]
    if not rows:
        return None
    rows.append(("random walk", inspection.walk_ahead, inspection.walk_within))
    figure = Figure(figsize=(10, 1.9 + 0.32 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [name for name, _, _ in rows]
    _stack(left, names, [ahead for _, ahead, _ in rows])
    _stack(right, names, [within for _, _, within in rows])
    fitted = f"line through checkpoints 1 to {inspection.num_train}" if inspection.num_train else "needs 4 checkpoints"
    left.set_title(f"Ahead: {fitted}, R² on the rest\n(entries of the rank-1 delta)")
    right.set_title("In sample: line through all checkpoints\n(entries of the weights)")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(RANGES))
    return figure


def _stack(axis: Axes, names: Sequence[str], found: Sequence[Linearity | None]) -> None:
    start = np.zeros(len(names))
    for part, (label, colour) in enumerate(zip(RANGES, RANGE_COLOURS, strict=True)):
        widths = np.array([0.0 if one is None else 100 * one.shares[part] for one in found])
        axis.barh(range(len(names)), widths, left=start, color=colour, label=label, height=0.75)
        for row, width in enumerate(widths):
            if width >= 8:
                light = part in (1, 2)
                axis.text(
                    start[row] + width / 2, row, f"{width:.0f}", ha="center", va="center", fontsize=8, color="black" if light else "white"
                )
        start += widths
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="share of entries, %", xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
    axis.grid(visible=False)


def _angles(inspection: Inspection, groups: Sequence[GroupSummary]) -> Figure | None:
    if len(inspection.steps) < 2:
        return None
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axis, title, part in ((left, "Global deltas $W_t - W_0$", "global_"), (right, "Local deltas $W_t - W_{t-1}$", "local")):
        for index, group in enumerate(groups):
            found = [angles.matrix if angles is not None else None for angles in getattr(group, part)]
            _line(axis, inspection.steps[1:], found, index, group.name, "median")
        axis.axhline(90, linestyle="--", color="#555555", label="unrelated (90°)")
        axis.set(xlabel="training step", title=title)
    left.set_ylim(0, max(95.0, left.get_ylim()[1], right.get_ylim()[1]))
    left.set_ylabel("angle of $u_1 v_1^T$ to the checkpoint before, degrees\n(median over modules)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _backtest(inspection: Inspection) -> Figure | None:
    results = inspection.backtest
    methods = [method for method in results.methods if method.scores and method.name != UNIVERSAL]
    if not methods:
        return None
    methods.sort(key=lambda m: _shown(m)[1])
    figure = Figure(figsize=(10, 2.4 + 0.32 * len(methods)), layout="constrained")
    axis = figure.subplots()
    for row, method in enumerate(methods):
        alpha, error = _shown(method)
        scores = [score.pooled for score in method.at(alpha)]
        axis.barh(row, error, color=COLOURS[0] if method.forecast is not None else COLOURS[4], height=0.7)
        axis.plot(scores, [row] * len(scores), "o", color="black", markersize=4, markeredgecolor="white", markeredgewidth=0.5)
        axis.text(1.01, row, f"{error:.2f} at $\\alpha$ = {alpha:g}", va="center", fontsize=9, transform=axis.get_yaxis_transform())
    axis.axvline(1.0, color="#333333", linestyle="--", label="staying put")
    axis.set_yticks(range(len(methods)), [method.name for method in methods])
    axis.grid(visible=False, axis="y")
    worst = max(_shown(method)[1] for method in methods)
    axis.set(
        xlim=(0, min(max(1.2, 1.05 * worst), ERROR_SHOWN)),
        ylim=(len(methods) - 0.4, -0.6),
        xlabel="$\\|\\hat W - W_c\\|_F \\,/\\, \\|W_c - W_o\\|_F$, all weights as one vector",
        title=f"Back test: {results.horizon} checkpoint{'s' if results.horizon > 1 else ''} ahead of checkpoint "
        f"{', '.join(map(str, results.origins))}\n(bars: median over these, dots: each)",
    )
    figure.legend(handles=_legend(axis, methods), loc="outside lower center", ncols=3)
    return figure


def _legend(axis: Axes, methods: Sequence[MethodBacktest]) -> list[Artist]:
    handles: list[Artist] = [Patch(color=COLOURS[0], label="at the alpha that the method claims")]
    if any(method.forecast is None for method in methods):
        handles.append(Patch(color=COLOURS[4], label="makes no claim: alpha best in hindsight"))
    return [*handles, axis.lines[-1]]


def _shown(method: MethodBacktest) -> tuple[float, float]:
    """The alpha to draw and its error."""
    alpha = method.forecast if method.forecast is not None else method.best_alpha
    assert alpha is not None
    return alpha, method.error(alpha)


def _line(axis: Axes, steps: Sequence[int], values: Sequence[float | None], index: int, name: str, average: str) -> None:
    everything = name == ALL
    axis.plot(
        steps,
        _nan(values),
        color="black" if everything else COLOURS[index % len(COLOURS)],
        marker=None if everything else MARKERS[index % len(MARKERS)],
        markersize=4,
        linewidth=2.5 if everything else 1.3,
        label=f"{name} ({average})" if everything else name,
        zorder=3 if everything else 2,
    )


def _nan(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
