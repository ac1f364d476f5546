"""The server behind the sockets: Hypercorn over HTTP/1.1, until told to stop."""

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import h11
import hypercorn.asyncio.run
import hypercorn.protocol
from hypercorn.asyncio import serve
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from starlette.types import ASGIApp

from app.settings import Server
from app.sockets import BACKLOG

_KEEP_ALIVE_SECONDS = 10.0
_HANDSHAKE_SECONDS = 10
_ON_ITS_WAY_SECONDS = 0.25


class _OnlyHttp1(H11Protocol):
    """HTTP/1.1, whatever a client begins with or asks to upgrade to.

    Hypercorn (0.18) gives such a connection to its HTTP/2: without backpressure, and without an end, for a client that
    opens no stream is never idle. Here HTTP/2's preface is a request of the version 2.0, which the application refuses
    (505), and an upgrade is not taken up.
    """

    async def _check_protocol(self, event: h11.Request) -> None:
        return


class _WithALastMoment(TCPServer):
    """When told to stop, an idle connection may have its next request on the way, and a new one its first.

    Hypercorn closes them at once: the client of a service that is rolled would get no answer.
    """

    _had_it = False

    async def _idle_timeout(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.context.terminated.wait(), self.config.keep_alive_timeout)
            if not self._had_it:
                self._had_it = True
                await asyncio.sleep(_ON_ITS_WAY_SECONDS)
        await asyncio.shield(self._initiate_server_close())


hypercorn.protocol.H11Protocol = _OnlyHttp1  # type: ignore[attr-defined]
hypercorn.asyncio.run.TCPServer = _WithALastMoment  # type: ignore[attr-defined]


async def host(
    app: ASGIApp, listeners: Sequence[socket.socket], settings: Server, stop: asyncio.Event, *, tls: bool = False
) -> None:
    """Serve an application on listening sockets, which become the server's, until `stop` is set.

    With `tls` by the certificate of the settings (TLS 1.2 and up), and to clients of client_ca only where it is set.
    When told to stop, connections get shutdown_timeout to finish; what is left is cut off.
    """
    config = Config()
    config.backlog = BACKLOG
    config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    # Hypercorn would close a connection after 1000 requests: 25 000 items into a walk at Clerk's default limit.
    config.keep_alive_max_requests = sys.maxsize
    config.graceful_timeout = settings.shutdown_timeout.seconds
    config.alpn_protocols = ["http/1.1"]
    if tls:
        config.certfile, config.keyfile = settings.certfile, settings.keyfile
        config.ssl_handshake_timeout = _HANDSHAKE_SECONDS
        if settings.client_ca:
            config.ca_certs, config.verify_mode = settings.client_ca, ssl.CERT_REQUIRED
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = _server_log()
    ports = {listener.getsockname()[1] for listener in listeners}
    config.bind = [f"fd://{listener.detach()}" for listener in listeners]
    last = asyncio.create_task(_cut_off_after(stop, settings.shutdown_timeout.seconds + 0.5, ports))
    try:
        await serve(app, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
    finally:
        last.cancel()


async def _cut_off_after(stop: asyncio.Event, seconds: float, ports: set[int]) -> None:
    """Shut the sockets of who does not read: Hypercorn would wait until all that was written to them is taken."""
    await stop.wait()
    await asyncio.sleep(seconds)
    _shut(ports)


def _shut(ports: set[int]) -> None:
    for entry in Path("/dev/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.getsockname()[1] not in ports:
                continue
            # A listening socket is shared with the worker that takes over.
            if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                connection.shutdown(socket.SHUT_RDWR)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _server_log() -> logging.Logger:
    logger = logging.getLogger("clerk-feed.server")
    logger.setLevel(logging.WARNING)
    # An exception that reaches Hypercorn is how an answer is cut off; our own events have told of it.
    logger.addFilter(_not_the_cut)
    return logger


def _not_the_cut(record: logging.LogRecord) -> bool:
    return "Error in ASGI Framework" not in record.getMessage()
