"""The certificate that TLS is offered with: usable, and for how long.

Python's ssl tells the dates of a certificate only to who has shaken hands with it. So that is done, in memory, by a
client that trusts exactly this certificate and asks for no date.
"""

import ssl
import time
from contextlib import suppress
from typing import Any

from app.certificates import CertificateError, require_usable
from app.diagnosis.findings import Finding, count_of, error, warning
from app.settings import Server

_DAY_SECONDS = 86_400
_SOON_DAYS = 21
_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL (x509_vfy.h), which Python has no name for."""


class Certificates:
    """The certificates of some settings, read once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._own: dict[str, Any] = {}
        if server.certfile:
            with suppress(ssl.SSLError, OSError):
                self._own = _shown_by(server)

    @property
    def end(self) -> str | None:
        """The day on which our own certificate ends, as 2027-01-31; None where none can be read."""
        return _day(self._own["notAfter"]) if self._own else None

    def findings(self) -> list[Finding]:
        """What is wrong with certfile, keyfile and client_ca; nothing where TLS is not offered here."""
        server, found = self._server, []
        if not server.certfile:
            return []
        if self._own:
            above = _authorities(server.certfile)
            found += _time_findings("certfile", server.certfile, [self._own, *(c for c in above if c != self._own)])
        if not count_of(found, "error"):
            try:
                require_usable(server)
            except CertificateError as fault:
                return [*found, error("tls", str(fault))]
        if not self._own:
            what = f'server.certfile = "{server.certfile}": a client can\'t use it.'
            return [error("tls", what, "Use one for servers, in PEM form, its intermediate ones behind it.")]
        if server.client_ca:
            with suppress(ssl.SSLError, OSError):
                found += _time_findings("client_ca", server.client_ca, _authorities(server.client_ca))
        return found


def _shown_by(server: Server) -> dict[str, Any]:
    """The certificate that a client is shown. Raises ssl.SSLError."""
    offering = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Without a password given OpenSSL would ask for one on the terminal.
    offering.load_cert_chain(server.certfile, server.keyfile, password=lambda: "")
    looking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    looking.check_hostname = False
    looking.load_verify_locations(server.certfile)
    looking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = looking.wrap_bio(to_client, to_server)
    sides = (client, offering.wrap_bio(to_server, to_client, server_side=True))
    for _ in range(3):
        for side in sides:
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return client.getpeercert() or {}


def _authorities(path: str) -> list[dict[str, Any]]:
    """The certificates in a file that stand for others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    return [dict(certificate) for certificate in context.get_ca_certs()]


def _time_findings(setting: str, path: str, certificates: list[dict[str, Any]]) -> list[Finding]:
    found = []
    for certificate in certificates:
        place = f'server.{setting} = "{path}": {_name(certificate)}'
        first, last = (ssl.cert_time_to_seconds(certificate[key]) for key in ("notBefore", "notAfter"))
        now = time.time()
        renew = "then reload the service: kill -HUP its process, or systemctl reload."
        if last < now:
            what = f"{place} expired on {_day(certificate['notAfter'])}, and nobody accepts it."
            found.append(error("tls-expired", what, f"Renew it, {renew}"))
        elif first > now:
            what = f"{place} is valid from {_day(certificate['notBefore'])} on."
            found.append(error("tls-not-yet", what, "Check the clock of this machine, or wait."))
        elif last < now + _SOON_DAYS * _DAY_SECONDS:
            days = int((last - now) / _DAY_SECONDS)
            what = f"{place} expires on {_day(certificate['notAfter'])}, in {days} days."
            found.append(warning("tls-expires", what, f"Renew it in time, {renew}"))
    return found


def _day(moment: str) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(ssl.cert_time_to_seconds(moment)))


def _name(certificate: dict[str, Any]) -> str:
    """What a certificate is for, as a person knows it."""
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    subject = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return "the certificate of " + ", ".join((names or subject or ["nobody in particular"])[:3])
