"""Which request something belongs to: a short id, in every line of the log and in the answer.

Behind Cloudflare it is the CF-Ray of the request, so that their log and ours can be read side by side.
"""

import random
import re
from contextvars import ContextVar

HEADER = b"x-request-id"

_current: ContextVar[str | None] = ContextVar("request", default=None)
_RAY = re.compile(r"[0-9A-Za-z-]{1,64}", re.ASCII)


def begin(ray: str | None) -> str:
    """The id of a request that begins: its CF-Ray, or one made. What runs for it knows it by `current`."""
    id = ray if ray is not None and _RAY.fullmatch(ray) else f"{random.getrandbits(64):016x}"
    _current.set(id)
    return id


def current() -> str | None:
    """The id of the request that is being answered; None outside of any."""
    return _current.get()
