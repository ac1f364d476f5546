"""Our certificate, and whose certificates we ask for: checked before a socket is opened."""

import ssl
from pathlib import Path

from app.settings import Server


class CertificateError(Exception):
    """certfile, keyfile or client_ca can't be used. The message is one line that names the key and the file."""


def require_usable(server: Server) -> None:
    """Return if TLS can be offered as the settings say, or is not asked for. Raises CertificateError."""
    if not server.certfile:
        return
    for key in ("certfile", "keyfile", "client_ca"):
        path = getattr(server, key)
        if path:
            _require_readable(key, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password given OpenSSL would ask for one on the terminal.
        context.load_cert_chain(server.certfile, server.keyfile, password=lambda: "")
    except ssl.SSLError as error:
        raise CertificateError(_explained(server, error)) from None
    if server.client_ca:
        try:
            context.load_verify_locations(server.client_ca)
        except ssl.SSLError:
            raise CertificateError(
                f'server.client_ca = "{server.client_ca}": it holds no certificates in PEM form.'
            ) from None


def _require_readable(key: str, path: str) -> None:
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise CertificateError(f'server.{key} = "{path}": it can\'t be read: {error.strerror}.') from None
    wanted = b"PRIVATE KEY-----" if key == "keyfile" else b"-----BEGIN CERTIFICATE-----"
    if wanted not in text:
        kind = "private key" if key == "keyfile" else "certificate"
        raise CertificateError(f'server.{key} = "{path}": it holds no {kind} in PEM form.')
    if key == "keyfile" and b"ENCRYPTED" in text:
        raise CertificateError(
            f'server.keyfile = "{path}": the key is encrypted, and nobody is there to type its password; write it'
            " without one: openssl pkey -in FILE -out NEW, readable by the service only."
        )


def _explained(server: Server, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f'server.keyfile = "{server.keyfile}": it is not the key of the certificate in "{server.certfile}".'
    return f'server.certfile = "{server.certfile}": OpenSSL can\'t use it with its key ({error.reason}).'
