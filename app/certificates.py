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
    if _is_expired(server):
        raise CertificateError(
            f'server.certfile = "{server.certfile}": it has expired, or a certificate of its chain has; renew it.'
        )
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


_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED


def _is_expired(server: Server) -> bool:
    """Whether a client would find the certificate expired: it is asked by a handshake in memory."""
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.load_cert_chain(server.certfile, server.keyfile)
    theirs.check_hostname = False
    theirs.load_verify_locations(server.certfile)
    theirs.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(to_client, to_server)
    answering = ours.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, answering, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return bool(error.verify_code == _EXPIRED)
        except ssl.SSLError:
            return False  # whether it pleases a client otherwise is not asked here
    return False


def _explained(server: Server, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f'server.keyfile = "{server.keyfile}": it is not the key of the certificate in "{server.certfile}".'
    key, path = "keyfile", server.keyfile
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(server.certfile)
    except ssl.SSLError:
        key, path = "certfile", server.certfile
    reason = f" ({error.reason})" if error.reason else ""
    return f'server.{key} = "{path}": OpenSSL can\'t read it{reason}; the file is damaged, or of an unusual kind.'
