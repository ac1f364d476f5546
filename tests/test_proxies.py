"""The three usual layouts over real sockets: Cloudflare straight to us, Cloudflare through nginx, a tunnel on loopback.

The first two need addresses of Cloudflare's, so they run in a network namespace of their own.
"""

import base64
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.clerk import FakeClerk, problem
from tests.conftest import PRODUCTS, TOKEN, Answer, Database, Running, Shop, base_config, start_service
from tests.namespace import Namespace, lacks, namespace
from tests.secure import Authority, ask

EDGE, EDGE_6 = "173.245.48.9", "2400:cb00::9"
"""Cloudflare's edge."""
OURS, OURS_6 = "203.0.113.80", "2001:db8::80"
STRANGER, STRANGER_6 = "198.51.100.7", "2001:db8:bad::7"
CALLER, CALLER_6 = "192.0.2.11", "2001:db8:c1e4::11"
"""The importer, far behind Cloudflare."""

PAGE = "/dk/products?limit=10&offset=0"
BASIC = "Basic " + base64.b64encode(b"clerk:pass").decode()

Headers = list[tuple[str, str]]


class Outside:
    """A namespace with a service that is reached by TLS, and with nginx before it where there is one.

    Its store has Basic only: Clerk could not be asked from in there.
    """

    def __init__(self, place: Namespace, service: Running, authority: Authority) -> None:
        self.place = place
        self.service = service
        self.authority = authority

    def ask(self, source: str, headers: Headers, *, url: str = "", path: str = PAGE, tls: bool = True) -> Answer:
        context = self.authority.client() if tls else None
        sent = [("Authorization", BASIC), *headers]
        return self.place.inside(
            lambda: ask(url or self.service.url, path, source=source, headers=sent, context=context)
        )


def cloudflare(caller: str, *written: tuple[str, str]) -> Headers:
    """The headers as Cloudflare's edge sends them on for a caller who wrote some himself."""
    headers = dict(written)
    chain = headers.pop("X-Forwarded-For", "")
    headers |= {
        "X-Forwarded-For": f"{chain},{caller}" if chain else caller,
        "X-Forwarded-Proto": headers.get("X-Forwarded-Proto", "https"),
        "CF-Connecting-IP": caller,
        "CF-Ray": "8f2a6f5b3c1d4e5f-FRA",
        "CF-Visitor": '{"scheme":"https"}',
        "CDN-Loop": "cloudflare; loops=1",
        "CF-IPCountry": "DE",
    }
    return list(headers.items())


needs_namespace = pytest.mark.skipif(bool(lacks()), reason=lacks())
needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (Debian: nginx-light)")


@pytest.fixture(scope="module")
def outside(
    create_database: Callable[[], Database], tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[Outside]:
    database = create_database()
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute("insert into dk.products (id) values (1)")
    folder = tmp_path_factory.mktemp("outside")
    authority = Authority(folder / "authority", OURS, OURS_6, "localhost")
    config = base_config(
        database.dsn,
        "http://127.0.0.1:9/",
        server=f'{authority.settings}\nbind = ["{OURS}:0", "[{OURS_6}]:0", "127.0.0.1:0"]',
        access=f'trusted_proxies = ["127.0.0.1", "cloudflare"]\nallowed_addresses = ["{CALLER}", "{CALLER_6}"]',
    ).replace('bind = ["127.0.0.1:0"]\nadmin', "admin")
    config += '[stores.dk]\npublic_key = "key-dk"\ntoken_auth = false\n'
    config += 'basic = { username = "clerk", password = "pass" }\n'
    addresses = [f"{address}/32" for address in (EDGE, OURS, STRANGER)]
    addresses += [f"{address}/128" for address in (EDGE_6, OURS_6, STRANGER_6)]
    with namespace(f"clerk-feed-{os.getpid()}-{worker_id}", addresses) as place:
        service = place.inside(lambda: start_service(folder / "service", config))
        yield Outside(place, service, authority)
        service.stop()


def addresses_of(service: Running) -> dict[str, str]:
    """The URLs a service prints, by their host."""
    line = next(line for line in service.log.read_text().splitlines() if line.startswith("  feeds   "))
    return {urlsplit(url.strip()).hostname or "": url.strip() for url in line.removeprefix("  feeds   ").split(",")}


@needs_namespace
@pytest.mark.parametrize(("edge", "ours"), [(EDGE, OURS), (EDGE_6, OURS_6)], ids=["over IPv4", "over IPv6"])
@pytest.mark.parametrize("caller", [CALLER, CALLER_6])
def test_cloudflare_straight_to_us_names_the_caller(outside: Outside, edge: str, ours: str, caller: str) -> None:
    url = addresses_of(outside.service)[ours]
    answer = outside.ask(edge, cloudflare(caller, ("X-Forwarded-For", "127.0.0.1")), url=url)
    assert [item["id"] for item in answer.lines] == [1]


@needs_namespace
def test_behind_cloudflare_an_address_that_is_not_allowed_is_told_its_own(outside: Outside) -> None:
    answer = outside.ask(EDGE, cloudflare(STRANGER, ("X-Forwarded-For", CALLER)))
    said = problem(answer, 403, "address-not-allowed")
    assert STRANGER in said["detail"]
    assert CALLER not in answer.body.decode()
    assert EDGE not in answer.body.decode()


@needs_namespace
@pytest.mark.parametrize(
    "headers",
    [
        cloudflare(CALLER),
        [("CF-Connecting-IP", CALLER)],
        [("X-Forwarded-For", CALLER), ("X-Forwarded-Proto", "https")],
        [("X-Real-IP", CALLER)],
        [("Forwarded", f"for={CALLER};proto=https")],
    ],
    ids=["as Cloudflare", "CF-Connecting-IP", "X-Forwarded-For", "X-Real-IP", "Forwarded"],
)
def test_a_stranger_who_goes_round_cloudflare_is_refused_whatever_he_claims(outside: Outside, headers: Headers) -> None:
    answer = outside.ask(STRANGER, headers)
    problem(answer, 403, "proxy-not-trusted")
    assert CALLER not in answer.body.decode()


@needs_namespace
def test_a_stranger_who_claims_nothing_is_himself(outside: Outside) -> None:
    assert STRANGER in problem(outside.ask(STRANGER, []), 403, "address-not-allowed")["detail"]


@needs_namespace
def test_cloudflare_without_the_callers_address_is_refused(outside: Outside) -> None:
    headers = [(name, value) for name, value in cloudflare(CALLER) if name != "CF-Connecting-IP"]
    assert "CF-Connecting-IP" in problem(outside.ask(EDGE, headers), 403, "proxy-not-trusted")["detail"]
    assert "CF-Connecting-IP" in problem(outside.ask(EDGE, []), 403, "proxy-not-trusted")["detail"]


@needs_namespace
def test_cloudflare_that_was_asked_over_plain_http_is_refused(outside: Outside) -> None:
    answer = outside.ask(EDGE, cloudflare(CALLER, ("X-Forwarded-Proto", "http")))
    problem(answer, 403, "not-secure")


CONF = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen {ours}:443 ssl;
    listen {ours}:80;
    ssl_certificate {authority.certfile};
    ssl_certificate_key {authority.keyfile};
    {location}
  }}
}}
"""


def readme_location(port: int) -> str:
    """The location block as the README has it, with the port that the service got."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    [block] = re.findall(r"```nginx\n(.*?)```", readme, re.DOTALL)
    assert "127.0.0.1:8000" in block
    return str(block).replace("127.0.0.1:8000", f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def nginx(outside: Outside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    """A service on loopback over plain HTTP behind a real nginx with the settings of the README."""
    folder = tmp_path_factory.mktemp("nginx")
    config = (outside.service.log.parent / "feed.toml").read_text()
    config = re.sub(r"certfile = .*\nkeyfile = .*\nbind = .*", 'bind = ["127.0.0.1:0"]', config)
    service = outside.place.inside(lambda: start_service(folder / "service", config))
    conf = folder / "nginx.conf"
    port = urlsplit(service.url).port or 0
    conf.write_text(CONF.format(folder=folder, ours=OURS, authority=outside.authority, location=readme_location(port)))
    # Its worker runs as nobody and must not need the folders of root.
    process = outside.place.inside(
        lambda: subprocess.Popen(["nginx", "-c", str(conf), "-g", "user root;"], stderr=subprocess.DEVNULL)
    )
    try:
        outside.place.inside(lambda: _await(OURS, 443))
        yield Outside(outside.place, service, outside.authority)
    finally:
        process.terminate()
        process.wait(10)
        service.stop()


def _await(host: str, port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection((host, port), 5).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.05)
        else:
            return


BEHIND_NGINX = f"https://{OURS}:443"


@needs_namespace
@needs_nginx
def test_cloudflare_through_nginx_names_the_caller(nginx: Outside) -> None:
    answer = nginx.ask(EDGE, cloudflare(CALLER, ("X-Forwarded-For", "127.0.0.1, garbage")), url=BEHIND_NGINX)
    assert [item["id"] for item in answer.lines] == [1]
    answer = nginx.ask(EDGE, cloudflare(STRANGER, ("X-Forwarded-For", CALLER)), url=BEHIND_NGINX)
    assert STRANGER in problem(answer, 403, "address-not-allowed")["detail"]


@needs_namespace
@needs_nginx
@pytest.mark.parametrize(
    "headers", [cloudflare(CALLER), [("CF-Connecting-IP", CALLER)], [("X-Forwarded-For", CALLER)], []], ids=len
)
def test_a_stranger_who_goes_round_cloudflare_to_nginx_is_refused(nginx: Outside, headers: Headers) -> None:
    answer = nginx.ask(STRANGER, headers, url=BEHIND_NGINX)
    assert answer.status == 403
    assert CALLER not in answer.body.decode()


@needs_namespace
@needs_nginx
def test_nginx_that_was_asked_over_plain_http_gets_nothing(nginx: Outside) -> None:
    answer = nginx.ask(EDGE, cloudflare(CALLER), url=f"http://{OURS}:80", tls=False)
    problem(answer, 403, "not-secure")


@needs_namespace
@needs_nginx
def test_a_whole_feed_comes_through_nginx(nginx: Outside) -> None:
    answer = nginx.ask(EDGE, cloudflare(CALLER), url=BEHIND_NGINX, path="/dk/products")
    assert [item["id"] for item in answer.lines] == [1]


def tunnel(caller: str, chain: str = "") -> dict[str, str]:
    """The headers as cloudflared sends them on to loopback, over plain HTTP."""
    return {
        "X-Forwarded-For": f"{chain},{caller}" if chain else caller,
        "X-Forwarded-Proto": "https",
        "CF-Connecting-IP": caller,
        "CF-Ray": "8f2a6f5b3c1d4e5f-FRA",
        "Cdn-Loop": "cloudflare; loops=1",
    }


@pytest.mark.parametrize("chain", ["", "127.0.0.1", "not an address", f"{EDGE}, 10.0.0.1"])
@pytest.mark.parametrize("caller", [CALLER, CALLER_6])
def test_a_tunnel_on_loopback_names_the_caller(catalog: Shop, caller: str, chain: str) -> None:
    assert catalog.get("products?limit=10&offset=0", headers=tunnel(caller, chain)).status == 200
    refused = catalog.get("products?limit=10&offset=0", headers=tunnel(caller, chain), token=None)
    problem(refused, 401, "token-missing")
    assert catalog.service.events("Refused")[-2]["address"] == caller


def test_a_tunnel_whose_headers_contradict_each_other_is_refused(catalog: Shop) -> None:
    headers = {**tunnel(CALLER), "X-Forwarded-For": f"{CALLER}, {STRANGER}"}
    problem(catalog.get("products", headers=headers), 403, "proxy-not-trusted")


def test_what_came_to_a_tunnel_over_plain_http_is_refused(catalog: Shop) -> None:
    headers = {**tunnel(CALLER), "X-Forwarded-Proto": "http"}
    problem(catalog.get("products", headers=headers), 403, "not-secure")


def test_a_proxy_on_another_address_must_be_declared(catalog: Shop) -> None:
    answer = catalog.get("products", headers=tunnel(CALLER), source="127.0.0.2")
    said = problem(answer, 403, "proxy-not-trusted")
    assert "trusted_proxies" in said["fix"]
    assert catalog.service.events("Refused")[-2]["address"] == "127.0.0.2"


def test_a_declared_proxy_on_another_address_is_believed(
    catalog: Shop, shared_database: Database, clerk: FakeClerk, serve: Callable[..., Running]
) -> None:
    access = f'trusted_proxies = ["127.0.0.2", "cloudflare"]\nallowed_addresses = ["{CALLER}", "127.0.0.1"]'
    config = base_config(shared_database.dsn, clerk.verify_url, access=access)
    service = serve(f'{config}[stores.{catalog.name}]\npublic_key = "{catalog.public_key}"\n')
    path = f"/{catalog.name}/products?limit=10&offset=0"
    through = {"X-Forwarded-For": f"{CALLER}, {EDGE}", "X-Forwarded-Proto": "https", "CF-Connecting-IP": CALLER}
    assert service.get(path, headers=through, source="127.0.0.2").status == 200
    refused = service.get(path, headers={**through, "CF-Connecting-IP": STRANGER}, source="127.0.0.2")
    assert STRANGER in problem(refused, 403, "address-not-allowed")["detail"]
    problem(service.get(path, headers=through, source="127.0.0.1"), 403, "proxy-not-trusted")
    assert service.get(path, token=TOKEN).status == 200
