"""The gate: who may read, asked in a fixed order, the cheapest and least telling question first."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
from starlette.requests import Request

from app.access import basic
from app.access.client import Client, Clients
from app.access.pace import Pace, Refusals
from app.access.places import Places
from app.access.tokens import Tokens, bearer
from app.protocol.problems import (
    BASIC_REQUIRED,
    STORE_UNKNOWN,
    TOKEN_MALFORMED,
    TOKEN_MISSING,
    TOKEN_REJECTED,
    VERSION_NOT_SUPPORTED,
    Refusal,
)
from app.settings import Access, Store

_COUNTED = (BASIC_REQUIRED, TOKEN_MISSING, TOKEN_MALFORMED, TOKEN_REJECTED)


class Gate:
    """Admits Clerk's importer, and nobody else."""

    def __init__(self, stores: Mapping[str, Store], tokens: Tokens, settings: Access) -> None:
        self._stores = stores
        self._tokens = tokens
        self._clients = Clients(settings.trusted_proxies, settings.allowed_addresses)
        self._refusals = Refusals(settings.refusal_rate)
        self._pace = Pace(settings.rate, settings.max_wait.seconds)
        self._places = Places(settings.max_streams, settings.max_wait.seconds)

    @asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[Store]:
        """The store the request may read; it holds a place among the store's streams meanwhile. Raises Refusal."""
        require_http_1(request)
        client = self._clients.of(request)
        name = request.path_params["store"]
        store = self._stores.get(name)
        if store is None:
            raise Refusal(STORE_UNKNOWN, f"There is no store {name[:63]!r} here.")
        given = _Given.of(request)
        if self._is_proven(given, store):
            if not self._tokens.passes(store, given.token()):
                await self._check(given, store, client)
        else:
            async with self._refusals.turn(store, client):
                await self._check(given, store, client)
        await self._pace.take(store)
        async with self._places.one(store):
            yield store

    def _is_proven(self, given: "_Given", store: Store) -> bool:
        """Whether the request carries a token that Clerk has vouched for before, and the credentials besides.

        The token alone is not enough: who has stolen one must not guess the password as often as he likes.
        """
        if given.clerk is None or not store.token_auth:
            return False
        try:
            if not self._tokens.remembers(store, given.token()):
                return False
            if store.basic:
                basic.check(given.authorization, store.basic)
        except Refusal:
            return False
        return True

    async def _check(self, given: "_Given", store: Store, client: Client) -> None:
        try:
            if store.basic:
                basic.check(given.authorization, store.basic)
            if store.token_auth:
                await self._tokens.check(store, given.token())
        except Refusal as refusal:
            if refusal.problem in _COUNTED and not _is_first_challenge(refusal, given, store):
                self._refusals.count(store, client)
            raise


class _Given(msgspec.Struct):
    """What a request brings to be let in: its headers of that kind, each the first of its name."""

    clerk: str | None = None
    authorization: str | None = None

    @classmethod
    def of(cls, request: Request) -> "_Given":
        given = cls()
        for name, value in request.scope["headers"]:
            if name == b"x-clerk-authorization" and given.clerk is None:
                given.clerk = value.decode("latin-1")
            elif name == b"authorization" and given.authorization is None:
                given.authorization = value.decode("latin-1")
        return given

    def token(self) -> str:
        """Raises Refusal where there is none."""
        return bearer(self.clerk)


def _is_first_challenge(refusal: Refusal, given: _Given, store: Store) -> bool:
    """A client that knows nothing of Basic yet asks once without: the challenge tells it.

    Clerk's importer sends its token even then.
    """
    if refusal.problem is not BASIC_REQUIRED or given.authorization is not None:
        return False
    return not store.token_auth or given.clerk is not None


def require_http_1(request: Request) -> None:
    """Hypercorn takes an HTTP/2 preface on any connection, and has no backpressure there. Raises Refusal."""
    version = request.scope["http_version"]
    if version not in ("1.0", "1.1"):
        raise Refusal(VERSION_NOT_SUPPORTED, f"The request came over HTTP/{version}.")
