"""`clerk-feed deletions`: what vanished from rendered feeds, and whether Clerk knows."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import click

from app.catalog.embedded import EmbeddedError
from app.catalog.rendered import connection_for_refresh
from app.catalog.schema import SchemaError, migrate
from app.clerk.api import ClerkApi
from app.clerk.deletions import Deletions, PushError, waiting
from app.cli.serve import database
from app.protocol.feeds import FEEDS, FeedName
from app.settings import DEFAULT_PATH, Settings, SettingsError, Store, load
from app.status.events import Event
from app.upkeep import deletes

_CALL_SECONDS = 30.0
_SHOWN = 20

Work = Callable[[Settings, str, Store, FeedName], Coroutine[None, None, bool]]
"""What to do for one feed; answers whether it went well."""

_config = click.option("--config", "path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True)
_store = click.option("--store", help="Only this store.")
_feed = click.option("--feed", type=click.Choice(FEEDS), help="Only this feed.")


@click.group()
def deletions() -> None:
    """What vanished from rendered feeds, and whether Clerk knows.

    Clerk only asks for what exists: between full syncs it must be told what is gone. With a private_key, 'serve' and
    'refresh' do so after each refresh.
    """


@deletions.command("list")
@_config
@_store
@_feed
def list_(path: Path, store: str | None, feed: FeedName | None) -> None:
    """Show the deletions that are not done."""
    _run(path, store, feed, _list)


@deletions.command()
@_config
@_store
@_feed
def push(path: Path, store: str | None, feed: FeedName | None) -> None:
    """Send them to Clerk now, those it refused before included."""
    _run(path, store, feed, _push)


def rendered_feeds(
    settings: Settings, path: Path, store: str | None, feed: FeedName | None
) -> list[tuple[Store, FeedName]]:
    """The rendered feeds that are meant. Raises ClickException where there are none."""
    if store is not None and store not in settings.stores:
        names = ", ".join(settings.stores)
        raise click.ClickException(f"there is no store {store!r} in {path}; the stores are {names}")
    chosen = [
        (settings.stores[name], each)
        for name in ([store] if store is not None else settings.stores)
        for each in FEEDS
        if settings.stores[name].feed(each).rendered and feed in (None, each)
    ]
    if not chosen:
        place = f"stores.{store or 'NAME'}.feeds.{feed or 'FEED'}"
        raise click.ClickException(f"no feed that is meant is rendered; set rendered = true in [{place}] of {path}")
    return chosen


def _run(path: Path, store: str | None, feed: FeedName | None, work: Work) -> None:
    try:
        settings = load(path)
        chosen = rendered_feeds(settings, path, store, feed)
        with ExitStack() as stack:
            done = asyncio.run(_prepared(settings, database(settings, stack), chosen, work))
    except (SettingsError, EmbeddedError, SchemaError) as error:
        raise click.ClickException(str(error)) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise click.ClickException(f"the database could not be asked: {error}") from None
    if not done:
        sys.exit(1)


async def _prepared(settings: Settings, dsn: str, chosen: list[tuple[Store, FeedName]], work: Work) -> bool:
    connection = await asyncpg.connect(dsn, timeout=10, statement_cache_size=0)
    try:
        await migrate(connection)
    finally:
        await connection.close()
    done = True
    for store, feed in chosen:
        done &= await work(settings, dsn, store, feed)
    return done


async def _list(settings: Settings, dsn: str, store: Store, feed: FeedName) -> bool:
    connection = await asyncpg.connect(dsn, timeout=10, statement_cache_size=0)
    try:
        to_send, again, rows = await waiting(connection, store.name, feed, _SHOWN)
    finally:
        await connection.close()
    click.echo(f"{store.name}/{feed}: {to_send:,} to send" + (f", {again:,} sent and kept for later" if again else ""))
    for row in rows:
        state = f"sent {row.pushed}, again when the walks of then have ended" if row.pushed else "not sent"
        if row.refusals:
            state = f"refused {row.refusals} times: {row.refused}"
        click.echo(f"  {row.item}  vanished {row.vanished}, {state}")
    if to_send + again > len(rows):
        click.echo(f"  and {to_send + again - len(rows):,} more")
    if to_send and not deletes(store, feed):
        click.echo(f"  {_why_not(store, feed)}")
    return True


async def _push(settings: Settings, dsn: str, store: Store, feed: FeedName) -> bool:
    if not deletes(store, feed):
        click.echo(f"{store.name}/{feed}: nothing was sent. {_why_not(store, feed)}", err=True)
        return False
    return await pushed(settings, dsn, store, feed, refused_too=True)


def _why_not(store: Store, feed: FeedName) -> str:
    if not store.private_key:
        return f"To tell Clerk, set private_key of [stores.{store.name}]."
    return (
        f"Clerk keeps orders; to delete them there too, set delete_orders = true of [stores.{store.name}.feeds.{feed}]."
    )


async def pushed(settings: Settings, dsn: str, store: Store, feed: FeedName, *, refused_too: bool) -> bool:
    """Send a feed's deletions and say what came of it; whether all went."""
    clerk = ClerkApi(settings.access.verify_url, _CALL_SECONDS)
    try:
        sender = Deletions(lambda: connection_for_refresh(dsn), clerk, settings.clerk.api_url, _ignore)
        done = await sender.push(store, feed, refused_too=refused_too)
    except PushError as error:
        click.echo(f"{store.name}/{feed}: deletions wait. {error}.", err=True)
        return False
    finally:
        await clerk.close()
    refused = f", {done.refused:,} refused; 'clerk-feed deletions list' says why" if done.refused else ""
    click.echo(f"{store.name}/{feed}: {done.deleted:,} items deleted at Clerk{refused}")
    return not done.refused


def _ignore(event: Event) -> None:
    """What events would say is said on the terminal."""
