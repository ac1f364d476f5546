"""Plots as SVG, for a light page and for a dark one."""

import io
from collections.abc import Sequence
from statistics import linear_regression, median
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from loadtests.measure import PAGE_ITEMS, Point
from loadtests.profiles import Recording, Sample
from loadtests.report import Figures
from loadtests.verdict import IMPORTERS

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")

_INK = {"light": "#1f2328", "dark": "#e6edf3"}
_FAINT = {"light": "#d0d7de", "dark": "#30363d"}
COLORS: dict[Theme, list[str]] = {
    "light": ["#0969da", "#bf3989", "#9a6700", "#1a7f37", "#8250df", "#57606a"],
    "dark": ["#58a6ff", "#f778ba", "#d29922", "#3fb950", "#bc8cff", "#8b949e"],
}


def figure(theme: Theme, width: float, height: float, rows: int = 1) -> tuple[Figure, list[Any]]:
    """A figure with `rows` plots below each other, without a background of its own."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "clerk-feed", "font.family": "sans-serif"})
    drawn = Figure(figsize=(width, height), layout="constrained")
    drawn.patch.set_alpha(0)
    axes = list(drawn.subplots(rows, 1, squeeze=False)[:, 0])
    for axis in axes:
        axis.patch.set_alpha(0)
        axis.grid(visible=True, color=_FAINT[theme], linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_prop_cycle(color=COLORS[theme])
        axis.tick_params(colors=_INK[theme], which="both")
        for name, spine in axis.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(_FAINT[theme])
        for label in (axis.xaxis.label, axis.yaxis.label, axis.title):
            label.set_color(_INK[theme])
    return drawn, axes


def legend(axis: Any, theme: Theme, **options: Any) -> None:
    axis.legend(frameon=False, labelcolor=_INK[theme], fontsize="small", **options)


def svg(drawn: Figure) -> str:
    """The figure as SVG, the same for the same figures."""
    file = io.StringIO()
    drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def load(title: str, recording: Recording, samples: Sequence[Sample], theme: Theme) -> Figure:
    """A load run over its time: latency by who asked, items a second, and what the service needed."""
    drawn, (latency, items, memory) = figure(theme, 9, 7.2, 3)
    kinds = sorted({request.kind for request in recording.requests}, key=lambda kind: (kind not in IMPORTERS, kind))
    for kind in kinds:
        if kind == "SlowReader":  # its requests last as long as it likes
            continue
        mine = [request for request in recording.requests if request.kind == kind]
        good = [request for request in mine if request.status == 200 or kind not in IMPORTERS]
        size = 9 if kind in IMPORTERS else 4
        latency.scatter(
            [r.at for r in good], [r.seconds * 1000 for r in good], s=size, alpha=0.6, linewidths=0, label=_named(kind)
        )
        failed = [request for request in mine if kind in IMPORTERS and request.status != 200]
        if failed:
            latency.scatter(
                [r.at for r in failed], [r.seconds * 1000 for r in failed], s=24, marker="x", label="failed requests"
            )
    latency.set_yscale("log")
    latency.set_ylabel("ms a request")
    latency.set_title(title, loc="left", fontsize="medium")
    legend(latency, theme, loc="upper right")

    importers = [request for request in recording.requests if request.kind in IMPORTERS and request.status == 200]
    end = max((request.at + request.seconds for request in recording.requests), default=1.0)
    step = max(end / 60, 0.5)
    bins = [0.0] * (int(end / step) + 1)
    for request in importers:
        bins[min(int((request.at + request.seconds) / step), len(bins) - 1)] += request.items / step
    items.plot([(number + 0.5) * step for number in range(len(bins))], bins, drawstyle="steps-mid")
    items.set_ylim(bottom=0)
    items.set_ylabel("items/s")
    items.set_title("Items that reached importers", loc="left", fontsize="medium")

    memory.plot([s.at for s in samples], [s.memory for s in samples], label="memory, MB")
    memory.set_ylim(bottom=0)
    memory.set_ylabel("MB")
    memory.set_xlabel("seconds since the run began")
    memory.set_title("The service", loc="left", fontsize="medium")
    shares = [
        (later.at, (later.cpu - earlier.cpu) / (later.at - earlier.at) * 100)
        for earlier, later in zip(samples, samples[4:], strict=False)
        if later.at > earlier.at
    ]
    cpu = memory.twinx()
    cpu.plot([at for at, _ in shares], [share for _, share in shares], color=COLORS[theme][2], label="CPU, % of one")
    cpu.set_ylim(bottom=0)
    cpu.set_ylabel("% of one CPU", color=_INK[theme])
    cpu.tick_params(colors=_INK[theme])
    for spine in cpu.spines.values():
        spine.set_visible(False)
    lines = [*memory.get_lines(), *cpu.get_lines()]
    legend(memory, theme, handles=lines, loc="lower right")
    for axis in (latency, items, memory):
        axis.set_xlim(0, max((r.at + r.seconds for r in recording.requests if r.kind != "SlowReader"), default=end))
    return drawn


def _named(kind: str) -> str:
    names = {"Importer": "importer", "DeltaImporter": "importer, deltas", "WrongToken": "wrong tokens, refused"}
    return names.get(kind, kind)


def latency_by_offset(figures: Figures, theme: Theme) -> Figure:
    """What a page costs, by how far into the catalog it lies."""
    drawn, [axis] = figure(theme, 8, 3.8)
    for name, points in _named_points(figures).items():
        axis.plot([point.offset for point in points], [point.ms for point in points], marker="o", ms=4, label=name)
    axis.set_yscale("log")
    axis.set_title(f"In a catalog of {figures.items:,} products", loc="left", fontsize="medium")
    axis.set_xlabel("offset of the page")
    axis.set_ylabel("ms for a page of 1000")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    legend(axis, theme, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def sync_by_size(figures: Figures, theme: Theme) -> Figure:
    """What a whole sync takes, by the size of the catalog: measured as far as pages were asked for, then projected."""
    drawn, [axis] = figure(theme, 8, 3.8)
    prefixes = {"clerk-feed": figures.walk.prefixes} if figures.walk else {}
    prefixes |= {name: other.prefixes for name, other in figures.others.items()}
    points = _named_points(figures)
    for color, (name, measured) in zip(COLORS[theme], prefixes.items(), strict=False):
        ran = measured[-1][0]
        known = [(items, seconds) for items, seconds in measured if items >= SIZES[0]] or [measured[-1]]
        axis.plot(*zip(*known, strict=True), color=color, linewidth=2.2, label=name)
        overhead = measured[-1][1] / sum_of(points[name], ran)
        beyond = [known[-1]] + [(size, sum_of(points[name], size) * overhead) for size in SIZES if size > ran]
        axis.plot(*zip(*beyond, strict=True), color=color, linewidth=1.4, linestyle=(0, (2, 2)))
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title(f"Measured in a catalog of {figures.items:,} products", loc="left", fontsize="medium")
    axis.set_xlim(SIZES[0], SIZES[-1])
    axis.set_xlabel("products, page by page at limit 1000; dotted: projected from the latencies measured")
    ticks = {"1 s": 1, "10 s": 10, "1 min": 60, "10 min": 600, "1 h": 3600, "6 h": 21_600, "1 day": 86_400}
    axis.set_yticks(list(ticks.values()), list(ticks))
    axis.minorticks_off()
    axis.xaxis.set_major_formatter("{x:,.0f}")
    legend(axis, theme, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


SIZES = [round(10 ** (exponent / 8)) for exponent in range(32, 57)]
"""Catalogs from 10 thousand to 10 million."""


def sum_of(points: Sequence[Point], items: int) -> float:
    """Seconds that the pages of so many items take, if a page's latency goes straight on from what was measured."""
    pages = -(-items // PAGE_ITEMS)
    offsets = [point.offset for point in points]
    if len(set(offsets)) < 2:
        return pages * points[0].ms / 1000
    slope, base = linear_regression(offsets, [point.ms for point in points])
    if slope < 0 or base < 0:  # a flat line with noise
        slope, base = 0.0, median(point.ms for point in points)
    return (pages * base + slope * PAGE_ITEMS * pages * (pages - 1) / 2) / 1000


def _named_points(figures: Figures) -> dict[str, Sequence[Point]]:
    found: dict[str, Sequence[Point]] = {"clerk-feed": figures.walk.points} if figures.walk else {}
    return found | {name: other.points for name, other in figures.others.items()}
