"""HTTPS by ourselves: real handshakes, what is refused in them, and what a certificate must be like at the start."""

import http.client
import ssl
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.certificates import CertificateError, require_usable
from app.settings import Server
from tests.clerk import FakeClerk, problem
from tests.conftest import PRODUCTS, TOKEN, Database, Running, base_config, start_service
from tests.secure import Authority, ask, shaken
from tests.test_startup import refused

PAGE = "/dk/products?limit=10&offset=0"
TOKENS = {"X-Clerk-Authorization": f"Bearer {TOKEN}"}
HSTS = "Strict-Transport-Security"


class Secure:
    """A service that speaks TLS, and one that asks for client certificates besides."""

    def __init__(self, open: Running, closed: Running, authority: Authority, clients: Authority) -> None:
        self.open = open
        self.closed = closed
        self.authority = authority
        self.clients = clients


@pytest.fixture(scope="module")
def secure(
    create_database: Callable[[], Database], clerk: FakeClerk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secure]:
    database = create_database()
    database.execute("create schema dk")
    database.execute(PRODUCTS.replace("{s}", "dk"))
    database.execute("insert into dk.products (id, name) select i, repeat('x', 2000) from generate_series(1, 9000) i")
    folder = tmp_path_factory.mktemp("secure")
    authority, clients = Authority(folder / "authority"), Authority(folder / "clients")
    store = '[stores.dk]\npublic_key = "key-dk"\n'
    settings = authority.settings
    opened = start_service(folder / "open", base_config(database.dsn, clerk.verify_url, server=settings) + store)
    settings += f'\nclient_ca = "{clients.ca_file}"'
    closed = start_service(folder / "closed", base_config(database.dsn, clerk.verify_url, server=settings) + store)
    yield Secure(opened, closed, authority, clients)
    opened.stop()
    closed.stop()


def test_a_feed_is_served_over_tls(secure: Secure) -> None:
    assert secure.open.url.startswith("https://")
    answer = ask(secure.open.url, PAGE, headers=TOKENS, context=secure.authority.client())
    assert [item["id"] for item in answer.lines] == list(range(1, 11))


def test_a_feed_is_served_over_tls_to_callers_from_elsewhere_than_loopback_too(secure: Secure) -> None:
    """127.0.0.2 is no trusted proxy: over HTTPS nothing but headers of a proxy would be refused."""
    answer = ask(secure.open.url, PAGE, headers=TOKENS, context=secure.authority.client(), source="127.0.0.2")
    assert answer.status == 200


def test_plain_http_on_a_port_of_tls_gets_no_answer(secure: Secure) -> None:
    plain = secure.open.url.replace("https://", "http://")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(plain, "/-/healthz")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_tls_below_1_2_is_refused_by_the_server(secure: Secure, version: ssl.TLSVersion) -> None:
    context = secure.authority.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    with pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version|EOF occurred"):
        shaken(secure.open.url, context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken_with_keys_that_are_not_kept(secure: Secure, version: ssl.TLSVersion) -> None:
    context = secure.authority.client()
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with shaken(secure.open.url, context) as connection:
        name = (connection.cipher() or ("",))[0]
    assert name.startswith("ECDHE-") or version is ssl.TLSVersion.TLSv1_3
    assert "GCM" in name or "CHACHA20" in name


@pytest.mark.parametrize("cipher", ["AES128-SHA", "AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-SHA"])
def test_weak_ciphers_are_refused(secure: Secure, cipher: str) -> None:
    context = secure.authority.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake failure|EOF occurred"):
        shaken(secure.open.url, context)


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), (["h2"], None), ([], None)]
)
def test_http_1_1_is_all_that_is_offered(secure: Secure, offered: list[str], chosen: str | None) -> None:
    context = secure.authority.client()
    if offered:
        context.set_alpn_protocols(offered)
    with shaken(secure.open.url, context) as connection:
        assert connection.selected_alpn_protocol() == chosen


def test_a_whole_feed_streams_over_tls(secure: Secure) -> None:
    with shaken(secure.open.url, secure.authority.client()) as connection:
        connection.sendall(f"GET /dk/products HTTP/1.1\r\nHost: x\r\n{_lines(TOKENS)}\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        assert answer.chunked
        body = answer.read()
    assert body.count(b"\n") == 9000


@pytest.mark.parametrize("path", [PAGE, "/-/healthz", "/-/problems", "/nothing", "/other/products", "/dk/nothing"])
def test_every_answer_over_https_asks_for_https_from_then_on(secure: Secure, path: str) -> None:
    over_tls = ask(secure.open.url, path, headers=TOKENS, context=secure.authority.client())
    assert over_tls.headers[HSTS] == "max-age=31536000"


def test_answers_over_plain_http_do_not(shared_service: Running) -> None:
    assert shared_service.get("/-/healthz").headers[HSTS] is None
    assert shared_service.get("/s0/products", headers={"X-Forwarded-Proto": "https"}).headers[HSTS] is None


def test_own_pages_stay_on_plain_http_where_they_stay_on_loopback(secure: Secure) -> None:
    assert secure.closed.admin_url.startswith("http://127.0.0.1:")
    assert secure.closed.get("/-/healthz", admin=True).status == 200


def test_with_client_ca_a_certificate_of_it_opens_the_connection_and_the_token_still_the_feed(secure: Secure) -> None:
    context = secure.authority.client(authority=secure.clients)
    assert ask(secure.closed.url, PAGE, headers=TOKENS, context=context).status == 200
    problem(ask(secure.closed.url, PAGE, context=context), 401, "token-missing")


@pytest.mark.parametrize("path", [PAGE, "/-/healthz"])
@pytest.mark.parametrize("other", [False, True], ids=["no certificate", "another authority's"])
def test_with_client_ca_nobody_else_gets_an_answer(secure: Secure, path: str, other: bool) -> None:
    context = secure.authority.client(authority=secure.authority if other else None)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        ask(secure.closed.url, path, headers=TOKENS, context=context)


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


@pytest.fixture
def files(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def complaint(**changes: object) -> str:
    with pytest.raises(CertificateError) as refused:
        require_usable(Server(**{key: str(value) for key, value in changes.items()}))  # type: ignore[arg-type]
    message = str(refused.value)
    assert "\n" not in message
    assert "PRIVATE KEY-----" not in message
    return message


def test_what_trustme_makes_is_usable(files: Authority) -> None:
    require_usable(Server(certfile=str(files.certfile), keyfile=str(files.keyfile), client_ca=str(files.ca_file)))
    require_usable(Server())


@pytest.mark.parametrize("key", ["certfile", "keyfile", "client_ca"])
def test_a_file_that_cannot_be_read_is_named_with_its_key(files: Authority, tmp_path: Path, key: str) -> None:
    given = {"certfile": files.certfile, "keyfile": files.keyfile, "client_ca": files.ca_file}
    missing = tmp_path / "missing.pem"
    assert complaint(**{**given, key: missing}).startswith(
        f'server.{key} = "{missing}": it can\'t be read: No such file'
    )
    assert complaint(**{**given, key: tmp_path}).startswith(
        f'server.{key} = "{tmp_path}": it can\'t be read: Is a direc'
    )


@pytest.mark.parametrize("text", ["", "not PEM", "-----BEGIN CERTIFICATE REQUEST-----\n"])
@pytest.mark.parametrize("key", ["certfile", "keyfile", "client_ca"])
def test_a_file_that_holds_something_else_is_named(files: Authority, tmp_path: Path, key: str, text: str) -> None:
    odd = tmp_path / "odd.pem"
    odd.write_text(text)
    given = {"certfile": files.certfile, "keyfile": files.keyfile, "client_ca": files.ca_file}
    kind = "private key" if key == "keyfile" else "certificate"
    assert complaint(**{**given, key: odd}) == f'server.{key} = "{odd}": it holds no {kind} in PEM form.'


def test_certificate_and_key_the_wrong_way_round_are_told_apart(files: Authority) -> None:
    message = complaint(certfile=files.keyfile, keyfile=files.certfile)
    assert message == f'server.certfile = "{files.keyfile}": it holds no certificate in PEM form.'


def test_a_key_of_another_certificate_is_named(files: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    message = complaint(certfile=files.certfile, keyfile=other.keyfile)
    assert message == f'server.keyfile = "{other.keyfile}": it is not the key of the certificate in "{files.certfile}".'


@pytest.mark.parametrize("key", ["certfile", "keyfile", "client_ca"])
def test_a_damaged_file_is_named(files: Authority, tmp_path: Path, key: str) -> None:
    given = {"certfile": files.certfile, "keyfile": files.keyfile, "client_ca": files.ca_file}
    damaged = tmp_path / "damaged.pem"
    text = Path(given[key]).read_text().splitlines()
    damaged.write_text("\n".join([text[0], *(line[:-8] for line in text[1:-1]), text[-1]]) + "\n")
    assert str(damaged) in complaint(**{**given, key: damaged})


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_an_encrypted_key_is_told_how_to_open_it(files: Authority, tmp_path: Path, form: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            getattr(serialization.PrivateFormat, form),
            serialization.BestAvailableEncryption(b"hunter2"),
        )
    )
    message = complaint(certfile=files.certfile, keyfile=encrypted)
    assert message.startswith(f'server.keyfile = "{encrypted}": the key is encrypted')
    assert "openssl pkey" in message


def test_an_expired_certificate_is_told_before_anybody_meets_it(tmp_path: Path) -> None:
    expired = Authority(tmp_path / "authority")
    issued = trustme.CA().issue_cert("feeds.shop.example", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    issued.private_key_pem.write_to_path(str(expired.keyfile))
    issued.cert_chain_pems[0].write_to_path(str(expired.certfile))
    message = complaint(certfile=expired.certfile, keyfile=expired.keyfile)
    assert message.startswith(f'server.certfile = "{expired.certfile}": it has expired')


def test_a_certificate_problem_stops_the_start_in_one_line(database: Database, tmp_path: Path) -> None:
    config = base_config(database.dsn, "http://127.0.0.1:1/", server='certfile = "missing.pem"\nkeyfile = "x"')
    message = refused(tmp_path, f'{config}[stores.dk]\npublic_key = "key-dk"\n')
    assert "missing.pem\": it can't be read" in message
