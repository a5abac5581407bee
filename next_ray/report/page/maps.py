"""Pictures that are no curves: a heat map, checkpoints in a plane, the lineage of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from next_ray.report.page.axes import LEFT, RIGHT, WIDTH, Scale, line, svg, text, ticks
from next_ray.report.page.data import Checkpoint
from next_ray.report.page.markup import Markup, joined, tag

BINS = 10
"""Colours of a heat map; class `h0` is the lowest."""

WRITTEN = 320
"""Cells up to this many carry their number."""

MARGIN = 34
PLANE_HEIGHT = 300
LANE = 34


def heat_map(
    name: str, title: str, description: str, rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[int, int], float]
) -> Markup:
    """Cells by row and column, the first row on top; a cell without a value stays empty."""
    low, high = min(values.values()), max(values.values())
    top, left = 46, 40
    tall = 20.0 if len(rows) <= 12 else max(8.0, 420 / len(rows))
    wide = (WIDTH - left - RIGHT) / len(columns)
    written = len(values) <= WRITTEN and tall >= 12 and wide >= 28
    content = [_scale(low, high, left)]
    content += [text(left + (i + 0.5) * wide, top - 5, column, "m") for i, column in enumerate(columns)]
    every = max(1, -(-len(rows) // 16))
    content += [text(left - 6, top + (i + 0.5) * tall + 4, row, "t e") for i, row in enumerate(rows) if i % every == 0]
    for (row, column), value in values.items():
        bin_ = min(int((value - low) / (high - low) * BINS), BINS - 1) if high > low else BINS // 2
        x, y = left + column * wide, top + row * tall
        note = tag("title", f"layer {rows[row]}, {columns[column]}: {value:.3f}")
        content.append(
            tag("rect", note, x=round(x, 1), y=round(y, 1), width=round(wide - 1, 1), height=round(tall - 1, 1), class_=f"h{bin_}")
        )
        if written:
            content.append(text(x + wide / 2, y + tall / 2 + 4, f"{value:.2f}", f"m {'on-dark' if bin_ < 5 else 'on-light'}"))
    return svg(name, title, description, *content, height=top + len(rows) * tall + 6)


def _scale(low: float, high: float, left: float) -> Markup:
    cells = [tag("rect", x=left + 44 + i * 16, y=5, width=16, height=11, class_=f"h{i}") for i in range(BINS)]
    return joined(text(left + 40, 15, f"{low:.2f}", "t e"), *cells, text(left + 48 + 16 * BINS, 15, f"{high:.2f}", "t"))


def plane_map(
    name: str,
    title: str,
    description: str,
    checkpoints: Sequence[Checkpoint],
    places: Sequence[tuple[float, float]],
    base: tuple[float, float],
) -> Markup:
    """Checkpoints where they lie in a plane, joined as they were trained; jumps are dashed arrows. Both axes have one scale."""
    xs, ys = [p[0] for p in (*places, base)], [p[1] for p in (*places, base)]
    span_x, span_y = max(xs) - min(xs) or 1e-12, max(ys) - min(ys)
    unit = min((WIDTH - 2 * MARGIN) / span_x, (PLANE_HEIGHT - 2 * MARGIN) / (span_y or 1e-12))
    height = round(max(span_y * unit + 2 * MARGIN, 120.0))
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    to = [(round(WIDTH / 2 + (x - middle[0]) * unit, 1), round(height / 2 - (y - middle[1]) * unit, 1)) for x, y in (base, *places)]
    known = {one.id: place for one, place in zip(checkpoints, to[1:], strict=True)}
    content = [_arrow_head(name)]
    before = to[0]
    for one, place in zip(checkpoints, to[1:], strict=True):
        start = known.get(one.parents[0], before) if one.parents else to[0]
        jump = one.kind == "jumped"
        class_ = "l s1 dash" if jump else "l s0 thin solid"
        content.append(
            tag(
                "line", x1=start[0], y1=start[1], x2=place[0], y2=place[1], class_=class_, marker_end=f"url(#{name}-head)" if jump else None
            )
        )
        before = place
    content += [_node(one, *place) for one, place in zip(checkpoints, to[1:], strict=True)]
    content.append(tag("g", tag("title", "base"), tag("path", d=_star(*to[0]), class_="f sx")))
    content.append(_label(to[0], "base"))
    content += [_label(known[one.id], f"step {one.step}") for one in _named(checkpoints)]
    return svg(name, title, description, *content, height=height)


def lineage(name: str, title: str, description: str, checkpoints: Sequence[Checkpoint], last: int) -> Markup:
    """Checkpoints by step, a lane for each trajectory; what was jumped to or gone back to begins the next lane."""
    segments = sorted({one.segment for one in checkpoints})
    to_x = Scale(0, max(last, 1), LEFT - 26, WIDTH - RIGHT - 14)
    lane = {segment: 22 + i * LANE for i, segment in enumerate(segments)}
    at = {one.id: (to_x(one.step), lane[one.segment]) for one in checkpoints}
    content = [_arrow_head(name)]
    for one in checkpoints:
        x, y = at[one.id]
        parents = [parent for parent in one.parents if parent in at]
        jump = one.kind != "trained"
        for px, py in (at[parent] for parent in parents):
            class_ = f"l {'s1 dash' if jump else 's0 solid'}"
            stop = y - 7 if jump and py < y else y
            content.append(tag("line", x1=px, y1=py, x2=x, y2=stop, class_=class_, marker_end=f"url(#{name}-head)" if jump else None))
        if not parents:
            content.append(line(to_x(0), y, x, y, "l s0 solid"))
    content += [_node(one, *at[one.id]) for one in checkpoints]
    bottom = 22 + len(segments) * LANE
    content += [text(to_x(v), bottom + 4, f"{v:g}", "t m") for v in ticks(0, max(last, 1), 6)]
    content.append(text(WIDTH - RIGHT, bottom + 20, "training step", "t e"))
    return svg(name, title, description, *content, height=bottom + 26)


def _named(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The ones worth a word: both ends of jumps, returns, and the last."""
    from_ = {parent for one in checkpoints if one.kind == "jumped" for parent in one.parents}
    return [one for one in checkpoints if one.kind == "reverted" or one.id in from_ or one is checkpoints[-1]][-4:]


def _node(one: Checkpoint, x: float, y: float) -> Markup:
    """A disc where it was trained, a diamond where it was jumped to, a hollow square where a jump was taken back."""
    note = tag("title", f"{one.kind}, step {one.step}")
    if one.kind == "jumped":
        return tag("polygon", note, points=f"{x},{y - 7} {x + 7},{y} {x},{y + 7} {x - 7},{y}", class_="p s1")
    if one.kind == "reverted":
        return tag("rect", note, x=x - 5, y=y - 5, width=10, height=10, class_="hollow s3")
    return tag("circle", note, cx=x, cy=y, r=3.2, class_="p s0")


def _arrow_head(name: str) -> Markup:
    head = tag("path", d="M0,0L8,4L0,8z", class_="f s1")
    return tag(
        "defs", tag("marker", head, id=f"{name}-head", viewBox="0 0 8 8", refX=6, refY=4, markerWidth=5, markerHeight=5, orient="auto")
    )


def _label(place: tuple[float, float], words: str) -> Markup:
    right = place[0] > WIDTH * 0.72
    return text(place[0] + (8 if right else -4), place[1] - 13, words, "e" if right else "")


def _star(x: float, y: float, size: float = 7.0) -> str:
    inner = size * 0.38
    points = ((0, -size), (inner, -inner), (size, 0), (inner, inner), (0, size), (-inner, inner), (-size, 0), (-inner, -inner))
    return "M" + "L".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in points) + "z"
