"""`clerk-feed accept-shrink`: say that a feed is right to have so few items."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import click

from app.catalog.embedded import EmbeddedError
from app.catalog.guard import accept_shrink as accept
from app.cli.serve import database
from app.protocol.feeds import FEEDS
from app.settings import DEFAULT_PATH, SettingsError, load


@click.command("accept-shrink")
@click.option("--config", "path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True)
@click.option("--store", required=True, help="The store's name in feed.toml.")
@click.option("--feed", required=True, type=click.Choice(FEEDS), help="The feed whose end is held back.")
def accept_shrink(path: Path, store: str, feed: str) -> None:
    """Let a walk end although its feed has lost many items.

    When a full walk would end with far fewer items than the last one, its end is held back, because Clerk would delete
    what is missing. If the items are rightly gone, run this; Clerk's next attempt goes through. A feed that shrinks
    further still is held back again.
    """
    try:
        settings = load(path)
        if store not in settings.stores:
            names = ", ".join(settings.stores)
            raise click.ClickException(f"there is no store {store!r} in {path}; the stores are {names}")
        with ExitStack() as stack:
            found = asyncio.run(_accept(database(settings, stack), store, feed))
    except (SettingsError, EmbeddedError) as error:
        raise click.ClickException(str(error)) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise click.ClickException(f"the database could not be asked: {error}") from None
    if found is None:
        raise click.ClickException(f"no walk of {feed} of {store} is held back: there is nothing to accept")
    items, last = found
    before = "" if last is None else f", {last:,} before"
    click.echo(f"Accepted: {feed} of {store} may end with {items:,} items{before}. Clerk's next attempt goes through.")


async def _accept(dsn: str, store: str, feed: str) -> tuple[int, int | None] | None:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await accept(connection, store, feed)
    finally:
        await connection.close()
