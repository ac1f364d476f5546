"""`clerk-feed refresh`: bring rendered feeds up to date."""

import asyncio
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import click

from app.catalog.embedded import EmbeddedError
from app.catalog.rendered import Refresher, RefreshError, Summary, connection_for_refresh
from app.catalog.schema import SchemaError, migrate
from app.cli.deletions import pushed, rendered_feeds
from app.cli.serve import database
from app.protocol.feeds import FEEDS, FeedName
from app.settings import DEFAULT_PATH, Settings, SettingsError, Store, load
from app.status.events import Event
from app.upkeep import deletes


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True)
@click.option("--store", help="Only this store.")
@click.option("--feed", type=click.Choice(FEEDS), help="Only this feed.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--accept-shrink", is_flag=True, help="The feed is right to have so few items.")
@click.option("--items", type=click.IntRange(0), help="How many they are; without it, what was held back last.")
def refresh(
    path: Path, store: str | None, feed: FeedName | None, dry_run: bool, accept_shrink: bool, items: int | None
) -> None:
    """Render the feeds with rendered = true anew and write what differs.

    Readers are not disturbed: they see all of a refresh or nothing of it. A refresh that would leave far fewer items
    than the feed had in the last 24 hours changes nothing, unless --accept-shrink says that it is right. Where the
    store has a private_key, Clerk is told what vanished.
    """
    if accept_shrink and (store is None or feed is None):
        raise click.ClickException("--accept-shrink needs --store and --feed: it is said of one feed")
    if items is not None and not accept_shrink:
        raise click.ClickException("--items belongs to --accept-shrink: it says how many items are right")
    try:
        settings = load(path)
        chosen = rendered_feeds(settings, path, store, feed)
        with ExitStack() as stack:
            done = asyncio.run(
                _refresh(
                    settings,
                    database(settings, stack),
                    chosen,
                    dry_run=dry_run,
                    accept_shrink=accept_shrink,
                    accepted_items=items,
                )
            )
    except (SettingsError, EmbeddedError, SchemaError) as error:
        raise click.ClickException(str(error)) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise click.ClickException(f"the database could not be asked: {error}") from None
    if not done:
        sys.exit(1)


async def _refresh(
    settings: Settings,
    dsn: str,
    chosen: list[tuple[Store, FeedName]],
    *,
    dry_run: bool,
    accept_shrink: bool,
    accepted_items: int | None,
) -> bool:
    connection = await asyncpg.connect(dsn, timeout=10, statement_cache_size=0)
    try:
        await migrate(connection)
    finally:
        await connection.close()
    refresher = Refresher(lambda: connection_for_refresh(dsn), _ignore)
    all_done = True
    for store, feed in chosen:
        progress = _Progress(f"{store.name}/{feed}")
        try:
            if dry_run:
                summary: Summary | None = await refresher.preview(store, feed)
            else:
                summary = await refresher.refresh(
                    store, feed, accept_shrink=accept_shrink, accepted_items=accepted_items, watch=progress
                )
        except RefreshError as error:
            progress.clear()
            click.echo(f"{store.name}/{feed}: not refreshed. {error}", err=True)
            all_done = False
            continue
        progress.clear()
        if summary is not None:
            click.echo(_told(summary, dry_run=dry_run))
        if not dry_run and deletes(store, feed):
            all_done &= await pushed(settings, dsn, store, feed, refused_too=False)
    return all_done


def _told(summary: Summary, *, dry_run: bool) -> str:
    would = " (nothing was written)" if dry_run else ""
    return (
        f"{summary.store}/{summary.feed}: {summary.items:,} items: {summary.added:,} new, {summary.changed:,} changed,"
        f" {summary.unchanged:,} unchanged, {summary.vanished:,} vanished, {summary.invalid:,} invalid;"
        f" {summary.seconds:.1f} s{would}"
    )


class _Progress:
    """One line on a terminal, rewritten; a line every ten seconds elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = self._said = time.monotonic()
        self._shown = False

    def __call__(self, rows: int, expected: int | None) -> None:
        now = time.monotonic()
        rate = rows / (now - self._started)
        text = f"{self._name}: {rows:,} rows, {rate:,.0f}/s"
        if expected and rate > 0:
            text += f", {min(rows / expected, 1):.0%}, about {max(expected - rows, 0) / rate:,.0f} s left"
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)
            self._shown = True
        elif now - self._said >= 10:
            click.echo(text, err=True)
            self._said = now

    def clear(self) -> None:
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)


def _ignore(event: Event) -> None:
    """What events would say is said on the terminal."""
