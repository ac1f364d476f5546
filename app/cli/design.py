"""`clerk-feed design`: convert, check and preview the designs that show Clerk's results in the shop."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import click
import msgspec

from app.catalog.embedded import EmbeddedError
from app.catalog.pool import Pool
from app.catalog.source import Source, Sources
from app.cli.serve import database
from app.hosting import host, stop_on_signals
from app.protocol.feeds import FeedName
from app.protocol.problems import Refusal
from app.settings import DEFAULT_PATH, Duration, Server, Settings, SettingsError, Store, load
from app.sockets import PortTakenError, listen, url_of

if TYPE_CHECKING:
    from app.designs.examine import Examination, Finding, Used
    from app.designs.facts import Facts
    from app.designs.items import Item, Pick

T = TypeVar("T")

_SHOWABLE = ("products", "categories", "pages")


@click.group()
def design() -> None:
    """Convert, check and preview designs.

    A design is the markup that shows Clerk's results in the shop. Clerk.js 2 has another language than Clerk.js 1, and
    the attributes that a design uses must be in the feed.
    """
    if find_spec("liquid") is None:
        raise click.ClickException(
            "designs need python-liquid, which is not installed: pip install 'clerk-feed[designs]'"
        )


_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_config = click.option("--config", "path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True)
_store = click.option("--store", required=True, help="The store's name in feed.toml.")
_feed = click.option(
    "--feed",
    type=click.Choice(_SHOWABLE),
    default="products",
    show_default=True,
    help="The feed the design shows.",
)
_allow = click.option(
    "--allow",
    multiple=True,
    metavar="NAME",
    help="A filter, tag or variable that your Clerk.js has although Clerk's guide does not name it. Repeatable.",
)


@design.command()
@click.argument("old", type=_file)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write; else to stdout.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
def convert(old: Path, output: Path | None, force: bool) -> None:
    """Translate a design of Clerk.js 1 to Clerk.js 2.

    HTML and white space stay as they are; the frame of Clerk.js 2 goes around it. What no rule of Clerk's guide covers
    is left where it is, behind a comment, and listed on stderr; the exit status is 1 then. The headline, if the design
    is to show one, is {{ headline }}.
    """
    from app.designs.convert import translate

    if output is not None and output.exists() and not force:
        raise click.ClickException(f"{output} exists already; nothing was written. Replace it with --force.")
    translated = translate(_text(old))
    if output is None:
        click.echo(translated.design.encode(), nl=False)
    else:
        _write(output, translated.design)
    for left in translated.left:
        written = f"{left.written}  " if left.written else ""
        click.echo(f"{old}:{left.line}: {written}{left.why}", err=True)
    if translated.left:
        count = len(translated.left)
        left_over = "1 place is" if count == 1 else f"{count} places are"
        click.echo(
            f"{left_over} left to you: each stands behind a comment 'clerk-feed: …' in the new design.", err=True
        )
        raise SystemExit(1)


@design.command()
@click.argument("path_to_design", metavar="DESIGN", type=_file)
@_config
@_store
@_feed
@_allow
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=10_000,
    show_default=True,
    help="How many items to look at, drawn at random; 0 for all of them.",
)
def check(path_to_design: Path, path: Path, store: str, feed: FeedName, allow: tuple[str, ...], sample: int) -> None:
    """Hold a design of Clerk.js 2 against the feed's real items.

    Reports each attribute that the design uses, with its type and the share of items that have it; attributes, filters
    and variables that do not exist; arithmetic on text. Exit status 1 on errors.
    """
    from app.designs.examine import examine
    from app.designs.items import facts

    source = _text(path_to_design)

    async def count() -> "Facts":
        async with _reading(settings, dsn, chosen, feed) as (pool, found):
            return await facts(pool, found, sample or None)

    with ExitStack() as stack:
        settings, chosen, dsn = _opened(path, store, stack)
        counted = _run(count())
    examined = examine(source, counted, allow)
    _report(path_to_design, store, counted, examined)
    if examined.errors:
        raise SystemExit(1)


@design.command()
@click.argument("path_to_design", metavar="DESIGN", type=_file)
@_config
@_store
@_feed
@_allow
@click.option("--css", type=_file, help="A style sheet to show the design with; it is watched too.")
@click.option("--items", "count", type=click.IntRange(1, 200), default=12, show_default=True, help="How many to show.")
@click.option("--port", type=click.IntRange(0, 65535), default=8002, show_default=True, help="On 127.0.0.1; 0: any.")
def preview(
    path_to_design: Path,
    path: Path,
    store: str,
    feed: FeedName,
    allow: tuple[str, ...],
    css: Path | None,
    count: int,
    port: int,
) -> None:
    """Show a design of Clerk.js 2 with real items, on a page of this machine.

    The page shows items drawn at random, the first, the newest, or those with missing attributes, and the design anew
    whenever its file is saved. Ctrl-C stops it.
    """
    with ExitStack() as stack:
        settings, chosen, dsn = _opened(path, store, stack)
        _run(_preview(settings, dsn, chosen, feed, path_to_design, css, frozenset(allow), count, port))


async def _preview(
    settings: Settings,
    dsn: str,
    store: Store,
    feed: FeedName,
    path: Path,
    css: Path | None,
    allowed: frozenset[str],
    count: int,
    port: int,
) -> None:
    from app.designs.items import pick
    from app.designs.page import PickError, Preview, Subject

    stop = stop_on_signals()
    async with _reading(settings, dsn, store, feed) as (pool, source):

        async def picked(how: "Pick", attributes: list[str]) -> "list[Item]":
            try:
                return await pick(pool, source, how, count, attributes)
            except (Refusal, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                raise PickError(f"The items could not be read: {_told(error)}") from None

        try:
            listener = listen(f"127.0.0.1:{port}", user_timeout_seconds=30)
        except PortTakenError:
            raise click.ClickException(f"another program listens on port {port}; choose one with --port") from None
        url = url_of(listener)
        page = Preview(Subject(path, css, store.name, feed, source.attributes, allowed), picked, stop)
        click.echo(f"{path} with {feed} of {store.name}: {url}\nIt is shown anew when you save it. Ctrl-C stops.")
        await host(page.app(), [listener], Server(shutdown_timeout=Duration(2)), stop)


def _opened(path: Path, store: str, stack: ExitStack) -> tuple[Settings, Store, str]:
    """The settings, the store and the DSN. Raises ClickException."""
    try:
        settings = load(path)
        if store not in settings.stores:
            names = ", ".join(settings.stores)
            raise click.ClickException(f"there is no store {store!r} in {path}; the stores are {names}")
        return settings, settings.stores[store], database(settings, stack)
    except (SettingsError, EmbeddedError) as error:
        raise click.ClickException(str(error)) from None


@asynccontextmanager
async def _reading(settings: Settings, dsn: str, store: Store, feed: FeedName) -> AsyncIterator[tuple[Pool, Source]]:
    """A pool, and the feed's relation as PostgreSQL describes it, also where what is served is rendered from it."""
    feeds = {**store.feeds, feed: msgspec.structs.replace(store.feed(feed), rendered=False)}
    store = msgspec.structs.replace(store, feeds=feeds)
    pool = await Pool.open(dsn, settings.database, lambda event: None)
    try:
        yield pool, await Sources(pool, settings.database.resume_for.seconds).of(store, feed)
    finally:
        await pool.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run what reads the database. Raises ClickException naming what went wrong, and the cure where there is one."""
    try:
        return asyncio.run(work)
    except (Refusal, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise click.ClickException(_told(error)) from None


def _told(error: Exception) -> str:
    if isinstance(error, Refusal):
        return f"{error.detail} {error.fix}".strip()
    if isinstance(error, asyncpg.QueryCanceledError):
        return "PostgreSQL took longer than database.statement_timeout in feed.toml; raise it, or look at fewer items"
    return f"the database could not be asked: {error or type(error).__name__}"


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is not in UTF-8: byte {error.start} does not fit") from None
    except OSError as error:
        raise click.ClickException(f"{path} can't be read: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        raise click.ClickException(f"{path} can't be written: {error.strerror}") from None


def _report(path: Path, store: str, facts: "Facts", examined: "Examination") -> None:
    seen, total = facts.items.seen, facts.total
    if facts.is_sample:
        click.echo(f"{path} with {facts.feed} of {store}: {seen:,} items, drawn at random out of {total:,} rows")
    elif seen < total:
        click.echo(
            f"{path} with {facts.feed} of {store}: {seen:,} items; {total - seen:,} rows lack what Clerk requires"
        )
    else:
        click.echo(f"{path} with {facts.feed} of {store}: {seen:,} items")
    if not seen:
        click.echo("Without items only the names of attributes could be checked.")
    if examined.used:
        rows = [("attribute", "type", "in", "line")]
        rows += [(used.name, used.kind or "-", _share(used), ", ".join(map(str, used.lines))) for used in examined.used]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        click.echo()
        for row in rows:
            click.echo(
                "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + "  " + row[3]
            )
    _list("errors", path, examined.errors)
    _list("warnings", path, examined.warnings)
    if not examined.errors:
        click.echo("\nNo errors.")


def _share(used: "Used") -> str:
    from app.designs.examine import percent

    return percent(used.share) + ("" if used.of == "items" else f" of {used.of}")


def _list(title: str, path: Path, findings: "Sequence[Finding]") -> None:
    if findings:
        click.echo(f"\n{title}")
    for found in findings:
        click.echo(f"  {path}:{found.line}: {found.text}")
