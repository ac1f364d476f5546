"""Debian's nginx in front of the service, with the file of deploy/nginx: nothing is lost, withheld or smoothed over."""

import gzip
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from app.sockets import listen
from tests.clerk import FakeClerk, problem
from tests.conftest import PRODUCTS, TOKEN, Answer, Database, Running, Serve, base_config, eventually

pytestmark = pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")

EXAMPLE = Path(__file__).parents[1] / "deploy" / "nginx" / "clerk-feed.conf"
HOST = "feeds.your-shop.example"
ITEMS = 9000
STOPS_AT = 6000
CALLER = "127.0.0.2"
"""Loopback too, but no trusted proxy: what a client from elsewhere is to nginx."""


class Nginx:
    """A running nginx and how to ask it."""

    def __init__(self, port: int, authority: trustme.CA) -> None:
        self.port = port
        self._context = ssl.create_default_context()
        authority.configure_trust(self._context)

    @contextmanager
    def begin(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[http.client.HTTPResponse]:
        """An answer whose headers have been read."""
        connection = http.client.HTTPSConnection(
            "localhost", self.port, timeout=60, context=self._context, source_address=(CALLER, 0)
        )
        sent = {"Host": HOST, "X-Clerk-Authorization": f"Bearer {TOKEN}", **(headers or {})}
        with closing(connection):
            connection.request("GET", path, headers=sent)
            with closing(connection.getresponse()) as response:
                yield response

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        with self.begin(path, headers) as response:
            return Answer(response.status, response.headers, response.read())


Proxied = Callable[..., Nginx]


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    """Starts nginx with our example, its addresses and certificate replaced; `change` edits it further."""
    started: list[subprocess.Popen[bytes]] = []

    def start(service: Running, change: Callable[[str], str] = str) -> Nginx:
        folder = tmp_path / "nginx"
        folder.mkdir()
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", HOST)
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        with closing(listen("127.0.0.1:0", user_timeout_seconds=30)) as free:
            port: int = free.getsockname()[1]
        text = EXAMPLE.read_text()
        for old, new in (
            ("server 127.0.0.1:8000;", f"server {urlsplit(service.url).netloc};"),
            ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
            (f"ssl_certificate /etc/letsencrypt/live/{HOST}/fullchain.pem;", f"ssl_certificate {folder}/server.pem;"),
            (
                f"ssl_certificate_key /etc/letsencrypt/live/{HOST}/privkey.pem;",
                f"ssl_certificate_key {folder}/server.pem;",
            ),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (folder / "clerk-feed.conf").write_text(change(text))
        (folder / "nginx.conf").write_text(_MAIN.format(folder=folder, user="user root;" if os.geteuid() == 0 else ""))
        command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr, checked.stderr
        started.append(subprocess.Popen(command))
        eventually((folder / "nginx.pid").exists)
        return Nginx(port, authority)

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


_MAIN = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/clerk-feed.conf;
}}
"""


@pytest.fixture
def service(serve: Serve, database: Database, clerk: FakeClerk) -> Running:
    """A service whose feed holds back at one item for as long as a test holds an advisory lock, or fails there."""
    table = PRODUCTS.replace("{s}", "stock").replace(".products", ".product")
    database.execute(
        f"""
        create schema stock; create schema shop; {table};
        insert into stock.product (id) select generate_series(1, {ITEMS});
        analyze stock.product;
        create table stock.trouble (divisor int);
        insert into stock.trouble values (1);
        create function stock.troubled(id bigint) returns text language plpgsql stable as $$
        begin
          if id = {STOPS_AT} then
            perform pg_advisory_xact_lock_shared(83);
            perform 1 / divisor from stock.trouble;
          end if;
          return 'N' || id;
        end $$;
        create view shop.products as
        select id, stock.troubled(id) as name, description, price, image, url, categories, created_at, modified_at
        from stock.product;
        """
    )
    return serve(base_config(database.dsn, clerk.verify_url) + '[stores.shop]\npublic_key = "key-shop"\n')


def test_the_token_and_the_caller_arrive_as_they_are(service: Running, proxied: Proxied, clerk: FakeClerk) -> None:
    nginx = proxied(service)
    token = "a.long-Token_with~every+char/" + "x" * 2000
    clerk.good.add(token)
    answer = nginx.get(
        "/shop/products?limit=3&offset=0",
        {"X-Clerk-Authorization": f"Bearer {token}", "X-Forwarded-For": "198.51.100.7"},
    )
    assert [item["id"] for item in answer.lines] == [1, 2, 3]
    assert (token, "key-shop") in clerk.calls
    problem(nginx.get("/shop/nothing", {"X-Clerk-Authorization": "Bearer wrong"}), 401, "token-rejected")
    [refused] = [event for event in service.events("Refused") if event["path"] == "/shop/nothing"]
    assert refused["address"] == CALLER, "what the client wrote into X-Forwarded-For is not believed"


def test_a_walk_through_nginx_brings_every_item(service: Running, proxied: Proxied) -> None:
    nginx = proxied(service)
    seen = []
    for offset in range(0, ITEMS + 1000, 1000):
        seen += [item["id"] for item in nginx.get(f"/shop/products?limit=1000&offset={offset}").lines]
    assert seen == list(range(1, ITEMS + 1))


def test_a_stream_is_passed_on_while_it_is_made(service: Running, proxied: Proxied, database: Database) -> None:
    nginx = proxied(service)
    database.execute("select pg_advisory_lock(83)")
    direct = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=60)
    with closing(direct), nginx.begin("/shop/products") as through:
        direct.request("GET", "/shop/products", headers={"X-Clerk-Authorization": f"Bearer {TOKEN}"})
        with closing(direct.getresponse()) as answer:
            plain, proxy = Reading(answer), Reading(through)
            # Both answers wait at the same item. What the service has sent until then has come through as well.
            eventually(lambda: database.value(_WAITING) == 2)
            eventually(plain.rests)
            assert plain.text.count(b"\n") > 1000
            eventually(lambda: len(proxy.text) >= len(plain.text))
            database.execute("select pg_advisory_unlock(83)")
            assert proxy.all() == plain.all()
    assert proxy.text.count(b"\n") == ITEMS


_WAITING = """
select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
"""


class Reading:
    """An answer that a thread reads as it comes."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.text = b""
        self._seen = -1
        self._thread = threading.Thread(target=self._read, args=(response,), daemon=True)
        self._thread.start()

    def _read(self, response: http.client.HTTPResponse) -> None:
        while piece := response.read1(65_536):
            self.text += piece

    def rests(self) -> bool:
        """Whether nothing came since this was asked last, half a second ago."""
        time.sleep(0.5)
        before, self._seen = self._seen, len(self.text)
        return before == self._seen

    def all(self) -> bytes:
        self._thread.join(60)
        return self.text


def test_a_compressed_stream_stays_compressed(service: Running, proxied: Proxied) -> None:
    answer = proxied(service).get("/shop/products", {"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(gzip.decompress(answer.body).splitlines()) == ITEMS


def test_an_answer_that_the_service_cuts_off_stays_cut_off(
    service: Running, proxied: Proxied, database: Database
) -> None:
    nginx = proxied(service)
    database.execute("update stock.trouble set divisor = 0")
    with nginx.begin("/shop/products") as response:
        assert response.status == 200
        with pytest.raises(http.client.IncompleteRead) as cut:
            response.read()
    assert 0 < cut.value.partial.count(b"\n") < ITEMS


@pytest.mark.parametrize("accepted", ["application/x-ndjson", "application/json"])
def test_behind_another_proxy_that_takes_a_cut_for_the_end_what_arrives_cannot_be_read(
    service: Running, proxied: Proxied, database: Database, accepted: str
) -> None:
    """The outer one asks the inner one by HTTP/1.0, as nginx does unless told otherwise. The service can't know."""
    with closing(listen("127.0.0.1:0", user_timeout_seconds=30)) as free:
        outer: int = free.getsockname()[1]

    def behind_another(text: str) -> str:
        [inner] = re.findall(r"listen (127\.0\.0\.1:\d+) ssl;", text)
        location = f"location / {{ proxy_pass https://{inner}; proxy_set_header Host {HOST}; }}"
        return f"{text}\nserver {{ listen 127.0.0.1:{outer}; {location} }}"

    proxied(service, behind_another)
    headers = {"X-Clerk-Authorization": f"Bearer {TOKEN}", "Accept": accepted}

    def asked() -> bytes:
        with closing(http.client.HTTPConnection("127.0.0.1", outer, timeout=60)) as connection:
            connection.request("GET", "/shop/products", headers=headers)
            with closing(connection.getresponse()) as response:
                assert response.status == 200
                return response.read()

    assert asked().count(b'{"id":') == ITEMS
    database.execute("update stock.trouble set divisor = 0")
    body = asked()
    assert 1000 < body.count(b'{"id":') < ITEMS
    last = body.splitlines()[-1]
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(last)


def test_an_answer_of_a_service_that_is_killed_stays_cut_off(
    service: Running, proxied: Proxied, database: Database
) -> None:
    nginx = proxied(service)
    database.execute("select pg_advisory_lock(83)")
    try:
        with nginx.begin("/shop/products") as response:
            response.readline()
            service.process.kill()
            with pytest.raises(http.client.IncompleteRead):
                response.read()
    finally:
        database.execute("select pg_advisory_unlock(83)")


def test_nginx_as_one_leaves_it_is_refused_where_a_cut_would_not_show(service: Running, proxied: Proxied) -> None:
    def as_it_comes(text: str) -> str:
        return re.sub(r'proxy_http_version 1.1;|proxy_set_header Connection "";', "", text)

    nginx = proxied(service, as_it_comes)
    assert len(nginx.get("/shop/products?limit=1000&offset=0").lines) == 1000
    said = problem(nginx.get("/shop/products"), 505, "http-version")
    assert "proxy_http_version 1.1" in said["fix"]


def test_without_x_forwarded_proto_nothing_is_served(service: Running, proxied: Proxied) -> None:
    nginx = proxied(service, lambda text: text.replace("proxy_set_header X-Forwarded-Proto $scheme;", ""))
    problem(nginx.get("/shop/products?limit=3&offset=0"), 403, "not-secure")
