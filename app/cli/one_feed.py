"""What commands share that say something of one feed to the database."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import click

from app.catalog.embedded import EmbeddedError
from app.cli.serve import database
from app.protocol.feeds import FEEDS
from app.settings import DEFAULT_PATH, SettingsError, load

T = TypeVar("T")

config_option = click.option(
    "--config", "path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True
)
store_option = click.option("--store", required=True, help="The store's name in feed.toml.")
feed_option = click.option("--feed", required=True, type=click.Choice(FEEDS), help="The feed it is said of.")


def say(path: Path, store: str, work: Callable[[Any], Awaitable[T]]) -> T:
    """What `work` answers when given a connection. Raises ClickException where it can't be done, saying why."""
    try:
        settings = load(path)
        if store not in settings.stores:
            names = ", ".join(settings.stores)
            raise click.ClickException(f"there is no store {store!r} in {path}; the stores are {names}")
        with ExitStack() as stack:
            return asyncio.run(_connected(database(settings, stack), work))
    except (SettingsError, EmbeddedError) as error:
        raise click.ClickException(str(error)) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise click.ClickException(f"the database could not be asked: {error}") from None


async def _connected(dsn: str, work: Callable[[Any], Awaitable[T]]) -> T:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await work(connection)
    finally:
        await connection.close()
