"""`clerk-feed probe URL`: play Clerk's importer against a feed, ours or another's."""

import time
from contextlib import closing
from urllib.parse import urlsplit

import click
import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app.clerk.importer import Importer, ImportFailedError, Page, Report, redacted
from app.protocol.problems import MEDIA_TYPE
from app.protocol.sync_errors import of_status

_HOURLY_SECONDS = 600
_DAILY_SECONDS = 3600


class _Problem(msgspec.Struct):
    """What we read of RFC 9457 problem details, and our own `fix`."""

    title: str = ""
    detail: str = ""
    fix: str = ""


@click.command()
@click.argument("url")
@click.option("--token", envvar="CLERK_TOKEN", help="Token to send, as X-Clerk-Authorization.  [env: CLERK_TOKEN]")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=1000,
    show_default=True,
    help="Page Size, as it would be set in Clerk's Data Sync.",
)
@click.option("--modified-after", default="", help="What to put for {{modified_after}}; nothing means a full sync.")
@click.option(
    "--pages",
    type=click.IntRange(1),
    help="Stop after so many pages instead of at the end.",
)
@click.option("--timeout", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds for one page.")
def probe(url: str, token: str | None, limit: int, modified_after: str, pages: int | None, timeout: float) -> None:
    """Read a feed as Clerk's importer would, and say how it went.

    URL is what you would put into Clerk's Data Sync, placeholders included:

    \b
      clerk-feed probe 'https://USER:PASS@feeds.shop.dk/dk/products?limit={{limit}}&offset={{offset}}'

    Without placeholders it is asked once, and its answer is the whole feed. Exit status 1 when the sync would fail.
    """
    console = Console(highlight=False)
    try:
        importer = Importer(
            url,
            token=token,
            limit=limit,
            modified_after=modified_after,
            timeout_seconds=timeout,
            attempts=3,
            retrying=lambda cause, seconds: console.print(
                f"{cause}; trying again in {seconds:g} s, as Clerk would", soft_wrap=True, markup=False
            ),
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    console.print(f"Reading {redacted(url)}", soft_wrap=True, markup=False)
    if not importer.paged:
        console.print("The URL has no placeholders: the whole feed is asked for at once.")
    with closing(importer):
        report = Report(urlsplit(url).path)
        failure = _read(console, importer, report, pages)
    _summarise(console, importer, report, complete=failure is None and pages is None)
    if failure is not None:
        _explain(console, importer, failure, report)
        raise SystemExit(1)
    if report.duplicates:
        shown = ", ".join(map(repr, report.duplicates[:5]))
        console.print(f"\n{len(report.duplicates)} ids came more than once, such as {shown}.", markup=False)


def _read(console: Console, importer: Importer, report: Report, pages: int | None) -> ImportFailedError | None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    started = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("asking for the first page …", total=None)
        try:
            for page in importer.pages():
                report.count(page)
                report.seconds = time.perf_counter() - started
                progress.update(task, description=_progress(report, page))
                if pages is not None and report.pages >= pages:
                    break
        except ImportFailedError as error:
            report.seconds = time.perf_counter() - started
            return error
    return None


def _progress(report: Report, page: Page) -> str:
    return f"offset {page.offset:,}: {report.items:,} items, {report.items_per_second:,.0f} items/s"


def _summarise(console: Console, importer: Importer, report: Report, *, complete: bool) -> None:
    if not report.pages:
        return
    console.print(
        f"\n  items         {report.items:,}"
        f"\n  pages         {report.pages:,} of at most {importer.limit:,} items"
        f"\n  bytes         {report.bytes / 1e6:,.1f} MB"
        f"\n  time          {report.seconds:,.1f} s, {report.items_per_second:,.0f} items/s"
        f"\n  first page    {report.first_seconds * 1e3:,.0f} ms"
        f"\n  slowest page  {report.slowest_seconds * 1e3:,.0f} ms, at offset {report.slowest_offset:,}"
        f"\n  retries       {report.retries}"
    )
    if not complete:
        return
    if report.seconds < _HOURLY_SECONDS:
        pace = "under 10 minutes: Clerk may run it every hour"
    elif report.seconds < _DAILY_SECONDS:
        pace = "over 10 minutes: too long for a sync every hour"
    else:
        pace = "over 60 minutes: Clerk may run it once a day"
    console.print(f"\nThe feed was read to its end in {report.seconds:,.1f} s, {pace}.", soft_wrap=True)
    if not report.items:
        console.print("It is empty: after a full sync, Clerk would have deleted everything.")


def _explain(console: Console, importer: Importer, failure: ImportFailedError, report: Report) -> None:
    where = f"after {report.items:,} items" if report.pages else "at the first page"
    console.print(f"\nFailed {where}: {failure}", soft_wrap=True, markup=False)
    problem = _problem(failure)
    if problem is not None:
        lines = [problem.title, problem.detail, problem.fix]
    elif failure.status is not None and failure.status != 200:
        meaning = of_status(failure.status)
        lines = [meaning.cause, meaning.cure]
    elif failure.status == 200:
        start = failure.body[:120].decode(errors="replace").strip()
        lines = [f"The answer begins with: {start}", "Clerk reads NDJSON or a JSON array of objects, nothing else."]
    else:
        lines = ["No complete HTTP answer came: check the address, that the server runs, and its certificate."]
    if failure.status == 401 and not importer.sends_token:
        lines.append("No token was sent. Give one with --token or CLERK_TOKEN, if you have one; only Clerk makes them.")
        lines.append(
            "To try a feed of your own without: token_auth = false and basic in feed.toml, USER:PASS in the URL."
        )
    for line in filter(None, lines):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def _problem(failure: ImportFailedError) -> _Problem | None:
    if failure.media_type != MEDIA_TYPE:
        return None
    try:
        return msgspec.json.decode(failure.body, type=_Problem)
    except msgspec.MsgspecError:
        return None
