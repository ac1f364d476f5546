"""Clerk's tokens: verified by asking Clerk, remembered in an LRU.

Never open on failure: while Clerk can't be asked, only a token it has vouched for lately passes.
"""

import asyncio
import base64
import binascii
import hashlib
import time
from typing import Protocol

import msgspec
from cachetools import LRUCache

from app.clerk.api import ClerkUnreachableError, Verdict
from app.protocol.problems import CLERK_UNREACHABLE, TOKEN_MALFORMED, TOKEN_MISSING, TOKEN_REJECTED, Refusal
from app.settings import Access, Store
from app.status.events import ClerkUnreachable, Emit, TokenVerified

REJECTION_SECONDS = 30.0
"""How long a rejection is remembered: long enough against a loop, short enough for a corrected key."""

UNREACHABLE_SECONDS = 1.0
"""How long not to ask again for a token after Clerk could not be asked."""

MAX_TOKEN_BYTES = 8192

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="clerk-feed"'}
"""RFC 9110 wants one with every 401. The token itself comes in X-Clerk-Authorization, as Clerk's guide has it."""


class Verifier(Protocol):
    """Who knows whether a token is good."""

    async def verify(self, token: str, public_key: str) -> Verdict: ...


class _Remembered(msgspec.Struct):
    """A token Clerk has vouched for. Times are of the monotonic clock, `expires` is unix seconds."""

    asked: float
    expires: float | None
    unreachable_until: float = 0.0


class Tokens:
    """The tokens of all stores. A token is known by a digest of store and token only."""

    def __init__(self, verifier: Verifier, settings: Access, emit: Emit) -> None:
        self._verifier = verifier
        self._ttl = settings.token_ttl.seconds
        self._grace = settings.token_grace.seconds
        self._emit = emit
        self._good: LRUCache[bytes, _Remembered] = LRUCache(settings.token_cache)
        # On their own: a flood of wrong tokens must not push the importer's out.
        self._rejected: LRUCache[bytes, float] = LRUCache(settings.token_cache)
        self._asking: dict[bytes, asyncio.Task[Verdict]] = {}
        self.known_total = 0
        """Checks so far that did not ask Clerk, because it had vouched for the token."""

    def __len__(self) -> int:
        """How many verified tokens are remembered."""
        return len(self._good)

    def is_known(self, store: Store, token: str) -> bool:
        """Whether the token passes without asking Clerk."""
        return self._fresh(_digest(store, token))

    def passes(self, store: Store, token: str) -> bool:
        """The same, for a request: it is counted."""
        known = self.is_known(store, token)
        self.known_total += known
        return known

    def remembers(self, store: Store, token: str) -> bool:
        """Whether Clerk has vouched for the token before, however long ago, and not taken it back since."""
        return _digest(store, token) in self._good

    async def check(self, store: Store, token: str) -> None:
        """Return if the token is good for the store. Raises Refusal: TOKEN_REJECTED or CLERK_UNREACHABLE."""
        digest = _digest(store, token)
        if self._fresh(digest):
            self.known_total += 1
            return
        now = time.monotonic()
        if now < self._rejected.get(digest, 0.0):
            raise _rejected(store)
        known = self._good.get(digest)
        try:
            if known and now < known.unreachable_until:
                raise ClerkUnreachableError("it could not be asked a moment ago")
            verdict = await self._ask_once(digest, store, token)
        except ClerkUnreachableError as error:
            if known and self._in_grace(known):
                return
            raise Refusal(
                CLERK_UNREACHABLE,
                f"Asking Clerk about the token failed: {error}.",
                headers={"Retry-After": "30"},
            ) from None
        if not verdict.good:
            raise _rejected(store)

    def _fresh(self, digest: bytes) -> bool:
        known = self._good.get(digest)
        return (
            known is not None
            and time.monotonic() < known.asked + self._ttl
            and (known.expires is None or time.time() < known.expires)
        )

    def _in_grace(self, known: _Remembered) -> bool:
        return time.monotonic() < known.asked + self._grace and (known.expires is None or time.time() < known.expires)

    async def _ask_once(self, digest: bytes, store: Store, token: str) -> Verdict:
        """Ask Clerk; callers with the same token wait for the same answer."""
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.create_task(self._ask(digest, store, token))
            self._asking[digest] = task
            task.add_done_callback(lambda done: self._asked(digest, done))
        # Shielded: one caller that gives up must not end the call for the others.
        return await asyncio.shield(task)

    def _asked(self, digest: bytes, done: asyncio.Task[Verdict]) -> None:
        self._asking.pop(digest, None)
        if not done.cancelled():
            done.exception()  # looked at, so that asyncio does not complain when every caller has left

    async def _ask(self, digest: bytes, store: Store, token: str) -> Verdict:
        started = time.monotonic()
        try:
            verdict = await self._verifier.verify(token, store.public_key)
        except ClerkUnreachableError as error:
            known = self._good.get(digest)
            if known:
                known.unreachable_until = time.monotonic() + UNREACHABLE_SECONDS
            self._emit(
                ClerkUnreachable(
                    store=store.name,
                    cause=str(error),
                    seconds=time.monotonic() - started,
                    grace=known is not None and self._in_grace(known),
                )
            )
            raise
        now = time.monotonic()
        self._emit(TokenVerified(store=store.name, good=verdict.good, seconds=now - started))
        if verdict.good:
            times = [t for t in (verdict.expires, _jwt_expires(token)) if t is not None]
            self._good[digest] = _Remembered(asked=now, expires=min(times, default=None))
            self._rejected.pop(digest, None)
        else:
            self._good.pop(digest, None)
            self._rejected[digest] = now + REJECTION_SECONDS
        return verdict


def bearer(header: str | None) -> str:
    """The token of an X-Clerk-Authorization header. Raises Refusal, never with the header's value in it."""
    if header is None:
        raise Refusal(TOKEN_MISSING, "The request carries no header X-Clerk-Authorization.", headers=_CHALLENGE)
    scheme, _, token = header.strip().partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or len(token.split()) != 1:
        raise Refusal(TOKEN_MALFORMED, "X-Clerk-Authorization arrived, but not as 'Bearer TOKEN'.", headers=_CHALLENGE)
    if len(token) > MAX_TOKEN_BYTES or not token.isascii() or not token.isprintable():
        raise Refusal(
            TOKEN_MALFORMED,
            f"The token is longer than {MAX_TOKEN_BYTES} characters or not printable ASCII.",
            headers=_CHALLENGE,
        )
    return token


def _rejected(store: Store) -> Refusal:
    return Refusal(TOKEN_REJECTED, f"Clerk rejected the token for the store {store.name}.", headers=_CHALLENGE)


def _digest(store: Store, token: str) -> bytes:
    # Length first: no store and token can be read as another store and token.
    return hashlib.blake2b(f"{len(store.name)}:{store.name}:{token}".encode(), digest_size=32).digest()


class _Claims(msgspec.Struct):
    exp: float | None = None


def _jwt_expires(token: str) -> float | None:
    """`exp` of the token itself where it is a JWT. Clerk has vouched for it; this only shortens its life here."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        expires = msgspec.json.decode(payload, type=_Claims).exp
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return expires if expires and expires > 0 else None
