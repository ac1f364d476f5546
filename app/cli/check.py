"""`clerk-feed check`: what would go wrong, before going live."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from app.catalog.embedded import EmbeddedError
from app.cli.figures import duration
from app.cli.findings import as_json, counted, show
from app.cli.serve import database
from app.diagnosis.check import Check, Feed, Progress, Report
from app.diagnosis.findings import Finding, count_of, error
from app.settings import DEFAULT_PATH, Settings, SettingsError, load

_WARNED = 2
_MOST_ABSENT = 12
_FILE_WIDTH = 200
"""Nobody folds lines in a file or a pipe."""


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True)
@click.option("--store", help="Look at this store only.  [default: all]")
@click.option("--scan", is_flag=True, help="Look at every item instead of the first 200 of each feed.")
@click.option("--strict", is_flag=True, help="Exit with status 2 on warnings, too.")
@click.option("--json", "json", is_flag=True, help="Print one JSON object instead, for machines.")
def check(path: Path, store: str | None, scan: bool, strict: bool, json: bool) -> None:
    """Find out what would go wrong, before going live.

    Looks at the settings, the certificate, the database and its rights, and for every feed at its columns, its key,
    the indexes that serve it and its items. Writes nothing. Exit status 1 on errors; on warnings 0, or 2 with --strict.
    """
    console = Console(highlight=False, stderr=json)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    try:
        settings = load(path)
        if store is not None and store not in settings.stores:
            raise click.ClickException(
                f"there is no store {store!r} in {path}; the stores are {', '.join(settings.stores)}"
            )
        names = [store] if store is not None else list(settings.stores)
        report = _checked(settings, names, console, scan=scan)
    except (SettingsError, EmbeddedError) as fault:
        code = "settings" if isinstance(fault, SettingsError) else "embedded"
        report = Report(general=[error(code, str(fault))])
    if json:
        click.echo(as_json(_as_object(report, path, scan=scan)))
    else:
        _print(console, report, path, scan=scan)
    if count_of(report.findings, "error"):
        raise SystemExit(1)
    if strict and count_of(report.findings, "warning"):
        raise SystemExit(_WARNED)


def _checked(settings: Settings, stores: list[str], console: Console, *, scan: bool) -> Report:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<24}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TextColumn("items"),
        TimeElapsedColumn(),
    )
    with ExitStack() as stack:
        dsn = database(settings, stack)
        bar = stack.enter_context(Bar(*columns, console=console, transient=True, disable=not console.is_terminal))
        return asyncio.run(Check(settings, dsn, stores=stores, scan=scan, progress=_Bars(bar, scan=scan)).run())


class _Bars(Progress):
    """A bar for each feed. Its length is PostgreSQL's estimate, until more have come."""

    def __init__(self, bar: Bar, *, scan: bool) -> None:
        self._bar = bar
        self._scan = scan
        self._total = 0

    def begin(self, feed: Feed) -> None:
        self._total = feed.rows_estimated or 0
        for task in self._bar.task_ids:
            self._bar.stop_task(task)
        self._task = self._bar.add_task(f"{feed.store}/{feed.feed}", total=self._total, visible=self._scan)

    def advance(self, items: int) -> None:
        self._total = max(self._total, items)
        self._bar.update(self._task, completed=items, total=self._total)


def _print(console: Console, report: Report, path: Path, *, scan: bool) -> None:
    if (server := report.server) is not None:
        tls = f"good until {report.certificate_ends}" if report.certificate_ends else "none: TLS is not offered here"
        console.print(
            f"  settings     {path}"
            f"\n  certificate  {tls}"
            f"\n  database     {server.database} on PostgreSQL {server.version.split()[0]}"
            f"\n  role         {server.role}{', a superuser' if server.is_superuser else ''}"
            f"\n  clocks       {duration(abs(server.clock_ahead))} apart",
            soft_wrap=True,
            markup=False,
        )
    if report.feeds:
        console.print()
        console.print(_table(report.feeds))
    if scan:
        for feed in report.feeds:
            _print_absent(console, feed)
    findings = report.findings
    if findings:
        if report.server is not None:
            console.print()
        show(console, findings, with_place=True)
    console.print(f"\n{_verdict(report, scan=scan)}", soft_wrap=True, markup=False)


def _table(feeds: list[Feed]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("feed", no_wrap=True)
    table.add_column("id", overflow="fold")
    table.add_column("changes", no_wrap=True)
    for heading in ("items", "invalid", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("result")
    for feed in feeds:
        name = f"{feed.store}/{feed.feed}"
        if not feed.exists:
            table.add_row(name, *[""] * 5, _result(feed.findings) or "no such view")
            continue
        items = f"about {feed.rows_estimated:,}" if feed.rows_estimated is not None else ""
        invalid = time = ""
        if feed.items is not None:
            items = f"{feed.items:,}" if feed.is_whole else f"first {feed.items:,}"
            invalid, time = f"{feed.invalid or 0:,}", duration(feed.seconds or 0)
        dated = "rendered" if feed.rendered else "modified_at" if feed.has_modified_at else "no"
        table.add_row(name, feed.key or "", dated, items, invalid, time, _result(feed.findings) or "good")
    return table


def _result(findings: list[Finding]) -> str:
    return counted(findings).replace(" and ", ", ")


def _print_absent(console: Console, feed: Feed) -> None:
    """Which attributes items do without, and how many of them: a column gone NULL shows here."""
    if not feed.items:
        return
    absent = [attribute for attribute in feed.attributes if attribute.absent]
    if not absent:
        return
    looked_at = feed.items
    console.print(f"\n{feed.store}/{feed.feed}: left out of items, because NULL")
    for attribute in sorted(absent, key=lambda attribute: -attribute.absent)[:_MOST_ABSENT]:
        share = attribute.absent / looked_at
        console.print(f"  {attribute.name:<24} {share:>4.0%}  {attribute.absent:,} of {looked_at:,}", markup=False)
    if len(absent) > _MOST_ABSENT:
        console.print(f"  and {len(absent) - _MOST_ABSENT} more attributes; --json has them all")


def _verdict(report: Report, *, scan: bool) -> str:
    """The last line."""
    counts = counted(report.findings)
    usable = sum(feed.usable for feed in report.feeds)
    if count_of(report.findings, "error"):
        return f"Not ready: {counts}, see above."
    feeds = f"{usable} feed{'s' if usable != 1 else ''}"
    also = f", with {counts}, see above" if counts else ""
    more = "" if scan else " --scan looks at every item."
    return f"Ready: {feeds} can be served{also}.{more}"


def _as_object(report: Report, path: Path, *, scan: bool) -> dict[str, object]:
    feeds = [
        {**msgspec.to_builtins(feed), "findings": [finding.code for finding in feed.findings]} for feed in report.feeds
    ]
    return {
        "config": str(path),
        "scan": scan,
        "certificate_ends": report.certificate_ends,
        "database": msgspec.to_builtins(report.server),
        "feeds": feeds,
        "findings": msgspec.to_builtins(report.findings),
        "errors": count_of(report.findings, "error"),
        "warnings": count_of(report.findings, "warning"),
        "verdict": _verdict(report, scan=scan),
        "ok": not count_of(report.findings, "error"),
    }
