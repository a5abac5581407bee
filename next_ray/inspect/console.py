"""An inspection for people: five tables and the verdict, 100 columns wide at most, legible without colour."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from next_ray.inspect.analysis import Inspection
from next_ray.inspect.backtest import MethodBacktest
from next_ray.inspect.energy import SPECTRUM_LIMIT
from next_ray.inspect.linearity import ENTRIES, STRONG, Linearity
from next_ray.inspect.summaries import ALL, GroupSummary, summaries, typical
from next_ray.inspect.verdict import UNIVERSAL

WIDTH = 100


def make_console() -> Console:
    """On stdout; 100 columns where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def show(inspection: Inspection, console: Console) -> None:
    """Print everything."""
    groups = summaries(inspection)
    console.print(Text(_headline(inspection), style="bold"))
    for note in inspection.notes:
        console.print(Text(f"note: {_clean(note)}", style="dim"))
    for part in (
        _movement(inspection),
        _energy(inspection, groups),
        _directions(groups),
        _linearity(inspection, groups),
        _methods(inspection),
    ):
        console.print()
        console.print(part)
    if (table := _by_group(inspection)) is not None:
        console.print()
        console.print(table)
    console.print()
    style = "green" if inspection.verdict.worth_it else "yellow"
    console.print(
        Panel(Text(inspection.verdict.sentence), title="verdict", title_align="left", border_style=style, width=min(WIDTH, console.width))
    )


def _headline(inspection: Inspection) -> str:
    steps, modules = list(inspection.steps), len(inspection.modules)
    what = f"{len(steps)} {inspection.kind} checkpoint{'s' if len(steps) > 1 else ''}, steps {steps[0]} to {steps[-1]}"
    return f"{what}, {modules} module{'s' if modules > 1 else ''}, horizon {inspection.horizon} (checkpoints)"


def _movement(inspection: Inspection) -> RenderableType:
    movement, horizon = inspection.movement, min(inspection.horizon, len(inspection.steps))
    turns = [turn for turn in movement.turns if turn is not None]
    grid = Table.grid(padding=(0, 2))
    walk = len(inspection.steps) ** -0.5
    grid.add_row(
        "straightness of the path", _number(movement.straightness), f"1 on a line, {walk:.2f} on a random walk: |W_K - W_0| / path length"
    )
    grid.add_row("cosine of successive steps", _number(sum(turns) / len(turns) if turns else None), "mean; 1 on a line, 0 on a random walk")
    grid.add_row("recent speed", _number(movement.recent_speed(horizon)), "net movement over the last horizon, in mean steps of the path")
    return _titled("Movement of all weights", grid)


def _energy(inspection: Inspection, groups: Sequence[GroupSummary]) -> RenderableType:
    table = _table("group", "modules")
    for column in ("E1", "random", "floor", "sigma1^2", "random", "eff. rank", "random", "stable rank"):
        table.add_column(column, justify="right")
    for group in groups:
        table.add_row(
            group.name,
            str(group.modules),
            _number(group.energy["nuclear"][-1], 3),
            _number(group.random["nuclear"][-1], 3),
            _number(group.floor[-1], 3),
            _number(group.energy["frobenius"][-1], 3),
            _number(group.random["frobenius"][-1], 3),
            _number(group.energy["effective_rank"][-1], 1),
            _number(group.random["effective_rank"][-1], 1),
            _number(group.energy["stable_rank"][-1], 1),
            style="bold" if group.name == ALL else None,
        )
    kind = "factors" if inspection.kind == "adapter" else "matrices"
    caption = (
        f"E1 = sigma1 / sum of sigma; sigma1^2 as a share of |D|_F^2; floor: 1/rank.\n"
        f"random: {kind} of normal numbers, same shape and rank.\n"
        "eff. rank: exp of the entropy of sigma / sum of sigma; stable rank: |D|_F^2 / sigma1^2."
    )
    if any(value is None for value in groups[-1].energy["nuclear"]) and inspection.kind == "dense":
        caption += f"\n-: needs all singular values, computed up to {SPECTRUM_LIMIT} rows or columns; --full-spectrum computes them all."
    return _titled(f"Rank-1 energy of W - W_0 at step {inspection.steps[-1]}, mean over modules", table, caption)


def _directions(groups: Sequence[GroupSummary]) -> RenderableType:
    table = _table("group")
    for column in ("G: u", "v", "u v^T", "L: u", "v", "u v^T", "raw sign flips"):
        table.add_column(column, justify="right")
    for group in groups:
        cells = [
            _number(getattr(typical(angles), part, None), 1) for angles in (group.global_, group.local) for part in ("u", "v", "matrix")
        ]
        share = f"{group.flips} of {group.pairs}" if group.pairs else "-"
        table.add_row(group.name, *cells, share, style="bold" if group.name == ALL else None)
    caption = (
        "G = W_t - W_0, L = W_t - W_(t-1); median over modules and checkpoints. 90 degrees: unrelated.\n"
        "raw sign flips: successive triplets of G whose signs disagree before alignment."
    )
    return _titled("Angles between successive top singular directions, degrees", table, caption)


def _linearity(inspection: Inspection, groups: Sequence[GroupSummary]) -> RenderableType:
    table = _table("group")
    for column in ("< -0.5", "-0.5..0", "0..0.5", "0.5..1", "median", f"in-sample > {STRONG}", "median"):
        table.add_column(column, justify="right")
    rows = [(group.name, group.ahead, group.within) for group in groups]
    for name, ahead, within in [*rows, ("random walk", inspection.walk_ahead, inspection.walk_within)]:
        style = {ALL: "bold", "random walk": "dim"}.get(name)
        table.add_row(
            name, *_shares(ahead), _percent(within.strong if within else None), _number(within.median if within else None), style=style
        )
    if inspection.num_train is None:
        ahead = "prediction needs 4 checkpoints or more"
    else:
        ahead = f"line through checkpoints 1..{inspection.num_train}, R^2 on the rest, entries of the rank-1 delta"
    sampled = (
        f" Modules of more than {ENTRIES:,} entries: a fixed random {ENTRIES:,}." if not all(m.exact for m in inspection.modules) else ""
    )
    caption = f"left: {ahead}.\nright: line through all checkpoints, entries of the weights.{sampled}"
    return _titled("R^2 of a straight line in the training step, shares of entries", table, caption)


def _methods(inspection: Inspection) -> RenderableType:
    results = inspection.backtest
    table = _table("method")
    for column in ("origins", "as claimed", "mean", "tuned", "best alpha", "error there"):
        table.add_column(column, justify="right")
    tried = sorted((m for m in results.methods if m.scores), key=lambda m: _rank(m, results.horizon))
    for method in tried:
        best = method.best_alpha
        assert best is not None
        forecast = method.forecast
        table.add_row(
            method.name,
            str(len({score.origin for score in method.scores})),
            _number(method.forecast_error, 3) if forecast is not None else "no claim",
            _number(method.mean_error(forecast) if forecast is not None else None, 3),
            _number(method.tuned_error(results.horizon), 3),
            f"{best:g}",
            _number(method.error(best), 3),
            style={inspection.verdict.method: "bold", UNIVERSAL: "dim"}.get(method.name),
        )
    skipped = [Text(f"{m.name}: {_clean(m.skipped)}", style="dim") for m in results.methods if m.skipped is not None]
    what = (
        f"the last {results.horizon} hidden from checkpoint{'s' if len(results.origins) > 1 else ''} {', '.join(map(str, results.origins))}"
    )
    if not tried:
        return _titled("Back test", Group(*(skipped or [Text("nothing to try", style="dim")])))
    caption = (
        "|W_hat - W_c| / |W_c - W_o|, all weights as one vector, median over origins; staying put has 1.\n"
        "as claimed: at the alpha that the method says is one horizon; mean: the same, mean over modules;\n"
        "tuned: alpha chosen on what each origin had already seen; best alpha: chosen in hindsight."
    )
    return _titled(f"Back test: {what}", Group(table, *skipped), caption)


def _by_group(inspection: Inspection) -> RenderableType | None:
    """The four best methods by kind of matrix."""
    results = inspection.backtest
    tried = sorted((m for m in results.methods if m.scores and m.name != UNIVERSAL), key=lambda m: _rank(m, results.horizon))[:4]
    if not tried:
        return None
    table = _table("method", "alpha")
    found = [(m, alpha, m.groups(alpha)) for m in tried if (alpha := m.forecast if m.forecast is not None else m.best_alpha) is not None]
    for group in found[0][2]:
        table.add_column(group, justify="right")
    for method, alpha, errors in found:
        table.add_row(method.name, f"{alpha:g}", *(_number(error) for error in errors.values()))
    return _titled("Back test by kind of matrix, mean error of its modules", table)


def _rank(method: MethodBacktest, horizon: int) -> tuple[bool, float]:
    """By honest error; methods with an error in hindsight alone come last."""
    known = [error for error in (method.forecast_error, method.tuned_error(horizon)) if error is not None]
    return (False, min(known)) if known else (True, min(method.error(alpha) for alpha in method.alphas))


def _shares(found: Linearity | None) -> list[str]:
    return ["-"] * 5 if found is None else [*(_percent(share) for share in found.shares), _number(found.median)]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for column in columns:
        first = column in ("group", "method")
        table.add_column(column, justify="left" if first else "right", no_wrap=first)
    return table


def _titled(title: str, content: RenderableType, caption: str = "") -> RenderableType:
    return Group(Text(title, style="bold"), Padding(content, (0, 0, 0, 2), expand=False), *_captions(caption))


def _captions(caption: str) -> list[RenderableType]:
    return [Text(f"  {line}", style="dim") for line in caption.splitlines()]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _clean(text: str | None) -> str:
    return "".join(ch if ch.isprintable() else " " for ch in text or "")
