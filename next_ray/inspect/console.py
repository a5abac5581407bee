"""An inspection for people: tables and the verdict, 100 columns wide at most, whole at 80, legible without colour."""

from __future__ import annotations

import os
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
from next_ray.inspect.movement import walk_straightness
from next_ray.inspect.summaries import ALL, GroupSummary, summaries, typical
from next_ray.inspect.verdict import UNIVERSAL

WIDTH = 100


def make_console() -> Console:
    """On stdout; where there is no terminal as wide as COLUMNS says, or 100 columns."""
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=WIDTH)


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
    walk = walk_straightness(inspection.steps)
    grid.add_row("straightness of the path", _number(movement.straightness), f"1 on a line, {walk:.2f} on a random walk")
    grid.add_row("cosine of successive steps", _number(sum(turns) / len(turns) if turns else None), "mean; 1 on a line, 0 on a random walk")
    grid.add_row("recent speed", _number(movement.recent_speed(horizon, inspection.steps)), "net, last horizon over whole path, a step")
    return _titled("Movement of all weights", grid)


def _energy(inspection: Inspection, groups: Sequence[GroupSummary]) -> RenderableType:
    table = _table("group")
    for column in ("modules", "E1", "random", "floor", "sigma1^2", "random", "eff.\nrank", "random", "stable\nrank"):
        _number_column(table, column)
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
        "eff. rank: exp(entropy of sigma / sum); stable rank: |D|_F^2 / sigma1^2."
    )
    if any(value is None for value in groups[-1].energy["nuclear"]) and inspection.kind == "dense":
        caption += f"\n-: needs all singular values: up to {SPECTRUM_LIMIT:,} rows or columns, or --full-spectrum."
    return _titled(f"Rank-1 energy of W - W_0 at step {inspection.steps[-1]}, mean over modules", table, caption)


def _directions(groups: Sequence[GroupSummary]) -> RenderableType:
    table = _table("group")
    for column in ("G: u", "v", "u v^T", "L: u", "v", "u v^T", "raw sign\nflips"):
        _number_column(table, column)
    for group in groups:
        cells = [
            _number(getattr(typical(angles), part, None), 1) for angles in (group.global_, group.local) for part in ("u", "v", "matrix")
        ]
        share = f"{group.flips} of {group.pairs}" if group.pairs else "-"
        table.add_row(group.name, *cells, share, style="bold" if group.name == ALL else None)
    caption = (
        "G = W_t - W_0, L = W_t - W_(t-1); median over modules, then over checkpoints.\n"
        "90: unrelated; raw sign flips: successive triplets of G whose signs disagree."
    )
    return _titled("Angles between successive top singular directions, degrees", table, caption)


def _linearity(inspection: Inspection, groups: Sequence[GroupSummary]) -> RenderableType:
    table = _table("group")
    for column in ("ahead:\n< -0.5", "-0.5..0", "0..0.5", "0.5..1", "pooled", f"in sample:\n> {STRONG}", "pooled"):
        _number_column(table, column)
    rows = [(group.name, group.ahead, group.within) for group in groups]
    for name, ahead, within in [*rows, ("random walk", inspection.walk_ahead, inspection.walk_within)]:
        style = {ALL: "bold", "random walk": "dim"}.get(name)
        table.add_row(
            name, *_shares(ahead), _percent(within.strong if within else None), _number(within.pooled if within else None), style=style
        )
    if inspection.num_train is None:
        ahead = "prediction needs 4 checkpoints or more"
    else:
        ahead = f"line through checkpoints 1..{inspection.num_train}, R^2 on the rest; of sigma1 u v^T"
    sampled = (
        f"\nModules of more than {ENTRIES:,} entries: a random sample of that many." if not all(m.exact for m in inspection.modules) else ""
    )
    caption = (
        f"ahead: {ahead}.\nin sample: line through all checkpoints, entries of the weights.\n"
        f"pooled: 1 - SSE/SST with sums over all entries.{sampled}"
    )
    return _titled("R^2 of a straight line in the training step, shares of entries", table, caption)


def _methods(inspection: Inspection) -> RenderableType:
    results = inspection.backtest
    table = _table("method")
    for column in ("origins", "as\nclaimed", "tuned\norigins", "as\nclaimed", "tuned", "best\nalpha", "error\nthere"):
        _number_column(table, column)
    tried = sorted((m for m in results.methods if m.scores), key=_rank)
    for method in tried:
        style = {inspection.verdict.method: "bold", UNIVERSAL: "dim"}.get(method.name)
        table.add_row(method.name, *_errors(method, results.horizon), style=style)
    skipped = [Text(f"{m.name}: {_clean(m.skipped)}", style="dim") for m in results.methods if m.skipped is not None]
    if not tried:
        return _titled("Back test", Group(*(skipped or [Text("nothing to try", style="dim")])))
    one = len(results.origins) == 1
    what = f"checkpoint{'' if one else 's'} {', '.join(map(str, results.origins))} foretell{'s' if one else ''} {results.horizon} ahead"
    caption = (
        "|W_hat - W_c| / |W_c - W_o| of all weights, median over origins; no-op: 1.\n"
        "as claimed: at the alpha that the method says is one horizon.\n"
        "tuned: alpha chosen on what an origin had seen, beside the claim there.\n"
        "best alpha: chosen in hindsight, so its error flatters."
    )
    return _titled(f"Back test: {what}", Group(table, *skipped), caption)


def _errors(method: MethodBacktest, horizon: int) -> list[str]:
    best, forecast, tuned = method.best_alpha, method.forecast, method.tuned(horizon)
    assert best is not None
    return [
        str(len({score.origin for score in method.scores})),
        _number(method.forecast_error, 3) if forecast is not None else "no claim",
        str(len(tuned)) if tuned else "-",
        _number(method.claimed_where_tuned(horizon), 3),
        _number(method.tuned_error(horizon), 3),
        f"{best:g}",
        _number(method.error(best), 3),
    ]


def _by_group(inspection: Inspection) -> RenderableType | None:
    """The four best methods by kind of matrix."""
    tried = sorted((m for m in inspection.backtest.methods if m.scores and m.name != UNIVERSAL), key=_rank)[:4]
    if not tried:
        return None
    table, columns = _table("group"), list[dict[str, float | None]]()
    for method in tried:
        alpha = method.forecast if method.forecast is not None else method.best_alpha
        assert alpha is not None
        _number_column(table, f"{method.name}\nalpha {alpha:g}")
        columns.append(method.groups(alpha))
    for group in columns[0]:
        table.add_row(group, *(_number(errors[group]) for errors in columns))
    caption = "mean over modules, median over origins"
    if any(method.forecast is None for method in tried):
        caption += "; unclaimed alphas in hindsight"
    return _titled("Back test by kind of matrix", table, caption)


def _rank(method: MethodBacktest) -> tuple[bool, float]:
    """By the error as claimed; methods with an error in hindsight alone come last."""
    error = method.forecast_error
    return (False, error) if error is not None else (True, min(method.error(alpha) for alpha in method.alphas))


def _shares(found: Linearity | None) -> list[str]:
    return ["-"] * 5 if found is None else [*(_percent(share) for share in found.shares), _number(found.pooled)]


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    table.add_column(first, overflow="fold", vertical="bottom")
    return table


def _number_column(table: Table, heading: str) -> None:
    """Never narrower than its numbers: where it is tight, the names of the first column are folded."""
    table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")


def _titled(title: str, content: RenderableType, caption: str = "") -> RenderableType:
    return Group(Text(title, style="bold"), Padding(content, (0, 0, 0, 2), expand=False), *_captions(caption))


def _captions(caption: str) -> list[RenderableType]:
    return [Padding(Text(line, style="dim"), (0, 0, 0, 2), expand=False) for line in caption.splitlines()]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _clean(text: str | None) -> str:
    return "".join(ch if ch.isprintable() else " " for ch in text or "")
