"""Our own schema `clerk_feed`: numbered migrations, applied in order, once, by whoever comes first."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from app.catalog.source import quoted

SQL_FOLDER = next(
    folder
    for folder in (Path(__file__).parent.parent / "sql", Path(__file__).parent.parent.parent / "sql")
    if folder.is_dir()
)
"""Inside the package where it is installed, beside it in a checkout."""

_LOCK = 0x636C65726B  # "clerk"
_ATTEMPTS = 30
_MIGRATION_SECONDS = 3600.0
_TELLS_HISTORIES = 20
"""The migration that brings the procedure for it."""


class SchemaError(Exception):
    """Our schema can't be used. The message says what a DBA must do."""


class Migration(msgspec.Struct, frozen=True):
    number: int
    name: str
    sql: str


def migrations(folder: Path = SQL_FOLDER) -> list[Migration]:
    """The migrations of a folder, `NNN_name.sql`, in order."""
    paths = sorted(folder.glob("[0-9][0-9][0-9]_*.sql"))
    return [Migration(int(path.name[:3]), path.stem[4:], path.read_text(encoding="utf-8")) for path in paths]


async def migrate(
    connection: Any, wanted: list[Migration] | None = None, *, attempts: int = _ATTEMPTS
) -> list[Migration]:
    """Bring `clerk_feed` up to date, under an advisory lock and in one transaction; what was applied.

    Whoever holds one of its tables (a backup) is waited for a second at a time: pages of a process that still serves
    would wait behind us. Raises SchemaError where that lasts, where the role lacks the rights, or where the schema is
    newer than this program.
    """
    for _ in range(attempts):
        try:
            return await _migrate(connection, migrations() if wanted is None else wanted)
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(1)
    raise SchemaError(
        "The schema clerk_feed could not be changed: another transaction holds its tables, perhaps a backup."
        " Start again when it has ended."
    )


async def _migrate(connection: Any, wanted: list[Migration]) -> list[Migration]:
    try:
        async with connection.transaction():
            # To be cut off in the middle would mean to begin anew at the next start; so would whoever waits for us.
            await connection.execute("set local statement_timeout = 0")
            await connection.execute("select pg_advisory_xact_lock($1)", _LOCK, timeout=_MIGRATION_SECONDS)
            await connection.execute("set local lock_timeout = '1s'")
            if not await connection.fetchval("select to_regnamespace('clerk_feed') is not null"):
                await connection.execute("create schema clerk_feed")
            if not await connection.fetchval("select to_regclass('clerk_feed.migration') is not null"):
                await connection.execute(_MIGRATION_TABLE)
            done = await connection.fetchval("select coalesce(max(number), 0) from clerk_feed.migration")
            newest = wanted[-1].number
            if done > newest:
                raise SchemaError(
                    f"The schema clerk_feed is at migration {done}; this version of clerk-feed knows up to {newest}."
                    " Run the newer version again, or drop the schema: it holds no data of the shop, but how large its"
                    " feeds were, so that nothing holds back a broken one until the next full sync has ended."
                )
            if not done and await connection.fetchval("select to_regclass('clerk_feed.walk') is not null"):
                raise SchemaError(
                    "The schema clerk_feed has tables, but no record of its migrations: it comes from a dump without"
                    " its data, perhaps. It holds no data of the shop: drop schema clerk_feed cascade; start again, and"
                    " let a full sync follow."
                )
            applied = [migration for migration in wanted if migration.number > done]
            for migration in applied:
                await connection.execute(migration.sql, timeout=_MIGRATION_SECONDS)
                await connection.execute(
                    "insert into clerk_feed.migration (number, name) values ($1, $2)",
                    migration.number,
                    migration.name,
                )
            if newest >= _TELLS_HISTORIES:
                await _tell_histories(connection)
            return applied
    except asyncpg.InsufficientPrivilegeError as error:
        role, database = await connection.fetchrow("select current_user::text, current_database()::text")
        raise SchemaError(
            f"The role {role} may not create or change the schema clerk_feed ({error}).\n"
            "Ask a DBA to run this once, then start again:\n\n"
            f"  {owned_schema(role)}\n\n"
            f"in the database {database}. The role then owns its own schema and needs only SELECT on the shop's views."
        ) from None


async def _tell_histories(connection: Any) -> None:
    """Tell histories anew where that fails here: a dump may have brought them to a server that shows less of itself."""
    try:
        async with connection.transaction():
            await connection.execute("select clerk_feed.timeline()")
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError, asyncpg.FeatureNotSupportedError):
        await connection.execute("call clerk_feed.tell_histories()")


def owned_schema(role: str) -> str:
    """The SQL that gives a role its own schema, and nothing else."""
    return f"create schema if not exists clerk_feed authorization {quoted(role)};"


_MIGRATION_TABLE = """
create table clerk_feed.migration (
  number integer primary key,
  name text not null,
  applied timestamptz not null default now()
)
"""
