"""HTTP Basic authentication (RFC 7617), compared in constant time."""

import base64
import binascii
import hashlib
import hmac

from app.protocol.problems import BASIC_REQUIRED, Refusal
from app.settings import Credentials

_CHALLENGE = {"WWW-Authenticate": 'Basic realm="clerk-feed", charset="UTF-8"'}


def check(header: str | None, wanted: Credentials) -> None:
    """Return if the Authorization header carries the wanted credentials. Raises Refusal(BASIC_REQUIRED)."""
    if header is None:
        raise Refusal(BASIC_REQUIRED, "The request carries no Authorization header.", headers=_CHALLENGE)
    scheme, _, encoded = header.strip().partition(" ")
    if scheme.lower() != "basic":
        raise Refusal(BASIC_REQUIRED, "The Authorization header is not of the scheme Basic.", headers=_CHALLENGE)
    try:
        given = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(BASIC_REQUIRED, "The Authorization header is not valid base64.", headers=_CHALLENGE) from None
    if not hmac.compare_digest(_digest(given), _digest(_joined(wanted))):
        raise Refusal(BASIC_REQUIRED, "The user name or the password is wrong.", headers=_CHALLENGE)


def _joined(credentials: Credentials) -> bytes:
    return f"{credentials.username}:{credentials.password.reveal()}".encode()


def _digest(value: bytes) -> bytes:
    # Of equal length whatever was given, so that the comparison tells nothing of the length either.
    return hashlib.sha256(value).digest()
