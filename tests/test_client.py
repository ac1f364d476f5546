"""Who is calling: what forwarding headers count for, from whom, and that no header makes a caller somebody else."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from app.access.client import Client, Clients
from app.access.cloudflare import ranges
from app.cli import main
from app.protocol.problems import Refusal

EDGE, EDGE_6 = "173.245.48.9", "2400:cb00::9"
"""Addresses that Cloudflare's edge connects from."""
CALLER, STRANGER = "203.0.113.5", "198.51.100.7"
NGINX = "10.0.0.2"

Headers = Iterable[tuple[str, str]]


def caller(
    peer: str,
    headers: Headers = (),
    *,
    scheme: str = "http",
    trusted: Sequence[str] = (NGINX, "127.0.0.1", "::1"),
    allowed: Sequence[str] = (),
) -> Client:
    """Who the service takes a request for."""
    scope = {
        "type": "http",
        "scheme": scheme,
        "server": ("feeds.shop.example", 443),
        "path": "/dk/products",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": (peer, 50_000),
    }
    return Clients(trusted, allowed).of(Request(scope))


def refused(peer: str, headers: Headers = (), **options: object) -> Refusal:
    with pytest.raises(Refusal) as caught:
        caller(peer, headers, **options)  # type: ignore[arg-type]
    assert caught.value.problem.status == 403
    return caught.value


def outcome(peer: str, headers: Headers = (), **options: object) -> Client | Refusal:
    """Who the service takes a request for, or why it refuses."""
    try:
        return caller(peer, headers, **options)  # type: ignore[arg-type]
    except Refusal as refusal:
        return refusal


def forwarded(chain: str, protocol: str = "https") -> list[tuple[str, str]]:
    return [("X-Forwarded-For", chain), ("X-Forwarded-Proto", protocol)]


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        (CALLER, CALLER),
        (f"{STRANGER}, {CALLER}", CALLER),
        (f"127.0.0.1,{CALLER}", CALLER),
        (f"{NGINX}, {NGINX}, {CALLER}", CALLER),
        (f"{CALLER}, {NGINX}", CALLER),
        (f"{STRANGER}, {CALLER},127.0.0.1 , {NGINX}", CALLER),
        (f"no address at all, {CALLER}", CALLER),
        (f", {CALLER}", CALLER),
        (f"{CALLER}:4711", CALLER),
        (f"::ffff:{CALLER}", CALLER),
        (f"[::ffff:{CALLER}]:443", CALLER),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:0DB8:0:0::1", "2001:db8::1"),
        (f"{CALLER}, ::1", CALLER),
        (NGINX, NGINX),
    ],
)
def test_the_caller_is_whoever_reached_the_outermost_of_our_proxies(chain: str, address: str) -> None:
    assert caller(NGINX, forwarded(chain)).address == address


def test_a_list_in_several_headers_is_one_list() -> None:
    headers = [("X-Forwarded-For", STRANGER), ("X-Forwarded-For", CALLER), ("X-Forwarded-Proto", "https")]
    assert caller(NGINX, headers).address == CALLER


@pytest.mark.parametrize(
    "hop",
    [
        "",
        "unknown",
        "_hidden",
        "unix:",
        f"{CALLER}:",
        f"{CALLER}:x",
        f"{CALLER} 1",
        "203.0.113.05",
        "203.0.113",
        "3405803781",
        "0x7f.1",
        "[2001:db8::1",
        "2001:db8::1]",
        "[2001:db8::1]x",
        "[2001:db8::1]:x",
        "[203.0.113.5:80",
        f'"{CALLER}"',
        "feeds.shop.example",
        "2001:db8::1::2",
        "\xb2\xb3.1.1.1",
        "1" * 5000,
    ],
)
def test_a_hop_that_is_no_address_is_refused(hop: str) -> None:
    refusal = refused(NGINX, forwarded(f"{CALLER}, {hop}"))
    assert refusal.problem.code == "proxy-not-trusted"
    assert "no address" in refusal.detail
    assert len(refusal.detail) < 200


def test_a_chain_without_end_is_refused() -> None:
    assert "32 hops" in refused(NGINX, forwarded(", ".join([CALLER] * 33))).detail


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "Via", "X-Real-IP"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_forwarding_headers_of_a_stranger_are_refused(header: str, scheme: str) -> None:
    refusal = refused(STRANGER, [(header, "127.0.0.1")], scheme=scheme)
    assert refusal.problem.code == "proxy-not-trusted"
    assert header.lower() in refusal.detail
    assert "127.0.0.1" not in refusal.detail


@pytest.mark.parametrize("header", ["CF-Connecting-IP", "CF-Connecting-IPv6", "True-Client-IP"])
@pytest.mark.parametrize("trusted", [(), ("cloudflare",), (NGINX, "cloudflare")])
def test_cf_connecting_ip_counts_from_cloudflare_only(header: str, trusted: Sequence[str]) -> None:
    assert refused(STRANGER, [(header, CALLER)], scheme="https", trusted=trusted).problem.code == "proxy-not-trusted"


@pytest.mark.parametrize("edge", [EDGE, EDGE_6, f"::ffff:{EDGE}"])
@pytest.mark.parametrize("address", [CALLER, "2001:db8::1"])
def test_straight_from_cloudflare_the_caller_is_in_cf_connecting_ip(edge: str, address: str) -> None:
    headers = [("CF-Connecting-IP", address), *forwarded(f"{STRANGER}, {address}")]
    assert caller(edge, headers, scheme="https", trusted=["cloudflare"]).address == address


def test_straight_from_cloudflare_that_is_not_declared_names_the_cure() -> None:
    refusal = refused(EDGE, [("CF-Connecting-IP", CALLER)], scheme="https")
    assert '"cloudflare"' in refusal.fix


@pytest.mark.parametrize("trusted", [["cloudflare"], ["173.245.48.0/20"]])
def test_cloudflare_over_plain_http_is_refused(trusted: Sequence[str]) -> None:
    headers = [("CF-Connecting-IP", CALLER), *forwarded(CALLER)]
    refusal = refused(EDGE, headers, trusted=trusted)
    assert refusal.problem.code == "not-secure"
    assert "Full (strict)" in refusal.fix


def test_cloudflare_that_was_asked_over_plain_http_is_refused() -> None:
    headers = [("CF-Connecting-IP", CALLER), *forwarded(CALLER, "http")]
    assert refused(EDGE, headers, scheme="https", trusted=["cloudflare"]).problem.code == "not-secure"


@pytest.mark.parametrize("named", ["", "x", f"{CALLER}, {STRANGER}", f"{CALLER}:80", "1" * 5000])
def test_a_cf_connecting_ip_that_is_no_address_is_refused(named: str) -> None:
    headers = [("CF-Connecting-IP", named), *forwarded(CALLER)]
    refusal = refused(EDGE, headers, scheme="https", trusted=["cloudflare"])
    assert "CF-Connecting-IP" in refusal.detail
    assert len(refusal.detail) < 200


def test_cf_connecting_ip_given_twice_is_refused() -> None:
    headers = [("CF-Connecting-IP", CALLER), ("CF-Connecting-IP", STRANGER), *forwarded(CALLER)]
    refused(EDGE, headers, scheme="https", trusted=["cloudflare"])


def test_through_nginx_the_edge_is_the_last_hop_and_names_the_caller() -> None:
    headers = [("CF-Connecting-IP", CALLER), *forwarded(f"{STRANGER}, {CALLER}, {EDGE}")]
    assert caller(NGINX, headers, trusted=[NGINX, "cloudflare"]).address == CALLER


def test_through_nginx_whose_real_ip_module_knows_the_caller_both_agree() -> None:
    headers = [("CF-Connecting-IP", CALLER), *forwarded(f"{CALLER}, {CALLER}")]
    assert caller(NGINX, headers, trusted=[NGINX, "cloudflare"]).address == CALLER


def test_a_stranger_who_goes_round_cloudflare_to_nginx_is_refused() -> None:
    headers = [("CF-Connecting-IP", CALLER), *forwarded(f"{CALLER}, {STRANGER}")]
    refusal = refused(NGINX, headers, trusted=[NGINX, "cloudflare"])
    assert "CF-Connecting-IP" in refusal.detail


@pytest.mark.parametrize("spoofed", ["", f"{STRANGER}, ", "127.0.0.1, ", "garbage, ", f"{EDGE}, "])
def test_a_tunnel_on_loopback_names_the_caller_in_both_headers(spoofed: str) -> None:
    headers = [("CF-Connecting-IP", CALLER), *forwarded(f"{spoofed}{CALLER}")]
    assert caller("127.0.0.1", headers).address == CALLER


@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        ([("X-Forwarded-For", CALLER)], NGINX),
        ([("X-Forwarded-For", CALLER), ("Forwarded", "proto=https")], NGINX),
        (forwarded(CALLER, "http"), NGINX),
        (forwarded(CALLER, "https, http"), NGINX),
        (forwarded(CALLER, "https,"), NGINX),
        (forwarded(CALLER, "wss"), NGINX),
        ([*forwarded(CALLER, "http"), ("X-Forwarded-Proto", "https")], NGINX),
        ([], NGINX),
        ([], STRANGER),
    ],
)
def test_every_hop_must_have_been_https(headers: Headers, peer: str) -> None:
    refusal = refused(peer, headers)
    assert refusal.problem.code == "not-secure"
    if peer == NGINX:
        assert "X-Forwarded-Proto $scheme" in refusal.fix


@pytest.mark.parametrize("protocol", ["https", "HTTPS", "https, https"])
def test_a_proxy_vouches_for_https(protocol: str) -> None:
    assert caller(NGINX, forwarded(CALLER, protocol)).address == CALLER


@pytest.mark.parametrize(
    ("address", "block"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv6_caller_counts_by_its_64_network(address: str, block: str) -> None:
    assert caller(address, scheme="https").block == block


@pytest.mark.parametrize(
    ("address", "allowed", "passes"),
    [
        (CALLER, [CALLER], True),
        (CALLER, ["203.0.113.0/24"], True),
        (CALLER, ["52.57.0.11", "203.0.113.4/31"], True),
        (CALLER, ["::ffff:203.0.113.5"], True),
        (CALLER, ["::ffff:203.0.113.0/120"], True),
        (f"::ffff:{CALLER}", [CALLER], True),
        ("2001:db8::5", ["2001:db8::/32"], True),
        (CALLER, ["52.57.0.11"], False),
        (CALLER, ["2001:db8::/32"], False),
        ("2001:db8::5", ["0.0.0.0/0"], False),
        ("::cb00:7105", [CALLER], False),
    ],
)
def test_the_allow_list_is_of_addresses_and_networks(address: str, allowed: Sequence[str], passes: bool) -> None:
    if passes:
        caller(address, scheme="https", allowed=allowed)
        caller(NGINX, forwarded(address), allowed=allowed)
        return
    for refusal in (
        refused(address, scheme="https", allowed=allowed),
        refused(NGINX, forwarded(address), allowed=allowed),
    ):
        assert refusal.problem.code == "address-not-allowed"
        assert address in refusal.detail


@pytest.mark.parametrize("headers", [[("X-Forwarded-Proto", "https")], [("X-Forwarded-Proto", "https"), ("Via", "x")]])
def test_a_proxy_that_does_not_say_who_asked_passes_no_allow_list_by_its_own_address(headers: Headers) -> None:
    refusal = refused(NGINX, headers, allowed=[NGINX, CALLER])
    assert refusal.problem.code == "address-not-allowed"
    assert NGINX not in refusal.detail
    assert "X-Forwarded-For" in refusal.fix
    assert caller(NGINX, headers).address == NGINX


def test_nothing_a_caller_writes_gets_past_the_allow_list() -> None:
    for chain in (CALLER, f"{CALLER}, {CALLER}", f"127.0.0.1, {CALLER}", f"{CALLER}, {NGINX}", EDGE):
        headers = forwarded(f"{chain}, {STRANGER}")
        assert refused(NGINX, headers, allowed=[CALLER]).problem.code == "address-not-allowed"


_NASTY = st.text(st.characters(max_codepoint=255, blacklist_characters="\r\n\x00"), max_size=40)
_ADDRESSES = st.ip_addresses().map(str) | st.sampled_from(
    [CALLER, STRANGER, NGINX, EDGE, EDGE_6, "127.0.0.1", "::1", f"::ffff:{CALLER}", "fe80::1%eth0", ""]
)
_HOPS = _ADDRESSES | _ADDRESSES.map("[{}]:80".format) | _ADDRESSES.map("{}:80".format) | _NASTY
_VALUES = st.lists(_HOPS, max_size=4).map(", ".join) | st.sampled_from(["https", "http", "https, https"])
_NAMES = st.sampled_from(
    [
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "CF-Connecting-IP",
        "Forwarded",
        "X-Real-IP",
        "Via",
        "Host",
        "True-Client-IP",
    ]
)
_HEADERS = st.lists(st.tuples(_NAMES, _VALUES), max_size=6)


@settings(max_examples=500, deadline=None)
@given(headers=_HEADERS, scheme=st.sampled_from(["http", "https"]))
@example(headers=[("X-Forwarded-For", CALLER), ("X-Forwarded-Proto", "https")], scheme="https")
@example(headers=[("CF-Connecting-IP", CALLER)], scheme="https")
def test_a_stranger_is_himself_or_refused_whatever_he_writes(headers: list[tuple[str, str]], scheme: str) -> None:
    found = outcome(STRANGER, headers, scheme=scheme, trusted=[NGINX, "127.0.0.1", "cloudflare"])
    if isinstance(found, Refusal):
        assert found.problem.status == 403
    else:
        assert (found.address, scheme) == (STRANGER, "https")


@settings(max_examples=1000, deadline=None)
@given(written=_HEADERS, peer=st.sampled_from([NGINX, "127.0.0.1", EDGE]))
@example(written=[("X-Forwarded-For", CALLER), ("CF-Connecting-IP", CALLER)], peer=NGINX)
def test_behind_proxies_a_stranger_is_himself_or_refused_whatever_he_writes(
    written: list[tuple[str, str]], peer: str
) -> None:
    """Each proxy does as it should: it appends who reached it, and Cloudflare overwrites CF-Connecting-IP."""
    kept = [(name, value) for name, value in written if name != "X-Forwarded-Proto"]
    if peer == EDGE:
        kept = [(name, value) for name, value in kept if name != "CF-Connecting-IP"]
        kept.append(("CF-Connecting-IP", STRANGER))
    headers = [*kept, *forwarded(STRANGER)]
    found = outcome(peer, headers, scheme="https", trusted=[NGINX, "127.0.0.1", "cloudflare"])
    if isinstance(found, Refusal):
        assert found.problem.status == 403
    else:
        assert found.address == STRANGER


@settings(max_examples=500, deadline=None)
@given(headers=_HEADERS, peer=_ADDRESSES | _NASTY, scheme=st.sampled_from(["http", "https"]))
def test_whatever_arrives_there_is_a_caller_or_a_refusal_that_shows_little(
    headers: list[tuple[str, str]], peer: str, scheme: str
) -> None:
    found = outcome(peer, headers, scheme=scheme, trusted=[NGINX, "::1", "cloudflare"], allowed=["0.0.0.0/0", "::/0"])
    if isinstance(found, Refusal):
        assert found.problem.status == 403
        assert len(found.detail) < 250
    else:
        ip_address(found.address)


def test_cloudflares_networks_are_those_of_the_data_file() -> None:
    known = ranges()
    assert len(known.networks) > 20
    assert {network.version for network in known.networks} == {4, 6}
    assert all(network.is_global for network in known.networks)
    assert known.published <= datetime.now(UTC).date()


def test_the_command_says_how_to_renew_them() -> None:
    done = CliRunner().invoke(main, ["cloudflare-ranges"])
    assert done.exit_code == 0
    assert "https://www.cloudflare.com/ips-v4" in done.output
    assert all(str(network) in done.output for network in ranges().networks)
    assert str(ranges().published) in done.output
