"""`clerk-feed probe URL`: play Clerk's importer against a feed, ours or another's."""

from contextlib import closing

import click
import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app.clerk.importer import Importer
from app.cli.figures import duration, size
from app.cli.findings import as_json, counted, show
from app.diagnosis.findings import count_of
from app.diagnosis.walk import HOURLY_SECONDS, Probe, Walk
from app.protocol.feeds import FEEDS, FeedName
from app.protocol.redaction import redacted

_CODINGS = {"gzip": "gzip", "zstd": "zstd", "none": ""}


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
@click.option("--feed", type=click.Choice(FEEDS), help="Which feed it is, where neither URL nor items tell.")
@click.option(
    "--pages",
    type=click.IntRange(1),
    help="Stop after so many pages instead of at the end.",
)
@click.option("--timeout", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds for one page.")
@click.option(
    "--compression", type=click.Choice(tuple(_CODINGS)), default="gzip", show_default=True, help="What to ask for."
)
@click.option("--json", "json", is_flag=True, help="Print one JSON object instead, for machines.")
def probe(
    url: str,
    token: str | None,
    limit: int,
    modified_after: str,
    feed: FeedName | None,
    pages: int | None,
    timeout: float,
    compression: str,
    json: bool,
) -> None:
    """Read a feed as Clerk's importer would, and say what a sync would meet.

    URL is what you would put into Clerk's Data Sync, placeholders included:

    \b
      clerk-feed probe 'https://USER:PASS@feeds.shop.dk/dk/products?limit={{limit}}&offset={{offset}}'

    Without placeholders it is asked once, and its answer is the whole feed. A few pages are asked for again, and some
    behind the end. Exit status 1 when a sync would lose items or break.
    """
    console = Console(highlight=False, stderr=json)
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
            accept_encoding=_CODINGS[compression],
            requires_end=False,
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    if not json:
        console.print(f"Reading {redacted(url)}", soft_wrap=True, markup=False)
    with (
        closing(importer),
        Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress,
    ):
        task = progress.add_task("", total=None)

        def show_step(step: str, walk: Walk) -> None:
            rate = f", {walk.items:,} items, {walk.items_per_second:,.0f} items/s" if walk.pages else ""
            progress.update(task, description=step + rate)

        walk = Probe(importer, feed=feed, modified_after=modified_after, most_pages=pages, progress=show_step).run()
    if json:
        click.echo(as_json(_report(walk)))
    else:
        _print(console, walk)
    if count_of(walk.findings, "error"):
        raise SystemExit(1)


def _print(console: Console, walk: Walk) -> None:
    if not walk.paged and walk.pages:
        console.print("The URL has no {{offset}}: the whole feed was asked for at once.", markup=False)
    if walk.pages:
        compressed = f", {size(walk.wire_bytes)} as {walk.coding}" if walk.coding else ""
        console.print(
            f"\n  feed          {walk.feed or 'unknown'}"
            f"\n  items         {walk.items:,}"
            f"\n  pages         {walk.pages:,} of at most {walk.limit:,} items"
            f"\n  size          {size(walk.bytes)}{compressed}"
            f"\n  time          {duration(walk.seconds)}, {walk.items_per_second:,.0f} items/s"
            f"\n  first page    {duration(walk.first_seconds)}"
            f"\n  slowest page  {duration(walk.slowest_seconds)}, at offset {walk.slowest_offset:,}"
            f"\n  retries       {walk.retries}",
            soft_wrap=True,
        )
    if walk.findings:
        console.print()
        show(console, walk.findings)
    console.print(f"\n{_verdict(walk)}", soft_wrap=True, markup=False)


def _verdict(walk: Walk) -> str:
    """The last line: whether a sync would go through."""
    if count_of(walk.findings, "error"):
        return f"Verdict: a sync would lose items or break. {counted(walk.findings)}, see above."
    also = f" {counted(walk.findings)}, see above." if counted(walk.findings) else ""
    if not walk.complete:
        return f"Verdict: nothing in the first {walk.pages:,} pages breaks a sync; the rest was not read.{also}"
    took = f"The feed was read to its end in {duration(walk.seconds)}"
    if walk.seconds <= HOURLY_SECONDS:
        took += ", under 10 minutes: Clerk may run it every hour"
    return f"Verdict: a sync goes through. {took}.{also}"


def _report(walk: Walk) -> dict[str, object]:
    return {
        "url": redacted(walk.url),
        "feed": walk.feed,
        "complete": walk.complete,
        "paged": walk.paged,
        "limit": walk.limit,
        "items": walk.items,
        "pages": walk.pages,
        "bytes": walk.bytes,
        "bytes_received": walk.wire_bytes,
        "compression": walk.coding or None,
        "seconds": round(walk.seconds, 6),
        "items_per_second": round(walk.items_per_second, 1),
        "first_page_seconds": round(walk.first_seconds, 6),
        "slowest_page_seconds": round(walk.slowest_seconds, 6),
        "slowest_page_offset": walk.slowest_offset,
        "retries": walk.retries,
        "attributes": msgspec.to_builtins(walk.attributes),
        "findings": msgspec.to_builtins(walk.findings),
        "verdict": _verdict(walk),
        "ok": not count_of(walk.findings, "error"),
    }
