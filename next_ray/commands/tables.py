"""The numbers of an evaluation as tables like the paper's 3, 4, 7 and 8: a line a model, a column a set or a category.

A table that is wider than the terminal is shown in parts, as the paper does with its fourteen categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

LABEL_WIDTH = 36
"""Longer labels are folded."""
NOTHING = "-"


@dataclass(frozen=True)
class Column:
    """A title and a cell a model; `values` decide the best, None where there is no best."""

    title: str
    cells: Sequence[str]
    values: Sequence[float] | None = None


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Tables on stdout: each set with intervals, its categories, and all sets with steps and ICER."""
    console = console or Console()
    decoding, models = result["decoding"], result["models"]
    order = _by_family(models)
    text = f"{decoding['samples']} samples, temperature {decoding['temperature']:g}, top_p {decoding['top_p']:g}, "
    console.print(text + f"at most {decoding['max_tokens']} tokens; percent (95 % intervals over prompts)", markup=False, highlight=False)
    for name, scores in models[0]["sets"].items():
        _print(console, f"{name}, {scores['prompts']} prompts", order, _detail(name, order, decoding["samples"]))
        if scores["groups"]:
            _print(console, f"{name} by category, avg@{decoding['samples']}", order, _groups(name, order))
    _print(console, f"all sets, avg@{decoding['samples']}", order, _summary(order))
    if any("against" in model for model in models):
        console.print("ICER: steps per point gained over the base (lower is better)", markup=False, highlight=False)
    for name, found in result["comparison"].items():
        interval = f"[{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
        console.print(
            f"{name}: {models[1]['label']} minus {models[0]['label']} {100 * found['difference']:+.1f} {interval}, "
            f"p = {found['p_value']:.4f}",
            markup=False,
        )


def _by_family(models: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Models that are measured against the same one stand together, behind it; families in the order of their first."""
    families: dict[str, list[Mapping[str, Any]]] = {}
    for model in models:
        families.setdefault(_family(model), []).append(model)
    return [model for family in families.values() for model in family]


def _family(model: Mapping[str, Any]) -> str:
    return model.get("against", model["label"])


def _detail(name: str, models: Sequence[Mapping[str, Any]], samples: int) -> list[Column]:
    """avg, pass@k and maj@k with intervals; k = 1 is left out, where both are avg."""
    found = [model["sets"][name] for model in models]
    picked = [(f"avg@{samples}", [scores["avg"] for scores in found])]
    picked += [(f"{what}@{k}", [scores[what][k] for scores in found]) for what in ("pass", "maj") for k in found[0][what] if k != "1"]
    columns = [Column(title, [_interval(value) for value in values], [value["mean"] for value in values]) for title, values in picked]
    if any(scores["truncated"] for scores in found):
        columns.append(Column("cut off", [f"{100 * scores['truncated']:.0f}" for scores in found]))
    if any(scores["unjudged"] for scores in found):
        columns.append(Column("unjudged", [str(scores["unjudged"]) for scores in found]))
    return columns


def _groups(name: str, models: Sequence[Mapping[str, Any]]) -> list[Column]:
    found = [model["sets"][name] for model in models]
    columns = [_means(group, [scores["groups"][group]["avg"]["mean"] for scores in found]) for group in found[0]["groups"]]
    return [*columns, _means("Avg.", [scores["macro_over_groups"] for scores in found])]


def _summary(models: Sequence[Mapping[str, Any]]) -> list[Column]:
    steps = Column("steps", [NOTHING if model["steps"] is None else str(model["steps"]) for model in models])
    sets = [_means(name, [model["sets"][name]["avg"]["mean"] for model in models]) for name in models[0]["sets"]]
    return [steps, *sets, _means("Avg.", [model["macro_avg"] for model in models]), Column("ICER", [_icer(model) for model in models])]


def _means(title: str, values: Sequence[float]) -> Column:
    return Column(title, [f"{100 * value:.1f}" for value in values], values)


def _icer(model: Mapping[str, Any]) -> str:
    if model.get("icer") is not None:
        return f"{model['icer']:.1f}"
    return "no gain" if model.get("gain", 1.0) <= 0 else NOTHING


def _interval(value: Mapping[str, float]) -> str:
    return f"{100 * value['mean']:.1f} ({100 * value['low']:.1f}-{100 * value['high']:.1f})"


def _print(console: Console, title: str, models: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> None:
    parts = _parts(columns, console.width - min(LABEL_WIDTH, max(cell_len(model["label"]) for model in models)) - 4)
    for number, part in enumerate(parts, start=1):
        # Not the table's own title, which would be folded to the width of a narrow table.
        whole = title + (f" (part {number} of {len(parts)})" if len(parts) > 1 else "")
        console.print(whole, style="italic", markup=False, highlight=False)
        table = Table()
        table.add_column("model", overflow="fold", max_width=LABEL_WIDTH)
        for column in part:
            table.add_column(column.title, justify="right", no_wrap=True)
        ends = [before for before, (one, other) in enumerate(pairwise(models)) if _family(one) != _family(other)]
        for row, model in enumerate(models):
            cells = [Text(column.cells[row], "bold" if _is_best(column, models, row) else "") for column in part]
            table.add_row(Text(model["label"]), *cells, end_section=row in ends)
        console.print(table)


def _parts(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """As many columns side by side as `width` takes, one at least."""
    parts: list[list[Column]] = [[]]
    used = 0
    for column in columns:
        needed = max(map(cell_len, (column.title, *column.cells))) + 3
        if parts[-1] and used + needed > width:
            parts.append([])
            used = 0
        parts[-1].append(column)
        used += needed
    return parts


def _is_best(column: Column, models: Sequence[Mapping[str, Any]], row: int) -> bool:
    """Whether a cell holds the highest value of its family, among two at least."""
    family = [i for i, model in enumerate(models) if _family(model) == _family(models[row])]
    return column.values is not None and len(family) > 1 and column.values[row] == max(column.values[i] for i in family)
