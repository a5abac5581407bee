"""PromQL over the catalogue's metrics. Names that are not in it are refused, so no panel or alert asks for what nobody exports."""

from __future__ import annotations

from next_ray.dashboard.catalogue import BY_NAME

CHOSEN = 'run=~"$run"'
"""The runs that are chosen in the dashboard; alerts look at all."""


def series(name: str, where: str = CHOSEN) -> str:
    """Selector of `next_ray_<name>`."""
    return f"{BY_NAME[f'next_ray_{name}'].exported}{{{where}}}" if where else BY_NAME[f"next_ray_{name}"].exported


def latest(name: str, *by: str, where: str = CHOSEN) -> str:
    """The value of a gauge, one for each run and tag; of a driver that ended and its successor, the larger one."""
    return f"max by ({', '.join(('run', *by))}) ({series(name, where)})"


def total(name: str, *by: str, where: str = CHOSEN) -> str:
    """The value of a counter, summed over processes."""
    return f"sum by ({', '.join(('run', *by))}) ({series(name, where)})"


def rate(name: str, *by: str, window: str = "$__rate_interval") -> str:
    """A counter's growth in a second."""
    return f"sum by ({', '.join(('run', *by))}) (rate({series(name)}[{window}]))"


def or_none(query: str) -> str:
    """0 where nothing has been counted: a run without faults shows that it has none."""
    return f"{query} or vector(0)"


def grown(name: str, window: str, *by: str, where: str = "") -> str:
    """How much a counter grew in a window, by run.

    `increase` does not see the first event of a kind, whose series begins with it; a difference of sums does. A driver that starts anew
    begins at 0, so what it took over is not counted twice.
    """
    labels = ", ".join(("run", *by))
    now = f"sum by ({labels}) ({series(name, where)})"
    before = f"sum by ({labels}) ({series(name, where)} offset {window})"
    return f"clamp_min({now} - ({before} or 0 * {now}), 0)"
