"""A run's figures, as a table for people and as JSON, beside the targets of the design."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import msgspec
from rich.console import Console
from rich.table import Table

from loadtests.measure import Baseline, Pages, Small, Stream, Walk


class Machine(msgspec.Struct, frozen=True):
    """Where and when the run took place."""

    at: str
    python: str
    postgresql: str
    cpus: int
    load_before: float
    """Load average of the last minute: above 0.5 something else was running."""
    versions: dict[str, str]


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
    stream: Stream | None = None
    small: Small | None = None

    def goals(self) -> list[Goal]:
        goals = []
        walk, baseline = self.walk, self.baseline
        if walk and baseline:
            for name, ours, theirs, target in (
                ("items/s from offset 0, against the baseline", walk.start, baseline.start, 10.0),
                (f"items/s at offset {walk.far.offset:,}, against the baseline", walk.far, baseline.far, 120.0),
            ):
                alone = _ratio(ours.answered_items_per_second, theirs.answered_items_per_second)
                goals.append(
                    Goal(
                        name,
                        _ratio(ours.items_per_second, theirs.items_per_second),
                        target,
                        "x",
                        at_most=False,
                        note=f"{alone:.1f}x without the importer's decoding",
                    )
                )
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
                    note=f"{importer:,.0f} by the importer, who decodes",
                )
            )
        if self.stream:
            goals.append(Goal("memory growth while streaming all", self.stream.growth, 40.0, " MB", at_most=True))
        return goals

    def as_data(self) -> dict[str, object]:
        """For JSON, the derived figures included."""
        return {
            "items": self.items,
            "machine": msgspec.to_builtins(self.machine),
            "walk": _data(self.walk),
            "baseline": _data(self.baseline),
            "stream": _data(self.stream),
            "small": _data(self.small),
            "goals": [{**msgspec.to_builtins(goal), "reached": goal.reached} for goal in self.goals()],
        }


def machine(postgresql: str) -> Machine:
    packages = ("clerk-feed", "hypercorn", "asyncpg", "msgspec", "uvloop", "fastapi", "sqlalchemy", "uvicorn")
    return Machine(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        postgresql=postgresql,
        cpus=os.cpu_count() or 0,
        load_before=os.getloadavg()[0],
        versions={package: version(package) for package in packages},
    )


def show(figures: Figures, console: Console) -> None:
    """The tables: what each came to, and the targets."""
    for table in (_paged(figures), _stream(figures), _goals(figures)):
        if table.row_count:
            console.print(table)
            console.print()
    if figures.baseline:
        console.print(
            "The baseline was asked for a sample of its pages: by LIMIT and OFFSET each page costs more than the one"
            " before, and a walk of a million items takes the better part of an hour."
        )
        if not figures.baseline.same_items:
            console.print("[bold]The baseline's first page did not hold what clerk-feed's held.[/]")
    if figures.machine.load_before > 0.5:
        console.print(
            f"The machine was not quiet when it began (load {figures.machine.load_before:.2f}): the figures may be low."
        )


def _paged(figures: Figures) -> Table:
    table = _table(f"{figures.items:,} products, one importer, page by page")
    table.add_column("")
    for heading in ("pages", "items/s", "MB/s", "pages/s", "p50 ms", "p99 ms", "service alone, items/s", "peak MB"):
        table.add_column(heading, justify="right")

    def row(name: str, pages: Pages, peak: str) -> None:
        table.add_row(
            name,
            f"{pages.pages:,}",
            f"{pages.items_per_second:,.0f}",
            f"{pages.megabytes_per_second:,.1f}",
            f"{pages.pages_per_second:,.1f}",
            f"{pages.p50_ms:,.2f}",
            f"{pages.p99_ms:,.2f}",
            f"{pages.answered_items_per_second:,.0f}",
            peak,
        )

    if walk := figures.walk:
        peak = f"{walk.before.peak:.0f} → {walk.after.peak:.0f}"
        row("clerk-feed, " + ("the whole walk" if walk.complete else "as far as the time went"), walk.whole, peak)
        row("  from offset 0", walk.start, "")
        row(f"  at offset {walk.far.offset:,}", walk.far, "")
        table.add_row(
            f"  first page {walk.first_page_ms:.1f} ms, last page {walk.last_page_ms:.1f} ms;"
            f" medians of 20: {walk.first_pages_ms:.2f} and {walk.last_pages_ms:.2f} ms"
        )
    if baseline := figures.baseline:
        peak = f"{baseline.before.peak:.0f} → {baseline.after.peak:.0f}"
        row("FastAPI + SQLAlchemy, from offset 0", baseline.start, peak)
        row(f"  at offset {baseline.far.offset:,}", baseline.far, "")
    if small := figures.small:
        row("clerk-feed, limit 25, importer", small.importer, "")
        row("clerk-feed, limit 25, bare client", small.bare, "")
    return table


def _stream(figures: Figures) -> Table:
    table = _table("All items in one answer")
    table.add_column("")
    for heading in ("items", "items/s", "MB/s", "seconds", "peak MB", "growth MB"):
        table.add_column(heading, justify="right")
    if stream := figures.stream:
        table.add_row(
            "clerk-feed" if stream.complete else "clerk-feed, as far as the time went",
            f"{stream.items:,}",
            f"{stream.items_per_second:,.0f}",
            f"{stream.megabytes_per_second:,.1f}",
            f"{stream.seconds:.1f}",
            f"{stream.before.peak:.0f} → {stream.after.peak:.0f}",
            f"{stream.growth:.1f}",
        )
    return table


def _goals(figures: Figures) -> Table:
    table = _table("Targets")
    table.add_column("")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    table.add_column("")
    for goal in figures.goals():
        word = "at most" if goal.at_most else "at least"
        table.add_row(
            goal.name,
            f"{goal.measured:,.2f}{goal.unit}" if goal.measured < 10 else f"{goal.measured:,.1f}{goal.unit}",
            f"{word} {goal.target:,g}{goal.unit}",
            "[green]reached[/]" if goal.reached else "[bold red]missed[/]",
            goal.note,
        )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")


def _ratio(one: float, other: float) -> float:
    return one / other if other else 0.0


def _data(struct: msgspec.Struct | None) -> dict[str, object] | None:
    """Fields and properties, all the way down."""
    if struct is None:
        return None
    names = [*struct.__struct_fields__, *(n for n, v in vars(type(struct)).items() if isinstance(v, property))]
    values = {name: getattr(struct, name) for name in names}
    return {name: _data(value) if isinstance(value, msgspec.Struct) else value for name, value in values.items()}
