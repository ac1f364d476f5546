"""Who is calling, and whether the way here was safe from listeners."""

from starlette.requests import Request

from app.protocol.problems import NOT_SECURE, PROXY_NOT_TRUSTED, Refusal
from app.settings import is_loopback

_FORWARDING = ("forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "cf-connecting-ip")


def address_of(request: Request) -> str:
    """The address of whoever opened the connection; "unix" where there is none."""
    return request.client.host if request.client else "unix"


def require_secure(request: Request) -> None:
    """Return if nobody could listen. Raises Refusal.

    Plain HTTP is served only to a direct peer on loopback. A forwarding header means that it is not direct.
    """
    for header in _FORWARDING:
        if header in request.headers:
            raise Refusal(
                PROXY_NOT_TRUSTED,
                f"The header {header} arrived: the request came through a proxy, or claims to.",
            )
    if request.scope["scheme"] != "https" and not is_loopback(address_of(request)):
        raise Refusal(NOT_SECURE, "The request arrived over plain HTTP from another machine.")
