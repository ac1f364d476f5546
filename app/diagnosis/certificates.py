"""The certificate that TLS is offered with: usable, and for how long."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from app.certificates import CertificateError, require_usable
from app.diagnosis.findings import Finding, error, warning
from app.settings import Server

_SOON = timedelta(days=21)


def certificate_findings(server: Server, now: datetime | None = None) -> list[Finding]:
    """What is wrong with certfile, keyfile and client_ca; nothing where TLS is not offered here."""
    if not server.certfile:
        return []
    try:
        require_usable(server)
    except CertificateError as fault:
        return [error("tls", str(fault))]
    now = now or datetime.now(UTC)
    found = _time_findings("certfile", server.certfile, now)
    if server.client_ca:
        found += _time_findings("client_ca", server.client_ca, now)
    return found


def ends(server: Server) -> str | None:
    """The day on which the certificate ends, as 2027-01-31; None where there is none that can be read."""
    if not server.certfile:
        return None
    try:
        certificate = x509.load_pem_x509_certificates(Path(server.certfile).read_bytes())[0]
    except (OSError, ValueError):
        return None
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"


def _time_findings(key: str, path: str, now: datetime) -> list[Finding]:
    place = f'server.{key} = "{path}"'
    try:
        certificates = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError):
        return [error("tls", f"{place}: its certificates can't be read.", "Write them in PEM form.")]
    found = []
    for certificate in certificates:
        name = certificate.subject.rfc4514_string() or "its certificate"
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if last < now:
            found.append(
                error(
                    "tls-expired",
                    f"{place}: {name} expired on {last:%Y-%m-%d}, and Clerk refuses it.",
                    "Renew it and restart the service.",
                )
            )
        elif first > now:
            found.append(
                error(
                    "tls-not-yet",
                    f"{place}: {name} is valid from {first:%Y-%m-%d %H:%M} UTC on.",
                    "Check the clock of this machine, or wait.",
                )
            )
        elif last < now + _SOON:
            found.append(
                warning(
                    "tls-expires",
                    f"{place}: {name} expires on {last:%Y-%m-%d}, in {(last - now).days} days.",
                    "Renew it in time and restart the service.",
                )
            )
    return found
