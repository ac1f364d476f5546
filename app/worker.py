"""A worker: one process that serves the feeds and the operators' pages on sockets its parent opened.

Started by the supervisor as `python -m app.worker FD`. Over the socket FD it is told what to serve, says when it
answers, and learns that the parent is gone.
"""

import asyncio
import gc
import logging
import os
import socket
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import asyncpg
import click
import msgspec
import uvloop
from starlette.types import ASGIApp

from app import __version__
from app.admin import open_admin
from app.catalog.pool import LOST
from app.catalog.schema import SchemaError
from app.hosting import host, stop_on_signals
from app.orders import Orders, Ready, Unable
from app.protocol.feeds import FEEDS
from app.protocol.problems import FEED_MISSING, Refusal
from app.service import Service, StartError, open_service
from app.settings import Settings, of_file, replace
from app.sockets import url_of
from app.status.events import Emit, Events
from app.status.log import ForeignLines, Log
from app.status.metrics_folder import inherited_folder

_ORPHANED = 70
"""Exit status of a worker whose parent is gone (EX_SOFTWARE)."""


def main() -> None:
    """Serve until told to stop."""
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        with parent.makefile("rb") as lines:
            line = lines.readline()
        if not line:
            sys.exit(_ORPHANED)
        orders = msgspec.json.decode(line, type=Orders)
        settings = of_file(orders.text, Path(orders.path))
        # Rows become garbage by the ten thousand and in no cycles: collecting often finds nothing, for 10 % of a
        # page's time.
        gc.set_threshold(50_000, 20, 100)
        status = 0
        try:
            asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_serve(settings, orders, parent))
        except (StartError, SchemaError) as error:
            _tell(parent, Unable(str(error)))
            status = 1
        # uvloop (0.23) may wait for ever while it closes its loop, one time in a hundred. Nothing is left to be closed.
        sys.stdout.flush()
        os._exit(status)


async def _serve(settings: Settings, orders: Orders, parent: socket.socket) -> None:
    stop = stop_on_signals()
    orphaned = asyncio.create_task(_end_with(parent))
    public = [socket.socket(fileno=number) for number in orders.public]
    admin = socket.socket(fileno=orders.admin)
    log = Log()
    emit = Events(log)
    # asyncpg tells of every connection it can't restore, with a traceback; our events say it once.
    logging.getLogger("asyncpg").propagate = False
    logging.getLogger("asyncpg").addHandler(logging.NullHandler())
    logging.getLogger().addHandler(ForeignLines(emit))
    try:
        async with AsyncExitStack() as stack:
            opening = asyncio.create_task(_open(settings, orders.dsn, emit, stack))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                opening.cancel()
                with suppress(asyncio.CancelledError):
                    await opening
                return
            stopping.cancel()
            service, admin_app = opening.result()
            server, operators = settings.server, replace(settings.server, client_ca="")
            urls = [url_of(listener, tls=server.tls) for listener in public]
            if orders.greets:
                _greet(service, urls, url_of(admin, tls=server.admin_tls))
            async with asyncio.TaskGroup() as group:
                group.create_task(host(service.app, public, server, stop, tls=server.tls))
                group.create_task(host(admin_app, [admin], operators, stop, tls=server.admin_tls))
                _tell(parent, Ready(service.database))
                warming = asyncio.create_task(service.warm())
                listing = asyncio.create_task(_list(service, settings, urls[0])) if orders.greets else None
                await stop.wait()
                warming.cancel()
                if listing:
                    listing.cancel()
    finally:
        orphaned.cancel()
        for listener in (*public, admin):
            listener.close()
        log.close()


async def _open(settings: Settings, dsn: str, emit: Emit, stack: AsyncExitStack) -> tuple[Service, ASGIApp]:
    service = await stack.enter_async_context(open_service(settings, dsn, emit, measure=True))
    return service, await stack.enter_async_context(open_admin(settings, dsn, inherited_folder(), emit))


def _tell(parent: socket.socket, word: Ready | Unable) -> None:
    with suppress(OSError):  # it is gone, and we shall be
        parent.setblocking(True)
        parent.sendall(msgspec.json.encode(word) + b"\n")
        parent.setblocking(False)


async def _end_with(parent: socket.socket) -> None:
    """End at once when the parent is gone: nobody would stop us, and its successor wants the addresses."""
    parent.setblocking(False)
    with suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(parent, 1024):
            pass
    os._exit(_ORPHANED)


def _greet(service: Service, urls: list[str], admin_url: str) -> None:
    """What is running, and where."""
    click.echo(f"clerk-feed {__version__} on {service.database}")
    click.echo(f"  feeds   {', '.join(urls)}")
    click.echo(f"  admin   {admin_url}")


async def _list(service: Service, settings: Settings, url: str) -> None:
    """What was found for every feed, and what to do next. The service answers meanwhile."""
    with suppress(OSError):  # nobody reads what we print
        await _print_feeds(service, settings, url)


async def _print_feeds(service: Service, settings: Settings, url: str) -> None:
    for store in settings.stores.values():
        click.echo(f"\n  store {store.name}")
        for feed in FEEDS:
            try:
                source = await service.sources.of(store, feed)
                state = f"{source.relation}" + ("" if source.has_modified_at else "  (no modified_at: full syncs only)")
            except Refusal as refusal:
                missing = refusal.problem is FEED_MISSING
                state = f"none: {refusal.detail}" if missing else f"not servable: {refusal.detail} {refusal.fix}"
            except (asyncpg.PostgresError, *LOST) as error:
                state = f"not looked at: {type(error).__name__}"
            click.echo(f"    {url}/{store.name}/{feed}  {state}")
    query = "?limit={{limit}}&offset={{offset}}&modified_after={{modified_after}}"
    click.echo(f"\n  In Clerk's Data Sync, add to each URL: {query}\n")


if __name__ == "__main__":
    main()
