"""The database as a server: reachable, new enough, on time, and with the rights the service needs and no others."""

import time
from typing import Any

import asyncpg
import msgspec

from app.catalog.schema import migrations, owned_schema
from app.diagnosis.findings import Finding, error, note, warning

_OLDEST = 12
_CLOCK_SECONDS = 5.0


class Server(msgspec.Struct, frozen=True):
    """What answers."""

    version: str
    version_number: int
    database: str
    role: str
    is_superuser: bool
    is_standby: bool
    may_create: bool
    schema_exists: bool
    schema_is_ours: bool
    migration: int
    writable_tables: int
    clock_ahead: float
    """By how many seconds its clock is ahead of this machine's."""


async def server(connection: Any) -> Server:
    """Ask the database about itself. Raises what asyncpg raises."""
    row = await connection.fetchrow(_SERVER)
    migration = 0
    if row["schema_is_ours"] and await connection.fetchval("select to_regclass('clerk_feed.migration') is not null"):
        migration = await connection.fetchval("select coalesce(max(number), 0) from clerk_feed.migration")
    # The quickest of a few, so that a busy moment is not taken for a wrong clock.
    ahead = min([await _clock_ahead(connection) for _ in range(3)], key=abs)
    return Server(**row, migration=migration, clock_ahead=ahead)


async def _clock_ahead(connection: Any) -> float:
    before = time.time()
    there = await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
    return float(there - (before + time.time()) / 2)


def unreachable(fault: BaseException, key: str) -> Finding:
    """Why there is no connection. `key` is the one of feed.toml that names the database."""
    name = type(fault).__name__
    if isinstance(fault, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError):
        return error("database-refused", f"PostgreSQL refused the role: {fault}.", f"Check user and password in {key}.")
    if isinstance(fault, asyncpg.InvalidCatalogNameError):
        return error("database-unknown", f"PostgreSQL answers, but {fault}.", f"Check the database's name in {key}.")
    if isinstance(fault, asyncpg.TooManyConnectionsError):
        return error(
            "database-full",
            f"PostgreSQL has no place for another connection: {fault}.",
            "Raise max_connections there, or lower pool_size.",
        )
    if isinstance(fault, asyncpg.PostgresError):
        return error("database-refused", f"PostgreSQL refused the connection: {fault}.", f"Check {key}.")
    if isinstance(fault, ValueError | asyncpg.ClientConfigurationError):
        # Its text may quote a part of the DSN that is the password.
        return error(
            "database-dsn",
            f"{key} can't be understood ({name}).",
            "Write postgresql://USER:PASSWORD@HOST/DATABASE, with @ : / # ? in the password as %40 %3A %2F %23 %3F.",
        )
    said = f"{name}: {fault}" if str(fault) else name
    return error(
        "database-unreachable",
        f"The database does not answer ({said}).",
        f"Check that PostgreSQL runs, that {key} names its host and port, and that no firewall is between.",
    )


def server_findings(facts: Server, *, stores: list[str], embedded: bool) -> list[Finding]:
    """What is wrong with the server itself and with the role."""
    found = []
    if facts.version_number < _OLDEST * 10_000:
        found.append(
            error(
                "database-version",
                f"PostgreSQL {facts.version} is too old.",
                f"The service needs PostgreSQL {_OLDEST} or later.",
            )
        )
    if abs(facts.clock_ahead) > _CLOCK_SECONDS:
        way = "ahead of" if facts.clock_ahead > 0 else "behind"
        found.append(
            warning(
                "clock",
                f"The database's clock is {abs(facts.clock_ahead):,.0f} s {way} this machine's: modified_after, counted"
                " back from now, misses what changed meanwhile.",
                "Set both by NTP; compare them with: timedatectl",
            )
        )
    if facts.is_superuser and not embedded:
        found.append(
            warning(
                "role-superuser",
                f"The role {facts.role} is a superuser: who gets at the service gets at everything.",
                f"Make one that reads the views only: clerk-feed init --print-sql --store {stores[0]}",
            )
        )
    elif facts.writable_tables and not embedded:
        found.append(
            note(
                "role-writes",
                f"The role {facts.role} may change {facts.writable_tables:,} tables; the service needs none.",
                f"One that reads the views only: clerk-feed init --print-sql --store {stores[0]}",
            )
        )
    return found


def state_findings(facts: Server) -> list[Finding]:
    """Whether the service can keep bookmarks there."""
    if facts.is_standby:
        return [
            error(
                "database-standby",
                f"The database {facts.database} is a standby: bookmarks can't be written there.",
                "Name the primary: database.state_dsn, or database.dsn.",
            )
        ]
    if not facts.schema_exists and not facts.may_create:
        what = f"The role {facts.role} may not create the schema clerk_feed, where bookmarks are kept."
    elif facts.schema_exists and not facts.schema_is_ours:
        what = f"The schema clerk_feed, where bookmarks are kept, belongs to another role than {facts.role}."
    else:
        newest = migrations()[-1].number
        if facts.migration > newest:
            return [
                error(
                    "schema-newer",
                    f"The schema clerk_feed is at migration {facts.migration}; this version knows up to {newest}.",
                    "Run the newer version again, or drop the schema: it holds no data of the shop, but how large its"
                    " feeds were, so that nothing holds back a broken one until the next full sync has ended.",
                )
            ]
        return []
    fix = owned_schema(facts.role)
    if facts.schema_exists:
        fix = f'alter schema clerk_feed owner to "{facts.role}", and its tables too; or drop schema clerk_feed cascade;'
    return [error("schema-privilege", what, f"As a superuser, in the database {facts.database}: {fix}")]


_SERVER = """
select
  current_setting('server_version') as version,
  current_setting('server_version_num')::int as version_number,
  current_database()::text as database,
  current_user::text as role,
  (select rolsuper from pg_roles where rolname = current_user) as is_superuser,
  pg_is_in_recovery() as is_standby,
  has_database_privilege(current_database(), 'create') as may_create,
  n.oid is not null as schema_exists,
  coalesce(pg_has_role(n.nspowner, 'usage'), false) as schema_is_ours,
  (
    select count(*)
    from pg_class as c
    join pg_namespace as m on m.oid = c.relnamespace
    where c.relkind in ('r', 'p') and m.nspname not in ('clerk_feed', 'information_schema')
      and m.nspname not like 'pg\\_%'
      and has_schema_privilege(m.oid, 'usage')
      and has_table_privilege(c.oid, 'insert, update, delete, truncate')
  ) as writable_tables
from (select 1) as one
left join pg_namespace as n on n.nspname = 'clerk_feed'
"""
