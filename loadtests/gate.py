"""`python -m loadtests.gate`: what the gate costs a request whose token is known already.

Measured in one process without sockets, in time of the CPU: the request as Hypercorn hands it over, straight, behind
nginx, and with HTTP authentication and an allow-list besides.
"""

import gc
import statistics
import time

import click
import msgspec
import uvloop
from starlette.requests import Request

from app.access.gate import Gate
from app.access.tokens import Tokens
from app.clerk.api import Verdict
from app.settings import Access, Credentials, Rate, Secret, Store

TARGET_MICROSECONDS = 50.0
_TOKEN = "x" * 40
_ROUNDS = 20


class Cost(msgspec.Struct, frozen=True):
    """Microseconds of the CPU a request, of several rounds."""

    name: str
    best: float
    median: float


class _Knows:
    """A Clerk that knows every token."""

    async def verify(self, token: str, public_key: str) -> Verdict:
        return Verdict(good=True)


_COMMON = [
    (b"host", b"feeds.shop.example"),
    (b"user-agent", b"clerk-importer/1.0"),
    (b"accept", b"application/x-ndjson, application/json"),
    (b"accept-encoding", b"gzip"),
    (b"x-clerk-authorization", b"Bearer " + _TOKEN.encode()),
]
_PROXIED = [
    (b"x-forwarded-for", b"203.0.113.9, 173.245.48.9"),
    (b"x-forwarded-proto", b"https"),
    (b"cf-connecting-ip", b"203.0.113.9"),
    (b"cf-ray", b"8f2a6f5b3c1d4e5f-FRA"),
]
_BASIC = [(b"authorization", b"Basic Y2xlcms6Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ==")]


async def measure(requests: int) -> list[Cost]:
    """The cost in three layouts."""
    plain = Store(public_key="key", name="dk")
    guarded = Store(public_key="key", name="dk", basic=Credentials("clerk", Secret("correct horse battery staple")))
    # The pace of one importer, made for shops, must not be what is measured.
    access = Access(trusted_proxies=("127.0.0.1", "cloudflare"), rate=Rate(10**6, 1))
    listed = msgspec.structs.replace(access, allowed_addresses=("203.0.113.0/24",))
    return [
        await _cost("straight over TLS", plain, access, "203.0.113.9", "https", _COMMON, requests),
        await _cost("Cloudflare through nginx", plain, access, "127.0.0.1", "http", _COMMON + _PROXIED, requests),
        await _cost(
            "the same, Basic and allow-list",
            guarded,
            listed,
            "127.0.0.1",
            "http",
            _COMMON + _PROXIED + _BASIC,
            requests,
        ),
    ]


async def _cost(
    name: str,
    store: Store,
    access: Access,
    peer: str,
    scheme: str,
    headers: list[tuple[bytes, bytes]],
    requests: int,
) -> Cost:
    gate = Gate({"dk": store}, Tokens(_Knows(), access, lambda event: None), access)

    def request() -> Request:
        # A scope of its own each time, as a server makes it: nothing is remembered from the one before.
        return Request(
            {
                "type": "http",
                "http_version": "1.1",
                "method": "GET",
                "scheme": scheme,
                "path": "/dk/products",
                "query_string": b"limit=1000&offset=0",
                "headers": headers,
                "client": (peer, 50_000),
                "server": ("203.0.113.80", 443),
                "path_params": {"store": "dk", "feed": "products"},
            }
        )

    async with gate.admitted(request()):
        pass
    rounds = []
    for _ in range(_ROUNDS):
        made = [request() for _ in range(requests)]
        gc.collect()
        started = time.process_time()
        for one in made:
            async with gate.admitted(one):
                pass
        rounds.append((time.process_time() - started) / requests * 1e6)
    return Cost(name, min(rounds), statistics.median(rounds))


@click.command()
@click.option("--requests", type=click.IntRange(1), default=2000, show_default=True, help="Of each of 20 rounds.")
def gate(requests: int) -> None:
    """Measure the gate on a token that is known already."""
    for cost in uvloop.run(measure(requests)):
        click.echo(f"{cost.name:<32} {cost.best:6.1f} us of CPU a request (median {cost.median:.1f})")
    click.echo(f"The goal is at most {TARGET_MICROSECONDS:.0f} us.")


if __name__ == "__main__":
    gate()
