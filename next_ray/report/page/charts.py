"""Charts from numbers: lines, bars, stacked shares. Every series has a colour, a dash pattern and a shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from next_ray.report.page.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    STYLES,
    TOP,
    WIDTH,
    Scale,
    around,
    frame,
    line,
    number,
    shape,
    svg,
    text,
)
from next_ray.report.page.markup import Markup, joined, tag

Show = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        name: for the key.
        points: (x, y), by x.
        style: number of colour, dash pattern and shape.
        ends: the interval of each y, [(low, high)], or nothing.
        joined: draw the line.
        marked: draw the shapes.
        kind: further classes of the line: `thin`, `ref dash`, `ref dot`.
        titles: what is said of each point, or nothing.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    ends: Sequence[tuple[float, float]] = ()
    joined: bool = True
    marked: bool = False
    kind: str = ""
    titles: Sequence[str] = ()


@dataclass(frozen=True)
class Mark:
    """Something that happened at x: a line from top to bottom with a sign and, where there is room, a word above it."""

    x: float
    sign: str
    word: str


@dataclass(frozen=True)
class Axis:
    """What an axis shows: its label, how numbers are written, and the range where it is given."""

    label: str
    show: Show = number
    range: tuple[float, float] | None = None
    zero: bool = False


def line_chart(
    name: str,
    title: str,
    description: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    marks: Sequence[Mark] = (),
    band: Sequence[tuple[float, float, float]] = (),
) -> Markup:
    """Curves over a common axis; `band` is (x, low, high), filled behind them."""
    xs = [p[0] for one in series for p in one.points] + [mark.x for mark in marks]
    ys = [p[1] for one in series for p in one.points] + [v for one in series for ends in one.ends for v in ends]
    ys += [v for _, *ends in band for v in ends]
    low, high = x.range or (min(xs, default=0.0), max(xs, default=1.0))
    to_x = Scale(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT)
    to_y = Scale(*(y.range or around(ys, y.zero)), HEIGHT - BOTTOM, TOP + (14 if marks else 0))
    content = [frame(to_x, to_y, x.label, y.label, x.show, y.show)]
    content += [_mark(mark, to_x, to_y, with_word=_have_room(marks, to_x)) for mark in marks]
    if band:
        edge = [(to_x(p), to_y(top)) for p, _, top in band] + [(to_x(p), to_y(bottom)) for p, bottom, _ in reversed(band)]
        content.append(tag("polygon", points=_path(edge), class_="band sx"))
    content += [_series(one, to_x, to_y) for one in series]
    return svg(name, title, description, *content)


def bars(
    name: str, title: str, description: str, rows: Sequence[tuple[str, Sequence[float]]], show: Show, letters: Sequence[str]
) -> Markup:
    """Horizontal bars: a row has one bar a run, which begins with the run's letter where there are several."""
    several = len(letters) > 1
    thick = 15 if several else 17
    step = thick * max(len(letters), 1) + 9
    top, left = 8, 132
    most = max((value for _, values in rows for value in values), default=0.0) or 1.0
    to_x = Scale(0.0, most, left, WIDTH - (132 if several else 112))
    content: list[Markup] = []
    for i, (label, values) in enumerate(rows):
        y = top + i * step
        content.append(text(left - 8, y + thick * len(values) / 2 + 4, label, "e"))
        for j, value in enumerate(values):
            place = y + j * thick
            content.append(
                tag("rect", x=left, y=place, width=max(to_x(value) - left, 0.6), height=thick - 2, rx=2, class_=f"f s{j % STYLES}")
            )
            said = f"{letters[j]}  {show(value)}" if several else show(value)
            content.append(text(to_x(value) + 5, place + thick - 4, said, "t"))
    return svg(name, title, description, *content, height=top * 2 + max(len(rows), 1) * step)


def shares(name: str, title: str, description: str, rows: Sequence[tuple[str, Sequence[float]]]) -> Markup:
    """Bars of the same length in parts, from left to right in the order of `share_key`, which stands above them."""
    top, left, thick, step = 6, 118, 17, 22
    width = WIDTH - left - RIGHT
    content = []
    for row, (label, values) in enumerate(rows):
        y, x = top + row * step, float(left)
        content.append(text(left - 8, y + 13, label, "e"))
        for i, value in enumerate(values):
            wide = width * value
            content.append(tag("rect", x=round(x, 1), y=y, width=round(wide, 1), height=thick, class_=f"r{i}"))
            if value >= 0.09:
                content.append(text(x + wide / 2, y + 13, f"{100 * value:.0f}", f"m {'on-light' if i in (1, 2) else 'on-dark'}"))
            x += wide
    return svg(name, title, description, *content, height=top + len(rows) * step + 4)


def key(series: Sequence[Series]) -> Markup:
    """Which curve is which, with a small picture of each."""
    return tag("ul", *(tag("li", _swatch(one), one.name) for one in series if one.name), class_="key")


def share_key(parts: Sequence[str]) -> Markup:
    """What the parts of `shares` are."""
    boxes = [
        tag("svg", tag("rect", x=1, y=1, width=12, height=12, rx=2, class_=f"r{i}"), viewBox="0 0 14 14", aria_hidden="true", class_="box")
        for i in range(len(parts))
    ]
    return tag("ul", *(tag("li", box, part) for box, part in zip(boxes, parts, strict=True)), class_="key")


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` in all."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))]


def _series(one: Series, x: Scale, y: Scale) -> Markup:
    places = [(x(px), y(py)) for px, py in one.points]
    drawn = [tag("polyline", points=_path(places), class_=f"l s{one.style % STYLES} {one.kind}".strip())] if one.joined and places else []
    for (px, _), (low, high) in zip(places, one.ends, strict=False):
        drawn += [line(px, y(low), px, y(high), f"w s{one.style % STYLES}")]
        drawn += [line(px - 3, y(end), px + 3, y(end), f"w s{one.style % STYLES}") for end in (low, high)]
    if one.marked:
        titles = [*one.titles, *[None] * (len(places) - len(one.titles))]
        drawn += [shape(one.style, *place, title=said) for place, said in zip(places, titles, strict=True)]
    return joined(*drawn)


def _have_room(marks: Sequence[Mark], x: Scale) -> bool:
    """Whether words stand apart; else the signs alone do, which the caption explains."""
    places = sorted(x(mark.x) for mark in marks)
    return all(later - earlier > 125 for earlier, later in pairwise(places))


def _mark(mark: Mark, x: Scale, y: Scale, with_word: bool) -> Markup:
    place = x(mark.x)
    right = place > x.end - 100
    said = text(place + (-8 if right else 8), y.end - 3, mark.word, "b e" if right else "b") if with_word else None
    sign = text(place, y.end - 3, mark.sign, "b m")
    return tag("g", tag("title", f"{mark.word}, step {mark.x:g}"), line(place, y.start, place, y.end, "mark"), sign, said)


def _swatch(one: Series) -> Markup:
    drawn = [line(1, 7, 35, 7, f"l s{one.style % STYLES} {one.kind}".strip())] if one.joined else []
    drawn += [shape(one.style, 18, 7, 4)] if one.marked else []
    return tag("svg", *drawn, viewBox="0 0 36 14", aria_hidden="true")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:g},{py:g}" for px, py in points)
