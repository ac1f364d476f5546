"""Certificates of an authority of the tests' own, and requests over TLS that name where they come from."""

import http.client
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import trustme

from tests.conftest import Answer


class Authority:
    """A certificate authority. `files` writes what a feed.toml names."""

    def __init__(self, folder: Path, *names: str) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca_file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))
        self.certfile, self.keyfile = folder / "server.pem", folder / "server.key"
        issued = self._ca.issue_cert(*(names or ("127.0.0.1", "localhost")))
        issued.private_key_pem.write_to_path(str(self.keyfile))
        for number, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(str(self.certfile), append=number > 0)

    @property
    def settings(self) -> str:
        """The lines of [server]."""
        return f'certfile = "{self.certfile}"\nkeyfile = "{self.keyfile}"'

    def client(self, *, authority: "Authority | None" = None) -> ssl.SSLContext:
        """What a client of the server needs. With `authority` it shows a certificate that this one issued."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if authority is not None:
            authority._ca.issue_cert("client@shop.example").configure_cert(context)  # noqa: SLF001
        return context


def ask(
    url: str,
    path: str,
    *,
    context: ssl.SSLContext | None = None,
    source: str = "",
    headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
) -> Answer:
    """GET with headers in the order given, duplicates too. `source` is the address to ask from."""
    parts = urlsplit(url)
    origin = (source, 0) if source else None
    connection = (
        http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=30, context=context, source_address=origin
        )
        if context
        else http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30, source_address=origin)
    )
    try:
        connection.putrequest("GET", path, skip_accept_encoding=True)
        for name, value in headers.items() if isinstance(headers, Mapping) else headers or ():
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders()
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def shaken(url: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection after its TLS handshake, which may fail."""
    parts = urlsplit(url)
    plain = socket.create_connection((parts.hostname, parts.port), timeout=30)
    try:
        return context.wrap_socket(plain, server_hostname=parts.hostname)
    except (OSError, ssl.SSLError):
        plain.close()
        raise
