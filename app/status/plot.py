"""Plots as SVG, made here: fluid in width, of one text size, readable without colours.

Horizontal places are percentages, so that nothing is stretched: an axis of fixed width stands beside an area that takes
the rest. What a point means is in its title; the table of the same walks is what a screen reader gets.
"""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Literal

import msgspec
from markupsafe import Markup, escape

HEIGHT = 190
_TOP, _BOTTOM = 12, 28
_DAY = 86_400.0

Shape = Literal["good", "bad", "open"]


class Point(msgspec.Struct, frozen=True):
    """One walk in a plot: when (unix seconds), how much, what became of it, and what a person reads of it."""

    when: float
    value: float
    shape: Shape
    title: str


class Guide(msgspec.Struct, frozen=True):
    """A value worth knowing, drawn as a dashed line where it lies in the plot."""

    value: float
    text: str


def plot(
    points: Sequence[Point],
    *,
    label: str,
    ticks: Callable[[float], list[tuple[float, str]]],
    guides: Sequence[Guide] = (),
) -> Markup:
    """A plot over time, oldest point first. `ticks` answers the marks of an axis that must reach a value."""
    marks = ticks(max((point.value for point in points), default=0.0))
    top = marks[-1][0] or 1.0
    first, last = points[0].when, points[-1].when
    span = max(last - first, 1.0)

    def x(when: float) -> str:
        return f"{1.5 + 97 * (when - first) / span if last > first else 50:.2f}%"

    def y(value: float) -> str:
        return f"{HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / top:.1f}"

    axis = [f'<text x="52" y="{y(value)}" dy=".35em" text-anchor="end">{escape(text)}</text>' for value, text in marks]
    area = [f'<line class="grid" x1="0" x2="100%" y1="{y(value)}" y2="{y(value)}"/>' for value, _ in marks]
    for guide in guides:
        if guide.value <= top:
            at = y(guide.value)
            area.append(f'<line class="guide" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
            area.append(f'<text x="100%" y="{at}" dy="-.35em" text-anchor="end">{escape(guide.text)}</text>')
    joined = [point for point in points if point.shape == "good"]
    area += [
        f'<line class="line" x1="{x(a.when)}" y1="{y(a.value)}" x2="{x(b.when)}" y2="{y(b.value)}"/>'
        for a, b in pairwise(joined)
    ]
    area += [_mark(point, x(point.when), y(point.value)) for point in points]
    area += [
        f'<text x="{place}" y="{HEIGHT - 8}" text-anchor="{anchor}">{escape(text)}</text>'
        for place, anchor, text in _dates(first, last, x)
    ]
    return Markup(  # noqa: S704 (every text in it is escaped)
        '<div class="plot">'
        f'<svg class="axis" width="58" height="{HEIGHT}" aria-hidden="true">{"".join(axis)}</svg>'
        f'<svg class="area" width="100%" height="{HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{''.join(area)}</svg></div>"
    )


def sparkline(values: Sequence[float], label: str) -> Markup:
    """The course of a number, without axes: stretched to its place."""
    if len(values) < 2:
        return Markup("")
    top = max(values) or 1.0
    step = 100 / (len(values) - 1)
    places = " ".join(f"{number * step:.2f},{29 - 26 * value / top:.2f}" for number, value in enumerate(values))
    return Markup(  # noqa: S704 (every text in it is escaped)
        f'<svg class="spark" viewBox="0 0 100 32" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<polygon points="0,32 {places} 100,32"/><polyline points="{places}"/></svg>'
    )


def _mark(point: Point, x: str, y: str) -> str:
    """A point whose shape tells what its colour tells: a disc, a ring, a cross."""
    title = f"<title>{escape(point.title)}</title>"
    if point.shape == "bad":
        # A square on its corner would need a path, and paths know no percentages: a thick cross of text does not.
        return f'<g class="bad"><circle cx="{x}" cy="{y}" r="7"/><text x="{x}" y="{y}" dy=".36em">×</text>{title}</g>'
    radius = "4.5" if point.shape == "open" else "3.5"
    disc, reach = f'<circle cx="{x}" cy="{y}" r="{radius}"/>', f'<circle class="reach" cx="{x}" cy="{y}" r="10"/>'
    return f'<g class="{point.shape}">{disc}{reach}{title}</g>'


def counts(most: float) -> list[tuple[float, str]]:
    """Marks of an axis of numbers."""
    step = _nice(most / 4)
    step = max(step, 1.0)
    return [(step * n, short(step * n)) for n in range(max(1, math.ceil(most / step)) + 1)]


def durations(most: float) -> list[tuple[float, str]]:
    """Marks of an axis of seconds, in the unit that fits."""
    unit, name = next(((u, n) for u, n in ((3600.0, "h"), (60.0, "min"), (1.0, "s")) if most >= 2 * u), (0.001, "ms"))
    step = _nice(most / unit / 4) if most else 1.0
    if unit > 0.001 and step < 1:
        step = 0.5
    return [(step * n * unit, f"{step * n:g} {name}") for n in range(max(1, math.ceil(most / unit / step)) + 1)]


def short(value: float) -> str:
    """A number in few characters."""
    for size, name in ((1e9, " bn"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def _nice(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(n * power for n in (1.0, 2.0, 2.5, 5.0, 10.0) if n * power >= value * 0.999)


def _dates(first: float, last: float, x: Callable[[float], str]) -> list[tuple[str, str, str]]:
    """Where, anchored how, and what is written below the plot: its ends, and its middle where there is room for it."""
    form = "%-d %b" if last - first > 2 * _DAY else "%-d %b %H:%M"

    def text(when: float) -> str:
        return datetime.fromtimestamp(when, UTC).strftime(form)

    if last <= first:
        return [("50%", "middle", text(first))]
    middle = (first + last) / 2
    return [("0", "start", text(first)), (x(middle), "middle", text(middle)), ("100%", "end", text(last))]
