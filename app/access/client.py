"""Who is calling, and whether the way here was safe from listeners.

Forwarding headers count only from a proxy named in trusted_proxies, hop by hop: each proxy appends the address that
reached it, so the list is read from its end for as long as the hops are ours. CF-Connecting-IP counts only where what
reached our own proxies is Cloudflare's edge. What a client itself wrote into these headers is never believed.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import msgspec
from starlette.requests import Request
from starlette.types import Scope

from app.access.cloudflare import ranges
from app.protocol.problems import ADDRESS_NOT_ALLOWED, NOT_SECURE, PROXY_NOT_TRUSTED, Refusal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_FORWARDING = frozenset(
    {
        b"forwarded",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-client-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"cf-connecting-ipv6",
    }
)
"""Whoever sends one of these is a proxy, or wants to be taken for one."""

MOST_HOPS = 32
MOST_CHARACTERS = 64
"""Of an address. One that is longer is none, cut off too."""
_CLIENT = "clerk_feed.client"

_CLEAR_TEXT = (
    "The proxy was reached over plain HTTP, or does not say otherwise. Ask it over https://, and let it send"
    " X-Forwarded-Proto: in nginx 'proxy_set_header X-Forwarded-Proto $scheme'."
)
_FLEXIBLE = "In Cloudflare set SSL/TLS to Full (strict), and give this service a certificate: certfile and keyfile."


_NAMELESS = (
    "allowed_addresses needs the caller's address. Let the proxy append it to X-Forwarded-For: in nginx"
    " 'proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for'."
)


class Client(msgspec.Struct, frozen=True):
    """Whoever asks."""

    address: str
    """As text, an IPv4 address in IPv6 clothes as IPv4; "unix" where the connection has none."""
    block: str
    """What counts as one caller: an IPv4 address, or the /64 network of an IPv6 address, which one host can roam."""


class _Peer(msgspec.Struct, frozen=True):
    client: Client
    ours: bool
    edge: bool
    loopback: bool
    allowed: bool


class Clients:
    """Finds out who is calling. `trusted` are networks or the word cloudflare, `allowed` networks or none for all."""

    def __init__(self, trusted: Sequence[str], allowed: Sequence[str]) -> None:
        self._ours = _by_version(ip_network(name) for name in trusted if name != "cloudflare")
        self._cloudflare = _by_version(ranges().networks)
        self._trusts_cloudflare = "cloudflare" in trusted
        self._allowed = _by_version(map(ip_network, allowed)) if allowed else None
        self._peer = lru_cache(4096)(self._described)

    def of(self, request: Request) -> Client:
        """The caller, who came a safe way and may ask. Raises Refusal."""
        scope = request.scope
        peer = self._peer((scope["client"][0] if scope.get("client") else "unix")[:MOST_CHARACTERS])
        seen = _forwarding(scope)
        client = self._proxied(scope, peer, seen) if seen else self._direct(scope, peer)
        scope[_CLIENT] = client
        if not self._peer(client.address).allowed:
            raise Refusal(ADDRESS_NOT_ALLOWED, f"The address {client.address} is not in allowed_addresses.")
        return client

    def _direct(self, scope: Scope, peer: _Peer) -> Client:
        if peer.edge and not peer.ours:
            raise Refusal(PROXY_NOT_TRUSTED, "The request came from Cloudflare's edge without CF-Connecting-IP.")
        if scope["scheme"] != "https" and not peer.loopback:
            detail = "The request arrived over plain HTTP from another machine."
            raise Refusal(NOT_SECURE, detail, fix=_CLEAR_TEXT if peer.ours else None)
        return peer.client

    def _proxied(self, scope: Scope, peer: _Peer, seen: dict[bytes, str]) -> Client:
        if not peer.ours and not (peer.edge and self._trusts_cloudflare):
            names = ", ".join(sorted(name.decode() for name in seen))
            said = "Cloudflare, which is not in trusted_proxies" if peer.edge else "a proxy that is not in"
            detail = f"The request came through {said}" + (":" if peer.edge else " trusted_proxies, or claims to:")
            fix = 'Add "cloudflare" to access.trusted_proxies in feed.toml.' if peer.edge else None
            raise Refusal(PROXY_NOT_TRUSTED, f"{detail} it carries {names}.", fix=fix)
        if scope["scheme"] != "https" and peer.edge:
            raise Refusal(NOT_SECURE, "Cloudflare sent the request on over plain HTTP.", fix=_FLEXIBLE)
        reached = self._reached(peer, seen.get(b"x-forwarded-for"))
        if self._allowed is not None and reached is peer and peer.ours:
            # Whoever it was must not be let in by the proxy's own address, nor be told what that is.
            raise Refusal(ADDRESS_NOT_ALLOWED, "The proxy does not say who asked.", fix=_NAMELESS)
        client = self._of_cloudflare(reached, seen)
        _require_https(scope, seen.get(b"x-forwarded-proto"))
        return client

    def _reached(self, peer: _Peer, chain: str | None) -> _Peer:
        """What reached the outermost of our own proxies."""
        found = peer
        hops = [hop.strip() for hop in chain.split(",")] if chain is not None else []
        if len(hops) > MOST_HOPS:
            raise Refusal(PROXY_NOT_TRUSTED, f"X-Forwarded-For names more than {MOST_HOPS} hops.")
        while found.ours and hops:
            hop = hops.pop()
            found = self._peer(_without_port(hop)[:MOST_CHARACTERS])
            if found.client.address == "unix":
                raise Refusal(PROXY_NOT_TRUSTED, f"X-Forwarded-For names {hop[:60]!r}, which is no address.")
        return found

    def _of_cloudflare(self, reached: _Peer, seen: dict[bytes, str]) -> Client:
        """The client behind Cloudflare where its edge is what reached us; else what reached us."""
        named = seen.get(b"cf-connecting-ip")
        behind = self._peer(named.strip()[:MOST_CHARACTERS]) if named is not None else None
        if behind is not None and behind.client.address == "unix":
            raise Refusal(PROXY_NOT_TRUSTED, f"CF-Connecting-IP is {(named or '')[:60]!r}, which is no address.")
        if reached.edge and not reached.ours:
            if not self._trusts_cloudflare:
                fix = 'Add "cloudflare" to access.trusted_proxies in feed.toml.'
                raise Refusal(PROXY_NOT_TRUSTED, "The request came through Cloudflare, which is not declared.", fix=fix)
            if behind is None:
                raise Refusal(PROXY_NOT_TRUSTED, "Cloudflare's edge sent no CF-Connecting-IP, or a proxy strips it.")
            return behind.client
        # A tunnel (cloudflared) names the client in both headers. Anything else is somebody's own invention.
        if behind is not None and behind.client != reached.client:
            raise Refusal(
                PROXY_NOT_TRUSTED,
                "CF-Connecting-IP arrived, but what reached our proxies is neither Cloudflare's edge nor that address.",
                fix="Behind Cloudflare, let each proxy of your own append to X-Forwarded-For: in nginx"
                " 'proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for'. Without Cloudflare, let it remove"
                " CF-Connecting-IP.",
            )
        return reached.client

    def _described(self, text: str) -> _Peer:
        address = _parsed(text)
        if address is None:
            return _Peer(Client("unix", "unix"), ours=False, edge=False, loopback=False, allowed=self._allowed is None)
        shown = str(address)
        block = shown if address.version == 4 else str(ip_network((int(address) >> 64 << 64, 64)))
        return _Peer(
            Client(shown, block),
            ours=_within(shown, self._ours),
            edge=_within(shown, self._cloudflare),
            loopback=address.is_loopback,
            allowed=self._allowed is None or _within(shown, self._allowed),
        )


def address_of(request: Request) -> str:
    """The caller's address where it is known already; else that of whoever opened the connection."""
    found: Client | None = request.scope.get(_CLIENT)
    if found is not None:
        return found.address
    return request.client.host if request.client else "unix"


def _forwarding(scope: Scope) -> dict[bytes, str]:
    """The forwarding headers, those given twice joined as one list (RFC 9110, 5.3)."""
    found: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in _FORWARDING:
            text = value.decode("latin-1")
            found[name] = f"{found[name]},{text}" if name in found else text
    return found


def _require_https(scope: Scope, protocols: str | None) -> None:
    """Every hop a proxy speaks for was TLS. Raises Refusal."""
    if protocols is None:
        if scope["scheme"] == "https":
            return
        raise Refusal(NOT_SECURE, "The proxy sent no X-Forwarded-Proto.", fix=_CLEAR_TEXT)
    for protocol in protocols.split(","):
        if protocol.strip().lower() != "https":
            raise Refusal(NOT_SECURE, "The proxy says that it was asked over plain HTTP.", fix=_CLEAR_TEXT)


def _parsed(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _without_port(hop: str) -> str:
    """'203.0.113.9:4711' and '[2001:db8::1]:4711', as some proxies write it, without the port."""
    if hop.startswith("["):
        host, end, port = hop[1:].partition("]")
        return host if end and (not port or (port[0] == ":" and port[1:].isdecimal())) else ""
    host, _, port = hop.partition(":")
    return host if "." in host and port.isdecimal() else hop


def _by_version(networks: Iterable[Network]) -> dict[int, list[Network]]:
    found: dict[int, list[Network]] = {4: [], 6: []}
    for network in networks:
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= 96:
            found[4].append(ip_network((mapped, network.prefixlen - 96)))
        else:
            found[network.version].append(network)
    return found


def _within(text: str, networks: dict[int, list[Network]]) -> bool:
    address = ip_address(text)
    return any(address in network for network in networks[address.version])
