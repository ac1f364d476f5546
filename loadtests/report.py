"""A run's figures, as a table for people and as JSON, beside the targets of the design."""

import os
import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtests.measure import Baseline, Pages, Small, Start, Stream, Walk
from loadtests.rendered import Rendered, RenderedWalk

_QUIET_WAITS = 0.15
"""The bench alone has at most two processes at work at a time, but for the stream."""
_QUIET_STOLEN = 0.02


class Machine(msgspec.Struct, frozen=True):
    """Where and when the run took place."""

    at: str
    python: str
    postgresql: str
    cpus: int
    load_before: float
    """Load average of the last minute; it remembers what ended a while ago, so cpu_waits is the better word."""
    versions: dict[str, str]
    cpu_waits: float | None = None
    """Share of the run in which some process waited for a CPU; None where the kernel does not count it."""
    stolen: float | None = None
    """Share of the CPUs that the hypervisor gave to other machines meanwhile."""


class Goal(msgspec.Struct, frozen=True):
    """A target of the design and what was measured against it."""

    name: str
    measured: float
    target: float
    unit: str
    at_most: bool
    note: str = ""

    @property
    def reached(self) -> bool:
        return self.measured <= self.target if self.at_most else self.measured >= self.target


class Figures(msgspec.Struct, frozen=True):
    """All of a run. What was not asked for by --only is None."""

    items: int
    machine: Machine
    walk: Walk | None = None
    baseline: Baseline | None = None
    mapped: Baseline | None = None
    draft: Baseline | None = None
    django: Baseline | None = None
    datasette: Baseline | None = None
    streams: tuple[Stream, ...] = ()
    small: Small | None = None
    start: Start | None = None
    rendered: Rendered | None = None

    @property
    def others(self) -> dict[str, Baseline]:
        """What was measured beside clerk-feed, by name."""
        named = {
            "FastAPI + SQLAlchemy": self.baseline,
            "FastAPI + SQLAlchemy, mapped": self.mapped,
            "FastAPI + SQLAlchemy, no model": self.draft,
            "Django REST framework": self.django,
            "Datasette, by key": self.datasette,
        }
        return {name: measured for name, measured in named.items() if measured}

    def goals(self) -> list[Goal]:
        goals = []
        walk, baseline = self.walk, self.baseline
        if walk and baseline:
            others = {"mapped objects": self.mapped, "dicts without a model": self.draft}
            near = {name: other.start for name, other in others.items() if other}
            far = {name: other.far for name, other in others.items() if other}
            goals.append(_faster("from offset 0", walk.start, baseline.start, near, 10.0))
            goals.append(_faster(f"from offset {walk.far.offset:,}", walk.far, baseline.far, far, 120.0))
        if walk:
            slower = _ratio(walk.last_pages_ms, walk.first_pages_ms)
            goals.append(Goal("last 20 pages against the first 20, medians", slower, 1.2, "x", at_most=True))
        if self.small:
            bare, importer = self.small.bare.pages_per_second, self.small.importer.pages_per_second
            goals.append(
                Goal(
                    "pages/s at limit 25, one connection",
                    bare,
                    900.0,
                    "",
                    at_most=False,
                    note=f"{importer:,.0f} by the importer",
                )
            )
        if self.streams:
            plain, *coded = self.streams
            goals.append(Goal("memory growth while streaming all", plain.growth, 40.0, " MB", at_most=True))
            for stream in coded:
                speed = _ratio(stream.items_per_second, plain.items_per_second)
                name = f"the stream in {stream.coding}, against the uncompressed one"
                note = f"{_ratio(plain.megabytes, stream.megabytes):.1f} times smaller"
                goals.append(Goal(name, speed, 0.5, "x", at_most=False, note=note))
        if start := self.start:
            note = f"{start.best:.2f} at best"
            goals.append(Goal("ready after the start, median", start.median, 1.0, " s", at_most=True, note=note))
        if self.rendered:
            goals += self._rendered_goals(self.rendered)
        return goals

    def _rendered_goals(self, rendered: Rendered) -> list[Goal]:
        copy, importer = rendered.copy_items_per_second, rendered.importer
        goals = [
            Goal(
                "rendered walk, against COPY",
                _ratio(rendered.walk.pages.items_per_second, copy),
                0.8,
                "x",
                at_most=False,
            )
        ]
        if rendered.stream:
            speed = _ratio(rendered.stream.items_per_second, copy)
            goals.append(Goal("rendered stream, against COPY", speed, 1.0, "x", at_most=False))
        for name, other, target in (
            ("rendered walk, against the columns", self.walk.whole if self.walk else None, 3.0),
            ("rendered walk, against the baseline", self.baseline.start if self.baseline else None, 30.0),
        ):
            if importer and other:
                alone = _ratio(importer.whole.answered_items_per_second, other.answered_items_per_second)
                decoded = _ratio(importer.whole.items_per_second, other.items_per_second)
                note = f"by the answers alone; {decoded:.1f}x with the importer's decoding"
                goals.append(Goal(name, alone, target, "x", at_most=False, note=note))
        return goals + _refresh_goals(rendered)

    def as_data(self) -> dict[str, object]:
        """For JSON, the derived figures included."""
        return {
            "items": self.items,
            "machine": msgspec.to_builtins(self.machine),
            "walk": _data(self.walk),
            "baseline": _data(self.baseline),
            "mapped": _data(self.mapped),
            "draft": _data(self.draft),
            "django": _data(self.django),
            "datasette": _data(self.datasette),
            "streams": [_data(stream) for stream in self.streams],
            "small": _data(self.small),
            "start": _data(self.start),
            "rendered": _data(self.rendered),
            "goals": [{**msgspec.to_builtins(goal), "reached": goal.reached} for goal in self.goals()],
        }


def _refresh_goals(rendered: Rendered) -> list[Goal]:
    refreshing = rendered.refreshing
    slower = _ratio(refreshing.changed_seconds, refreshing.copy_seconds)
    grown = (refreshing.bytes_after - refreshing.bytes_before) / 1e6
    return [
        Goal("refresh with 1 % changed, against COPY of row_to_json", slower, 1.6, "x", at_most=True),
        Goal(
            f"growth of the tables by {len(refreshing.unchanged_seconds)} refreshes without change",
            grown, 0.0, " MB", at_most=True,
        ),
    ]  # fmt: skip


def _faster(where: str, ours: Pages, baseline: Pages, slower: dict[str, Pages], target: float) -> Goal:
    alone = _ratio(ours.answered_items_per_second, baseline.answered_items_per_second)
    note = f"{alone:.1f}x by the answers alone"
    for name, other in slower.items():
        note += f"; {_ratio(ours.items_per_second, other.items_per_second):.1f}x against {name}"
    speed = _ratio(ours.items_per_second, baseline.items_per_second)
    return Goal(f"items/s {where}, against the baseline", speed, target, "x", at_most=False, note=note)


def xl_goals(rendered: Rendered) -> list[Goal]:
    """The targets at ten million items."""
    walk = rendered.walk
    return [
        Goal("the walk", walk.pages.seconds, 60.0, " s", at_most=True),
        Goal("last 20 pages against the first 20, medians", _ratio(walk.last_pages_ms, walk.first_pages_ms), 1.2, "x",
             at_most=True),
        Goal("memory growth by the walk", walk.growth, 40.0, " MB", at_most=True),
        *_refresh_goals(rendered),
    ]  # fmt: skip


def machine(postgresql: str) -> Machine:
    packages = ["clerk-feed", "hypercorn", "asyncpg", "msgspec", "uvloop", "fastapi", "sqlalchemy", "uvicorn"]
    packages += ["django", "djangorestframework", "gunicorn", "psycopg", "datasette"]
    return Machine(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        postgresql=postgresql,
        cpus=os.cpu_count() or 0,
        load_before=os.getloadavg()[0],
        versions={package: version(package) for package in packages},
    )


def cpu_waited() -> float | None:
    """Seconds since the boot in which some process waited for a CPU."""
    try:
        text = Path("/proc/pressure/cpu").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^some .*total=([0-9]+)$", text, re.MULTILINE)
    return int(found[1]) / 1e6 if found else None


def cpu_ticks() -> tuple[int, int] | None:
    """Stolen and all ticks of all CPUs since the boot."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    ticks = [int(number) for number in first.split()[1:9]]
    return ticks[7], sum(ticks)


def show(figures: Figures, console: Console) -> None:
    """The tables: what each came to, and the targets."""
    for table in (_walks(figures), _small(figures), _stream(figures)):
        if table.row_count:
            console.print(table)
            console.print()
    if figures.rendered:
        show_rendered(figures.rendered, console)
    if goals := figures.goals():
        console.print(_goals(goals))
        console.print()
    if walk := figures.walk:
        console.print(
            f"Pages of the walk: the first took {walk.first_page_ms:.1f} ms, the last {walk.last_page_ms:.1f} ms;"
            f" medians of the first and the last 20: {walk.first_pages_ms:.2f} and {walk.last_pages_ms:.2f} ms."
        )
    for name, baseline in figures.others.items():
        if not baseline.same_items:
            console.print(f"[bold red]{name}: its first page did not hold what clerk-feed's held.[/]")
    if figures.baseline or figures.django:
        console.print(
            "The baselines were asked for some pages only: by LIMIT and OFFSET each page costs more than the one"
            " before, and a walk of all would take hours."
        )
    for trouble in troubles(figures.machine):
        console.print(f"[bold]{trouble}: the figures are too low.[/]")


def troubles(machine: Machine) -> Iterator[str]:
    """What kept the machine from showing what it can."""
    if machine.cpu_waits is not None and machine.cpu_waits > _QUIET_WAITS:
        yield f"Other programs kept the machine busy ({machine.cpu_waits:.0%} of the time one waited for a CPU)"
    elif machine.cpu_waits is None and machine.load_before > 0.5:
        yield f"Other programs kept the machine busy (load {machine.load_before:.2f})"
    if machine.stolen is not None and machine.stolen > _QUIET_STOLEN:
        yield f"The hypervisor took {machine.stolen:.0%} of the CPUs away"


def _walks(figures: Figures) -> Table:
    table = _table(f"{figures.items:,} products, one importer, limit 1000")
    for heading in ("pages", "items/s", "MB/s", "p50 ms", "p99 ms", "items/s, answers alone", "peak MB"):
        table.add_column(heading, justify="right")

    def row(name: str, pages: Pages, peak: str = "") -> None:
        table.add_row(
            name,
            f"{pages.pages:,}",
            f"{pages.items_per_second:,.0f}",
            f"{pages.megabytes_per_second:,.1f}",
            f"{pages.p50_ms:,.2f}",
            f"{pages.p99_ms:,.2f}",
            f"{pages.answered_items_per_second:,.0f}",
            peak,
        )

    if walk := figures.walk:
        row("clerk-feed, " + ("all" if walk.complete else "what the time allowed"), walk.whole, _peak(walk))
        row("  from offset 0", walk.start)
        row(f"  from offset {walk.far.offset:,}", walk.far)
    for name, baseline in figures.others.items():
        row(f"{name}, from offset 0", baseline.start, _peak(baseline))
        row(f"  from offset {baseline.far.offset:,}", baseline.far)
    return table


def _small(figures: Figures) -> Table:
    table = _table("One connection, limit 25")
    for heading in ("pages", "pages/s", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    if figures.small:
        for name, pages in (
            ("clerk-feed, the importer, who decodes", figures.small.importer),
            ("clerk-feed, a bare socket", figures.small.bare),
        ):
            cells = (f"{pages.pages:,}", f"{pages.pages_per_second:,.0f}", f"{pages.p50_ms:.2f}", f"{pages.p99_ms:.2f}")
            table.add_row(name, *cells)
    return table


def _stream(figures: Figures) -> Table:
    table = _table("All items in one answer")
    for heading in ("items", "items/s", "MB/s", "seconds", "peak MB", "growth MB"):
        table.add_column(heading, justify="right")
    for stream in figures.streams:
        table.add_row(
            f"clerk-feed, {stream.coding or 'plain'}" + ("" if stream.complete else ", what the time allowed"),
            f"{stream.items:,}",
            f"{stream.items_per_second:,.0f}",
            f"{stream.megabytes_per_second:,.1f}",
            f"{stream.seconds:.1f}",
            _peak(stream),
            f"{stream.growth:.1f}",
        )
    return table


def show_rendered(rendered: Rendered, console: Console, goals: list[Goal] | None = None) -> None:
    """The table of a rendered feed, and some targets."""
    table = _table(f"{rendered.items:,} products, rendered")
    for heading in ("items/s", "MB/s", "seconds", "p50 ms", "p99 ms", "peak MB"):
        table.add_column(heading, justify="right")
    table.add_row("psql, COPY (SELECT doc …) TO STDOUT", f"{rendered.copy_items_per_second:,.0f}", "",
                  f"{rendered.copy_seconds:.1f}")  # fmt: skip
    walks: list[tuple[str, Pages, RenderedWalk | Walk]]
    walks = [("clerk-feed, limit 1000, a bare socket", rendered.walk.pages, rendered.walk)]
    if rendered.importer:
        walks.append(("clerk-feed, limit 1000, the importer, who decodes", rendered.importer.whole, rendered.importer))
    for name, pages, walk in walks:
        table.add_row(
            name,
            f"{pages.items_per_second:,.0f}",
            f"{pages.megabytes_per_second:,.1f}",
            f"{pages.seconds:.1f}",
            f"{pages.p50_ms:.2f}",
            f"{pages.p99_ms:.2f}",
            f"{walk.before.peak:.0f} → {walk.after.peak:.0f}",
        )
    if stream := rendered.stream:
        table.add_row(
            "clerk-feed, all in one answer",
            f"{stream.items_per_second:,.0f}",
            f"{stream.megabytes_per_second:,.1f}",
            f"{stream.seconds:.1f}",
            "",
            "",
            _peak(stream),
        )
    refreshing = rendered.refreshing
    refreshes = [("psql, COPY (SELECT row_to_json …) TO STDOUT", refreshing.copy_seconds)]
    refreshes.append(("first refresh", refreshing.first_seconds))
    refreshes.append((f"refresh, {refreshing.changed:,} changed", refreshing.changed_seconds))
    refreshes += [("refresh, nothing changed", seconds) for seconds in refreshing.unchanged_seconds]
    for name, seconds in refreshes:
        table.add_row(name, f"{rendered.items / seconds:,.0f}", "", f"{seconds:.1f}")
    console.print(table)
    console.print()
    if goals:
        console.print(_goals(goals))


def _goals(goals: list[Goal]) -> Table:
    table = _table("Targets")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    table.add_column("")
    for goal in goals:
        word = "at most" if goal.at_most else "at least"
        digits = 2 if goal.measured < 10 else 1 if goal.measured < 100 else 0
        table.add_row(
            goal.name,
            f"{goal.measured:,.{digits}f}{goal.unit}",
            f"{word} {goal.target:,g}{goal.unit}",
            "[green]reached[/]" if goal.reached else "[bold red]missed[/]",
            goal.note,
        )
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    return table


def _peak(measured: Walk | Baseline | Stream) -> str:
    return f"{measured.before.peak:.0f} → {measured.after.peak:.0f}"


def _ratio(one: float, other: float) -> float:
    return one / other if other else 0.0


def data(struct: msgspec.Struct) -> dict[str, object]:
    """Fields and properties, all the way down."""
    return _data(struct) or {}


def _data(struct: msgspec.Struct | None) -> dict[str, object] | None:
    """Fields and properties, all the way down."""
    if struct is None:
        return None
    names = [*struct.__struct_fields__, *(n for n, v in vars(type(struct)).items() if isinstance(v, property))]
    values = {name: getattr(struct, name) for name in names}
    return {
        name: _data(value) if isinstance(value, msgspec.Struct) else msgspec.to_builtins(value)
        for name, value in values.items()
    }
