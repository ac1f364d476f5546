"""`clerk-feed serve`: run the service."""

import asyncio
import gc
import logging
import socket
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import click
import uvloop
from starlette.types import ASGIApp

from app import __version__
from app.admin import open_admin
from app.catalog.embedded import Embedded, EmbeddedError
from app.catalog.schema import SchemaError
from app.certificates import CertificateError, require_usable
from app.hosting import PortTakenError, host, listen, stop_on_signals, url_of
from app.protocol.problems import FEED_MISSING, Refusal
from app.service import Service, StartError, described, open_service
from app.settings import DEFAULT_PATH, Server, Settings, SettingsError, is_loopback, load, replace, split_address
from app.status.events import Emit, Events, Started, Stopping
from app.status.log import ForeignLines, Log
from app.status.metrics import MetricsFolderError, metrics_folder


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    help="The settings to serve by.",
)
def serve(path: Path) -> None:
    """Serve the feeds named in feed.toml until stopped.

    Prints the addresses and what was found for every feed, then one line a request: for people on a terminal, JSON
    otherwise. SIGTERM or Ctrl-C stops it; answers under way get shutdown_timeout to finish.
    """
    try:
        settings = load(path)
        require_usable(settings.server)
        with ExitStack() as stack:
            dsn = database(settings, stack)
            # Rows become garbage by the ten thousand and in no cycles: collecting often finds nothing, for 10 % of
            # a page's time.
            gc.set_threshold(50_000, 20, 100)
            uvloop.run(_serve(settings, dsn, stack.enter_context(metrics_folder())))
    except (SettingsError, CertificateError, StartError, SchemaError, EmbeddedError, MetricsFolderError) as error:
        raise click.ClickException(str(error)) from None


def database(settings: Settings, stack: ExitStack) -> str:
    """The DSN to use, with the embedded server started where none is set, and stopped by the stack."""
    if settings.database.dsn is not None:
        return settings.database.dsn.reveal()
    embedded = Embedded.start(Path(settings.database.data_dir))
    stack.callback(embedded.stop)
    return embedded.dsn


def bind(settings: Server) -> tuple[list[socket.socket], socket.socket]:
    """The public and the admin sockets. Raises StartError naming the key at fault."""
    seconds = settings.send_timeout.seconds
    opened: list[socket.socket] = []
    keys = [f"server.bind[{number}]" for number in range(len(settings.bind))] + ["server.admin_bind"]
    try:
        for key, address in zip(keys, [*settings.bind, settings.admin_bind], strict=True):
            try:
                opened.append(listen(address, user_timeout_seconds=seconds))
            except PortTakenError:
                raise StartError(
                    f'{key} = "{address}": another program listens there. Stop it, or choose another port.'
                ) from None
            except OSError as error:
                raise StartError(f'{key} = "{address}": it can\'t be listened on: {error.strerror}') from None
    except StartError:
        for listener in opened:
            listener.close()
        raise
    return opened[:-1], opened[-1]


async def _serve(settings: Settings, dsn: str, folder: Path) -> None:
    stop = stop_on_signals()
    listeners, admin = bind(settings.server)
    log = Log()
    emit = Events(log)
    # asyncpg tells of every connection it can't restore, with a traceback; our events say it once.
    logging.getLogger("asyncpg").propagate = False
    logging.getLogger("asyncpg").addHandler(logging.NullHandler())
    logging.getLogger().addHandler(ForeignLines(emit))
    try:
        async with AsyncExitStack() as stack:
            opening = asyncio.create_task(_open(settings, dsn, folder, emit, stack))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                opening.cancel()
                with suppress(asyncio.CancelledError):
                    await opening
                return
            stopping.cancel()
            service, admin_app = opening.result()
            tls = bool(settings.server.certfile)
            # On loopback nobody listens, and a certificate names no loopback address.
            admin_tls = tls and not is_loopback(split_address(settings.server.admin_bind)[0] or "")
            urls = tuple(url_of(listener, tls=tls) for listener in listeners)
            await _greet(service, settings, urls, url_of(admin, tls=admin_tls))
            emit(Started(urls=urls, version=__version__, database=service.database))
            async with asyncio.TaskGroup() as group:
                group.create_task(host(service.app, listeners, settings.server, stop, tls=tls))
                operators = replace(settings.server, client_ca="")
                group.create_task(host(admin_app, [admin], operators, stop, tls=admin_tls))
                await stop.wait()
                emit(Stopping(seconds=settings.server.shutdown_timeout.seconds))
    finally:
        for listener in (*listeners, admin):
            listener.close()
        log.close()


async def _open(
    settings: Settings, dsn: str, folder: Path, emit: Emit, stack: AsyncExitStack
) -> tuple[Service, ASGIApp]:
    service = await stack.enter_async_context(open_service(settings, dsn, emit, measure=True))
    return service, await stack.enter_async_context(open_admin(settings, dsn, folder, emit))


async def _greet(service: Service, settings: Settings, urls: tuple[str, ...], admin_url: str) -> None:
    """What is running, what was found, and what to do next."""
    click.echo(f"clerk-feed {__version__} on {service.database}")
    click.echo(f"  feeds   {', '.join(urls)}")
    click.echo(f"  admin   {admin_url}")
    found = await described(service, settings)
    for name in settings.stores:
        click.echo(f"\n  store {name}")
        for (store, feed), source in found.items():
            if store != name:
                continue
            if not isinstance(source, Refusal):
                state = f"{source.relation}" + ("" if source.has_modified_at else "  (no modified_at: full syncs only)")
            elif source.problem is FEED_MISSING:
                state = "none: " + source.detail
            else:
                state = f"not servable: {source.detail} {source.fix}"
            click.echo(f"    {urls[0]}/{store}/{feed}  {state}")
    query = "?limit={{limit}}&offset={{offset}}&modified_after={{modified_after}}"
    click.echo(f"\n  In Clerk's Data Sync, add to each URL: {query}\n")
