"""`clerk-feed init`: a feed.toml and a views.sql to start from, or the SQL of a role for the service."""

import asyncio
import json
import shlex
import textwrap
from pathlib import Path
from urllib.parse import quote

import asyncpg
import click
import jinja2
import msgspec
from rich.console import Console

from app.catalog.drafts import TODO, View, draft, typical
from app.catalog.schema import migrations, owned_schema
from app.catalog.tables import identifier, read_tables, schemas, shown, taken_names
from app.protocol.feeds import FEEDS, FeedName
from app.settings import SettingsError, parse

_CONNECT_SECONDS = 15.0

_ADDRESSES = {
    "product": "e.g. 'https://www.shop.example/product/'",
    "category": "e.g. 'https://www.shop.example/category/'",
    "page": "e.g. 'https://www.shop.example/'",
    "image": "e.g. 'https://images.shop.example/'",
}
_ADDRESSED: dict[FeedName, tuple[str, ...]] = {
    "products": ("product", "image"),
    "categories": ("category",),
    "pages": ("page",),
}


class _Found(msgspec.Struct, frozen=True):
    """What there is to draft from: a database's tables as views, or those of a typical shop."""

    views: dict[FeedName, View]
    database: str = ""


@click.command()
@click.option("--dsn", help='The shop\'s database, e.g. "$DATABASE_URL". Only its catalog is read, nothing written.')
@click.option("--schema", help="Look in this schema of it only.  [default: all]")
@click.option(
    "--store", default="shop", show_default=True, help="The store's name: in its URLs, and its schema's for the views."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where to write.  [default: here]",
)
@click.option("--force", is_flag=True, help="Replace a feed.toml and a views.sql that exist.")
@click.option("--print-sql", is_flag=True, help="Write nothing; print the SQL of a role for the service.")
@click.option("--role", help="The name of that role.  [default: clerk_feed]")
def init(
    dsn: str | None, schema: str | None, store: str, directory: Path, force: bool, print_sql: bool, role: str | None
) -> None:
    """Write a feed.toml and a views.sql to start from.

    With --dsn, looks for what could be products, categories, orders, customers and pages in your database and drafts
    the views from it. What it does not find is marked TODO, and PostgreSQL refuses the script until it is filled in.
    """
    _check_store(store)
    if print_sql:
        if dsn is not None or schema is not None:
            raise click.UsageError("--print-sql looks at no database: leave --dsn and --schema out")
        click.echo(_role_sql(role or "clerk_feed", store), nl=False)
        return
    if role is not None:
        raise click.UsageError("--role goes with --print-sql")
    if schema is not None and dsn is None:
        raise click.UsageError("--schema says where to look in a database: name it with --dsn")
    paths = directory / "feed.toml", directory / "views.sql"
    _refuse_to_overwrite(paths, force=force)
    found = asyncio.run(_look(dsn, schema, store)) if dsn is not None else _Found(typical(store))
    if not any(view.table for view in found.views.values()):
        raise click.ClickException(
            f"nothing in the database {found.database} looks like a shop's products, orders or customers."
            " Without --dsn you get a template to fill in by hand."
        )
    views_sql = _views_sql(found, store)
    texts = _render("feed.toml.j2", store=store), views_sql
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            # x: a file that came into being just now is not overwritten either.
            with path.open("w" if force else "x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: it can't be written: {error.strerror}") from None
    console = Console(highlight=False, markup=False, soft_wrap=True)
    _report(console, found, views_sql, paths[1])
    _next_steps(console, found, store, paths, dsn is not None)


def _check_store(store: str) -> None:
    """Hold the store's name against the rule of feed.toml."""
    try:
        parse(f'[stores.{json.dumps(store)}]\npublic_key = "-"', {})
    except SettingsError as error:
        raise click.UsageError(f"--store: {error}") from None


def _refuse_to_overwrite(paths: tuple[Path, ...], *, force: bool) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there and not force:
        raise click.ClickException(
            f"{' and '.join(there)} {'exist' if len(there) > 1 else 'exists'} already; nothing was written."
            " Choose another folder with --directory, or replace both files with --force."
        )


async def _look(dsn: str, schema: str | None, store: str) -> _Found:
    """Read the catalog of a database and recognise what is there."""
    try:
        # No prepared statements: it may be PgBouncer that answers.
        connection = await asyncpg.connect(dsn, timeout=_CONNECT_SECONDS, statement_cache_size=0)
    except (ValueError, asyncpg.InterfaceError):
        # Their text may quote a part of the DSN that is the password.
        raise click.ClickException(
            "--dsn can't be understood; it must be postgresql://USER:PASSWORD@HOST/DATABASE, with characters such as"
            " @ : / # ? in the password written as %40 %3A %2F %23 %3F"
        ) from None
    except (asyncpg.PostgresError, OSError) as error:
        raise click.ClickException(f"the database could not be reached: {error or type(error).__name__}") from None
    try:
        if taken := await taken_names(connection, store):
            raise click.ClickException(
                f"the schema {store} holds tables already ({', '.join(map(shown, taken[:3]))}…), and the views need"
                f" one of their own. Name the store otherwise, e.g. --store {store}-feeds"
            )
        known = await schemas(connection)
        if schema is not None and schema not in known:
            raise click.ClickException(
                f'--schema "{schema}": no such schema with tables; there are {", ".join(map(shown, known)) or "none"}'
            )
        tables = await read_tables(connection, schema, store)
        database = await connection.fetchval("select current_database()::text")
        return _Found(draft(tables, store), shown(database))
    except asyncpg.PostgresError as error:
        raise click.ClickException(f"the catalog of the database could not be read: {error}") from None
    finally:
        await connection.close(timeout=5)


def _views_sql(found: _Found, store: str) -> str:
    """The script that creates the views, with what was not recognised as comments."""
    schema = identifier(store)
    samples = typical(store)
    kinds = {kind for feed, kinds in _ADDRESSED.items() if found.views[feed].table for kind in kinds}
    sql = "\n".join(attribute.sql for view in found.views.values() for attribute in view.attributes)
    kinds |= {kind for kind in _ADDRESSES if f".address('{kind}'" in sql}
    feeds = [
        (feed, view, _render("view.sql.j2", schema=schema, view=view if view.table else samples[feed]).rstrip())
        for feed, view in found.views.items()
    ]
    return _render(
        "views.sql.j2",
        store=store,
        schema=schema,
        database=found.database,
        addresses=[(kind, example) for kind, example in _ADDRESSES.items() if kind in kinds],
        feeds=feeds,
        indexes=_indexes(found),
    )


def _indexes(found: _Found) -> list[str]:
    return list(dict.fromkeys(index for view in found.views.values() for index in view.indexes))


def _role_sql(role: str, store: str) -> str:
    return _render(
        "role.sql.j2",
        role=identifier(role),
        role_in_url=quote(role, safe=""),
        store=store,
        schema=identifier(store),
        owned_schema=owned_schema(role),
        migrations=[f"{migration.number:03} {migration.name}" for migration in migrations()],
    )


def _render(template: str, **values: object) -> str:
    environment = jinja2.Environment(  # noqa: S701 (SQL and TOML are no HTML; identifiers are quoted as SQL has it)
        loader=jinja2.PackageLoader("app.cli"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["shown"] = lambda value: shown(str(value))
    environment.filters["commented"] = lambda sql: "\n".join(f"-- {line}".rstrip() for line in sql.splitlines())
    environment.filters["comment"] = lambda text: textwrap.fill(
        text, 114, initial_indent="-- ", subsequent_indent="--   ", break_on_hyphens=False
    )
    return environment.get_template(template).render(**values)


def _report(console: Console, found: _Found, views_sql: str, path: Path) -> None:
    """What was guessed for each feed and why, and what is left to do, by line."""
    if found.database:
        console.print(f"Looked at the catalog of {found.database}; nothing was changed.\n")
        for feed in FEEDS:
            _report_feed(console, found.views[feed])
    open_lines = list(_open_lines(views_sql))
    console.print(f"To fill in, {len(open_lines)} {'place' if len(open_lines) == 1 else 'places'} of {path}:")
    for number, line in open_lines:
        console.print(f"  line {number:<4} {line}")
    if indexes := _indexes(found):
        console.print("\nIndexes that are missing on your tables, without which pages are slow:")
        for index in indexes:
            console.print(f"  {shown(index)}")


def _report_feed(console: Console, view: View) -> None:
    if view.table is None:
        console.print(f"{view.feed:<11} nothing was recognised; a commented-out view is in the script\n")
        return
    console.print(f"{view.feed:<11} {shown(str(view.table))}")
    console.print(f"  because   {'; '.join(view.why)}")
    width = max(len(attribute.name) for attribute in view.attributes)
    for attribute in view.attributes:
        console.print(f"  {'TODO ' if attribute.is_open else '     '}{attribute.name:<{width}}  {attribute.why}")
    if not view.has_modified_at:
        console.print("  No column like updated_at: every sync is a full one.")
    if view.remarks:
        console.print(f"  To decide: which rows to serve. {'; '.join(view.remarks[1:])}")
    console.print()


def _open_lines(views_sql: str) -> list[tuple[int, str]]:
    """The lines that a person must complete, by number."""
    return [
        (number, line.strip())
        for number, line in enumerate(views_sql.splitlines(), 1)
        if TODO in line and not line.lstrip().startswith("--")
    ]


def _next_steps(console: Console, found: _Found, store: str, paths: tuple[Path, ...], looked: bool) -> None:
    config, views = (shlex.quote(str(path)) for path in paths)
    feeds = [feed for feed in FEEDS if found.views[feed].table]
    query = "?limit={{limit}}&offset={{offset}}&modified_after={{modified_after}}"
    urls = "\n".join(f"       https://YOUR-FEED-HOST/{store}/{feed}{query}" for feed in feeds)
    review = "Review it and fill in the TODO lines" if looked else "Put your tables and columns in it"
    serve = "clerk-feed serve" if config == "feed.toml" else f"clerk-feed serve --config {config}"
    console.print(
        f"""
Wrote {config} and {views}. Next:

  1. {review}: {views}
  2. Export what feed.toml reads from the environment:
       export DATABASE_URL='postgresql://USER:PASSWORD@HOST/DATABASE'
       export CLERK_PUBLIC_KEY='…'    # my.clerk.io, Settings, API keys
  3. Create the views:
       psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f {views}
  4. Make a role that can read them and nothing else, and name it in DATABASE_URL:
       clerk-feed init --print-sql --store {store} > role.sql
       psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f role.sql
  5. Serve them:
       {serve}
  6. In Clerk's Data Sync, with token authentication on and Page Size 1000:
{urls}
     Incremental Time: leave it empty for full syncs, which also delete from Clerk what is gone from your shop. With a
     value, only what changed is read, from views with modified_at."""  # noqa: S608 (no SQL)
    )
