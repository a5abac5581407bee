"""Scales, ticks and the frame of a chart. Lengths are units of the SVG's view box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from next_ray.report.page.markup import Markup, joined, tag

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 22, 42

STYLES = 6
"""Colours, dash patterns and shapes there are; what is more than these begins anew."""


@dataclass(frozen=True)
class Scale:
    """From numbers in `low..high` to places `start..end`, both ends included."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a number, to a tenth."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers within `low..high`, about as many as wanted, apart by 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [0.0 if n == 0 else n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def around(values: Sequence[float], zero: bool = False, least: float = 0.0) -> tuple[float, float]:
    """A range that holds all values with some air, from 0 on where `zero`, and at least `least` wide."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    low = min(low, 0.0) if zero else low
    air = max(0.06 * (high - low), (least - (high - low)) / 2, abs(high) * 1e-3, 1e-9)
    return (low if zero and low == 0.0 else low - air), high + air


def number(value: float) -> str:
    """A number as people write it, three digits that count."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-3 else f"{value:.1e}"


def whole_percent(value: float) -> str:
    """A share as an axis shows it."""
    return f"{100 * value:.3g} %"


def text(x: float, y: float, content: object, class_: str = "t", **attributes: object) -> Markup:
    """Words at a place; of class `e` they end there, of class `m` they are centred."""
    return tag("text", content, x=round(x, 1), y=round(y, 1), class_=class_, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=round(x1, 1), y1=round(y1, 1), x2=round(x2, 1), y2=round(y2, 1), class_=class_)


def frame(
    x: Scale, y: Scale, x_label: str, y_label: str, show_x: Callable[[float], str], show_y: Callable[[float], str], wanted: int = 6
) -> Markup:
    """Grid, ticks and labels; the label of y stands above its axis, where it can be read without turning the head."""
    rows = [joined(line(x.start, y(v), x.end, y(v), "g"), text(x.start - 6, y(v) + 4, show_y(v), "t e")) for v in ticks(y.low, y.high)]
    columns = [
        joined(line(x(v), y.start, x(v), y.start + 4, "ax"), text(x(v), y.start + 17, show_x(v), "t m"))
        for v in ticks(x.low, x.high, wanted)
    ]
    base = line(x.start, y.start, x.end, y.start, "ax")
    return joined(*rows, *columns, base, text(x.end, y.start + 34, x_label, "t e"), text(4, 13, y_label, "t"))


def shape(style: int, x: float, y: float, size: float = 3.6, class_: str = "p", title: str | None = None) -> Markup:
    """The mark of a style, so that series differ without their colour: disc, square, triangle, diamond, triangle down, cross."""
    note = tag("title", title) if title else None
    class_ = f"{class_} s{style % STYLES}"
    s = size
    if style % STYLES == 0:
        return tag("circle", note, cx=x, cy=y, r=s, class_=class_)
    corners = {
        1: ((-s, -s), (s, -s), (s, s), (-s, s)),
        2: ((0, -s * 1.25), (s * 1.15, s), (-s * 1.15, s)),
        3: ((0, -s * 1.35), (s * 1.35, 0), (0, s * 1.35), (-s * 1.35, 0)),
        4: ((0, s * 1.25), (s * 1.15, -s), (-s * 1.15, -s)),
        5: ((-s, -s / 3), (-s / 3, -s / 3), (-s / 3, -s), (s / 3, -s), (s / 3, -s / 3), (s, -s / 3), (s, s / 3), (s / 3, s / 3),
            (s / 3, s), (-s / 3, s), (-s / 3, s / 3), (-s, s / 3)),
    }[style % STYLES]  # fmt: skip
    return tag("polygon", note, points=" ".join(f"{round(x + dx, 1)},{round(y + dy, 1)}" for dx, dy in corners), class_=class_)


def svg(name: str, title: str, description: str, *content: object, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """A picture with a name and a description for those who cannot see it."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-desc"),
        *content,
        viewBox=f"0 0 {round(width, 1)} {round(height, 1)}",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
    )
