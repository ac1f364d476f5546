"""The gate: who may read, asked in a fixed order, the cheapest and least telling question first."""

from collections.abc import Mapping

from starlette.requests import Request

from app.access import basic
from app.access.client import require_secure
from app.access.tokens import Tokens, bearer
from app.protocol.problems import STORE_UNKNOWN, VERSION_NOT_SUPPORTED, Refusal
from app.settings import Store


class Gate:
    """Admits Clerk's importer, and nobody else."""

    def __init__(self, stores: Mapping[str, Store], tokens: Tokens) -> None:
        self._stores = stores
        self._tokens = tokens

    async def admit(self, request: Request) -> Store:
        """The store the request may read. Raises Refusal."""
        require_http_1(request)
        require_secure(request)
        name = request.path_params["store"]
        store = self._stores.get(name)
        if store is None:
            raise Refusal(STORE_UNKNOWN, f"There is no store {name[:63]!r} here.")
        if store.basic:
            basic.check(request.headers.get("authorization"), store.basic)
        if store.token_auth:
            await self._tokens.check(store, bearer(request.headers.get("x-clerk-authorization")))
        return store


def require_http_1(request: Request) -> None:
    """Hypercorn takes an HTTP/2 preface on any connection, and has no backpressure there. Raises Refusal."""
    version = request.scope["http_version"]
    if version not in ("1.0", "1.1"):
        raise Refusal(VERSION_NOT_SUPPORTED, f"The request came over HTTP/{version}.")
