"""What commands share that say something of feeds to the database."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import click

from app.catalog.embedded import EmbeddedError
from app.cli.serve import database
from app.settings import DEFAULT_PATH, SettingsError, load

T = TypeVar("T")

Work = Callable[[Any, list[str]], Awaitable[T]]
"""What to do with a connection, for stores of these names."""

config_option = click.option(
    "--config", "path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True
)


def say(path: Path, store: str | None, work: Work[T]) -> T:
    """What `work` answers for a store, or for all. Raises ClickException where it can't be done, saying why."""
    try:
        settings = load(path)
        if store is not None and store not in settings.stores:
            names = ", ".join(settings.stores)
            raise click.ClickException(f"there is no store {store!r} in {path}; the stores are {names}")
        stores = list(settings.stores) if store is None else [store]
        with ExitStack() as stack:
            return asyncio.run(_connected(database(settings, stack), work, stores))
    except (SettingsError, EmbeddedError) as error:
        raise click.ClickException(str(error)) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise click.ClickException(f"the database could not be asked: {error}") from None


async def _connected(dsn: str, work: Work[T], stores: list[str]) -> T:
    connection = await asyncpg.connect(dsn, timeout=10, statement_cache_size=0)
    try:
        return await work(connection, stores)
    finally:
        await connection.close()
