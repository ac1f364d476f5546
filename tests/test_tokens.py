"""Who may read: Clerk's tokens and HTTP authentication over real sockets, and the life of a token by our own clock."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from app.access.tokens import Tokens, bearer
from app.clerk.api import ClerkApi, ClerkUnreachableError, Verdict
from app.protocol.problems import Refusal
from app.settings import Access, Duration, Store
from app.status.events import Event
from tests.clerk import Behaviour, FakeClerk, accepted, error, problem, rejected
from tests.conftest import (
    PRODUCTS,
    TOKEN,
    Answer,
    Database,
    Hosted,
    Loop,
    Running,
    Serve,
    Shop,
    base_config,
    eventually,
    start_service,
)

PAGE = "products?limit=10&offset=0"
PASSWORD = "pässwörd-☃ 日本"


class Moody:
    """A service whose Clerk does as a test says. Its stores share one catalog; every test takes a token of its own."""

    def __init__(self, service: Running, clerk: FakeClerk) -> None:
        self.service = service
        self.clerk = clerk

    def get(self, token: str | None, store: str = "dk", **options: Any) -> Answer:
        return self.service.get(f"/{store}/{PAGE}", token=token, **options)

    def asked(self, token: str) -> int:
        """How often Clerk was asked about a token."""
        return sum(asked == token for asked, _ in list(self.clerk.calls))


@pytest.fixture(scope="module")
def moody_service(
    create_database: Callable[[], Database], hosted: Hosted, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Moody]:
    database = create_database()
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute("insert into shop.products (id) values (1)")
    clerk = FakeClerk()
    clerk.url = hosted(clerk.app)
    config = base_config(
        database.dsn, clerk.verify_url, access='verify_timeout = "1s"\ntoken_cache = 4', server='send_timeout = "5s"'
    )
    basic = f'basic = {{ username = "clerk", password = {json.dumps(PASSWORD, ensure_ascii=False)} }}'
    for name, more in {
        "dk": "",
        "both": basic,
        "basic-only": f"token_auth = false\n{basic}",
    }.items():
        config += f'[stores.{name}]\npublic_key = "key-of-{name}"\nschema = "shop"\n{more}\n'
    service = start_service(tmp_path_factory.mktemp("moody"), config)
    yield Moody(service, clerk)
    service.stop()


@pytest.fixture
def moody(moody_service: Moody) -> Moody:
    """The service with a Clerk that knows every token which starts with good."""

    async def knows(token: str, key: str) -> Response:
        return accepted() if token.startswith("good") else rejected()

    moody_service.clerk.behaviour = knows
    return moody_service


def behaves(answer: Callable[[], Response]) -> Behaviour:
    """A Clerk that gives one answer to everything."""

    async def behaviour(token: str, key: str) -> Response:
        return answer()

    return behaviour


def closed_port() -> tuple[socket.socket, int]:
    """A port that refuses connections for as long as the socket is kept."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    return holder, holder.getsockname()[1]


def test_a_token_that_clerk_accepts_reads_the_feed(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (7)")
    assert [item["id"] for item in catalog.items(PAGE)] == [7]


def test_clerk_is_asked_with_the_public_key_of_the_store(catalog: Shop) -> None:
    catalog.get(PAGE)
    assert catalog.clerk.calls_for(catalog.public_key) == [TOKEN]


def test_a_token_that_clerk_rejects_is_refused(catalog: Shop) -> None:
    answer = catalog.get(PAGE, token="stolen-token")
    said = problem(answer, 401, "token-rejected")
    assert "public_key" in said["fix"]
    assert "stolen-token" not in answer.body.decode()
    assert catalog.public_key not in answer.body.decode()


def test_a_request_without_a_token_is_refused_and_clerk_is_not_asked(catalog: Shop) -> None:
    said = problem(catalog.get(PAGE, token=None), 401, "token-missing")
    assert "X-Clerk-Authorization" in said["detail"]
    assert catalog.clerk.calls_for(catalog.public_key) == []


def test_a_token_in_the_authorization_header_does_not_count(catalog: Shop) -> None:
    answer = catalog.get(PAGE, token=None, headers={"Authorization": f"Bearer {TOKEN}"})
    problem(answer, 401, "token-missing")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer{TOKEN}",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer\t{TOKEN}",
        f"Bearer {TOKEN}é",
        f"Bearer\xa0{TOKEN}",
        "Bearer " + "x" * 9000,
    ],
    ids=lambda header: header[:24] or "empty",
)
def test_a_header_that_is_not_a_bearer_token_is_refused_and_clerk_is_not_asked(moody: Moody, header: str) -> None:
    before = len(moody.clerk.calls)
    answer = moody.get(None, headers={"X-Clerk-Authorization": header})
    problem(answer, 401, "token-malformed")
    assert TOKEN not in answer.body.decode()
    assert len(moody.clerk.calls) == before


def test_the_scheme_may_be_written_in_any_case(catalog: Shop) -> None:
    answer = catalog.get(PAGE, token=None, headers={"X-Clerk-Authorization": f"bEARER   {TOKEN}"})
    assert answer.status == 200


def test_a_token_that_is_good_for_one_store_is_refused_for_another(moody: Moody) -> None:
    async def only_dk(token: str, key: str) -> Response:
        return accepted() if key == "key-of-dk" else rejected()

    moody.clerk.behaviour = only_dk
    basic = {"Authorization": credentials("clerk", PASSWORD)}
    assert moody.get("good-for-dk").status == 200
    problem(moody.get("good-for-dk", "both", headers=basic), 401, "token-rejected")
    assert moody.get("good-for-dk").status == 200


ELSEWHERE = "/v2/elsewhere"


async def slow(token: str, key: str) -> Response:
    await asyncio.sleep(1.5)
    return accepted()


async def drips() -> AsyncIterator[bytes]:
    for byte in b'{"status": "ok"}' + b" " * 10:
        yield bytes([byte])
        await asyncio.sleep(0.1)


FAILURES: dict[str, Behaviour] = {
    "slow": slow,
    "dripping": behaves(lambda: StreamingResponse(drips(), media_type="application/json")),
    "500": behaves(lambda: Response("Internal Server Error", 500)),
    "InternalError": behaves(lambda: error("InternalError")),
    "InternalError with 500": behaves(lambda: error("InternalError", 500)),
    "ParsingError": behaves(lambda: error("ParsingError")),
    "LogicalError": behaves(lambda: error("LogicalError")),
    "an error of no known type": behaves(lambda: JSONResponse({"status": "error", "type": "<b>boo</b>"})),
    "no status": behaves(lambda: JSONResponse({"token_payload": {}})),
    "a status that is not text": behaves(lambda: JSONResponse({"status": ["ok"]})),
    "401 without Clerk's envelope": behaves(lambda: Response("Unauthorized", 401)),
    "HTML": behaves(lambda: HTMLResponse("<html>status ok</html>")),
    "nothing": behaves(Response),
    "204": behaves(lambda: Response(status_code=204)),
    "a list": behaves(lambda: JSONResponse([{"status": "ok"}])),
    "text": behaves(lambda: JSONResponse("ok")),
    "broken JSON": behaves(lambda: Response('{"status": "ok"', media_type="application/json")),
    "not UTF-8": behaves(lambda: Response(b'{"status": "ok", "x": "\xff"}', media_type="application/json")),
    "deeply nested": behaves(lambda: Response("[" * 60_000, media_type="application/json")),
    "a huge body": behaves(lambda: JSONResponse({"status": "ok", "padding": "x" * 3_000_000})),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_while_clerk_cannot_be_asked_nothing_is_served(moody: Moody, failure: str) -> None:
    moody.clerk.behaviour = FAILURES[failure]
    token = f"good-{failure.replace(' ', '-')}"
    answer = moody.get(token)
    problem(answer, 503, "clerk-unreachable")
    assert int(answer.headers["Retry-After"]) > 0
    assert token not in answer.body.decode()
    assert "boo" not in answer.body.decode()


def test_a_redirect_of_clerk_is_not_followed(moody: Moody, hosted: Hosted) -> None:
    other = FakeClerk(good="good-redirected")
    other.url = hosted(other.app)
    moody.clerk.behaviour = behaves(lambda: RedirectResponse(other.verify_url, 307))
    problem(moody.get("good-redirected"), 503, "clerk-unreachable")
    assert other.calls == []


def test_a_token_unverified_for_clerks_trouble_passes_once_clerk_answers(moody: Moody) -> None:
    healthy = moody.clerk.behaviour
    moody.clerk.behaviour = behaves(lambda: error("InternalError"))
    problem(moody.get("good-later"), 503, "clerk-unreachable")
    moody.clerk.behaviour = healthy
    assert moody.get("good-later").status == 200


def test_a_clerk_that_refuses_connections_is_a_503_and_an_event(
    catalog: Shop, shared_database: Database, serve: Serve
) -> None:
    holder, port = closed_port()
    config = base_config(shared_database.dsn, f"http://127.0.0.1:{port}/v2/token/verify")
    service = serve(f'{config}\n[stores.{catalog.name}]\npublic_key = "{catalog.public_key}"\n')
    answer = service.get(f"/{catalog.name}/{PAGE}")
    holder.close()
    problem(answer, 503, "clerk-unreachable")
    assert int(answer.headers["Retry-After"]) > 0
    [event] = service.events("ClerkUnreachable")
    assert (event["store"], event["grace"]) == (catalog.name, False)
    text = answer.body.decode() + service.log.read_text()
    assert TOKEN not in text
    assert catalog.public_key not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTPS_PROXY", "socks5://proxy.example"), ("HTTPS_PROXY", "proxy:x:y"), ("SSL_CERT_FILE", "/no")],
)
def test_an_environment_that_no_call_can_be_made_with_is_told_and_looked_at_again(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, hosted: Hosted, name: str, value: str
) -> None:
    clerk = FakeClerk(good="t")
    clerk.url = hosted(clerk.app)

    async def ask_twice() -> Verdict:
        api = ClerkApi(clerk.verify_url, 5)
        try:
            with monkeypatch.context() as environment:
                environment.setenv(name, value)
                with pytest.raises(ClerkUnreachableError, match="environment"):
                    await api.verify("t", "key-dk")
            return await api.verify("t", "key-dk")
        finally:
            await api.close()

    assert loop.run(ask_twice()).good


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_body_that_says_ok_counts_whatever_the_http_status(moody: Moody, status: int) -> None:
    moody.clerk.behaviour = behaves(lambda: JSONResponse({"status": "ok", "token_payload": {}}, status))
    assert moody.get(f"good-with-{status}").status == 200


@pytest.mark.parametrize("status", [200, 401, 403, 500])
def test_a_body_that_says_authentication_error_counts_whatever_the_http_status(moody: Moody, status: int) -> None:
    moody.clerk.behaviour = behaves(lambda: error("AuthenticationError", status))
    problem(moody.get(f"bad-with-{status}"), 401, "token-rejected")


def test_an_ok_without_a_payload_counts(moody: Moody) -> None:
    moody.clerk.behaviour = behaves(lambda: JSONResponse({"status": "ok"}))
    assert moody.get("good-without-payload").status == 200


def test_requests_at_the_same_time_with_one_token_ask_clerk_once(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    clients = 6
    together = threading.Barrier(clients)

    async def thoughtful(token: str, key: str) -> Response:
        await asyncio.sleep(0.4)
        return accepted()

    def ask(_: int) -> int:
        together.wait(10)
        return catalog.get(PAGE).status

    catalog.clerk.behaviour = thoughtful
    try:
        with ThreadPoolExecutor(clients) as threads:
            statuses = list(threads.map(ask, range(clients)))
    finally:
        catalog.clerk.behaviour = None
    assert statuses == [200] * clients
    assert catalog.clerk.calls_for(catalog.public_key) == [TOKEN]


def test_a_token_is_asked_once_for_many_pages(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 50)")
    assert len(catalog.walk("products", limit=5)) == 50
    assert catalog.clerk.calls_for(catalog.public_key) == [TOKEN]


def test_a_rejection_is_remembered(moody: Moody) -> None:
    for _ in range(5):
        problem(moody.get("bad-and-persistent"), 401, "token-rejected")
    assert moody.asked("bad-and-persistent") == 1


def test_a_flood_of_wrong_tokens_does_not_push_a_good_one_out(moody: Moody) -> None:
    assert moody.get("good-in-a-flood").status == 200
    for number in range(12):  # the cache holds 4
        problem(moody.get(f"bad-{number}"), 401, "token-rejected")
    assert moody.get("good-in-a-flood").status == 200
    assert moody.asked("good-in-a-flood") == 1


def test_exp_in_the_token_payload_ends_the_life_of_a_token(moody: Moody) -> None:
    expires: list[float] = []

    async def short(token: str, key: str) -> Response:
        expires.append(time.time() + 1)
        return accepted(exp=expires[-1])

    moody.clerk.behaviour = short
    assert moody.get("good-for-a-second").status == 200

    def asked_again() -> bool:
        assert moody.get("good-for-a-second").status == 200
        return moody.asked("good-for-a-second") == 2

    eventually(asked_again)
    assert time.time() >= expires[0]


def test_exp_of_a_token_that_is_a_jwt_ends_its_life(moody: Moody) -> None:
    expires = time.time() + 1
    token = jwt({"exp": expires, "name": "good"})
    moody.clerk.behaviour = behaves(lambda: accepted() if time.time() < expires else rejected())
    assert moody.get(token).status == 200
    eventually(lambda: moody.get(token).status == 401)
    assert time.time() >= expires


def test_past_its_ttl_a_token_is_asked_again_and_stays_good_while_clerk_is_away(
    catalog: Shop, shared_database: Database, hosted: Hosted, serve: Serve
) -> None:
    clerk = FakeClerk()
    clerk.url = hosted(clerk.app)
    config = base_config(shared_database.dsn, clerk.verify_url, access='token_ttl = "1ms"')
    service = serve(f'{config}\n[stores.{catalog.name}]\npublic_key = "{catalog.public_key}"\n')
    path = f"/{catalog.name}/{PAGE}"

    assert [service.get(path).status for _ in range(3)] == [200] * 3
    assert len(clerk.calls) == 3

    clerk.behaviour = behaves(lambda: error("InternalError"))
    assert [service.get(path).status for _ in range(3)] == [200] * 3
    problem(service.get(path, token="unknown-token"), 503, "clerk-unreachable")
    assert [event["grace"] for event in service.events("ClerkUnreachable")] == [True, False]

    clerk.behaviour = behaves(rejected)
    eventually(lambda: service.get(path).status == 401, 6)


def test_past_its_grace_a_token_is_no_longer_good_while_clerk_is_away(
    catalog: Shop, shared_database: Database, hosted: Hosted, serve: Serve
) -> None:
    clerk = FakeClerk()
    clerk.url = hosted(clerk.app)
    access = 'token_ttl = "1ms"\ntoken_grace = "1ms"'
    service = serve(
        base_config(shared_database.dsn, clerk.verify_url, access=access)
        + f'[stores.{catalog.name}]\npublic_key = "{catalog.public_key}"\n'
    )
    path = f"/{catalog.name}/{PAGE}"
    assert service.get(path).status == 200
    clerk.behaviour = behaves(lambda: error("InternalError"))
    problem(service.get(path), 503, "clerk-unreachable")


def credentials(username: str, password: str, encoding: str = "utf-8") -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode(encoding)).decode()


def encoded(text: bytes) -> str:
    return base64.b64encode(text).decode()


@pytest.mark.parametrize("store", ["both", "basic-only"])
def test_the_right_credentials_open_the_store(moody: Moody, store: str) -> None:
    answer = moody.get("good-with-basic", store, headers={"Authorization": credentials("clerk", PASSWORD)})
    assert [item["id"] for item in answer.lines] == [1]


def test_a_store_without_tokens_asks_for_credentials_only(moody: Moody) -> None:
    before = len(moody.clerk.calls)
    answer = moody.get(None, "basic-only", headers={"Authorization": credentials("clerk", PASSWORD)})
    assert answer.status == 200
    assert len(moody.clerk.calls) == before


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic ",
        "Bearer good-token",
        "Basic not*base64",
        "Basic Y2xlcms6\u00e9",
        f"Basic {encoded(b'clerk')}",
        f"Basic {encoded(b':')}",
        credentials("clerk", "wrong"),
        credentials("clerk", ""),
        credentials("Clerk", PASSWORD),
        credentials("clerk", PASSWORD + " "),
        credentials("", PASSWORD),
        credentials("clerk", "pässwörd", "latin-1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("store", ["both", "basic-only"])
def test_missing_and_wrong_credentials_are_challenged(moody: Moody, store: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = moody.get("good-with-wrong-basic", store, headers=headers)
    said = problem(answer, 401, "basic-required")
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert "USER:PASS@" in said["fix"]
    assert PASSWORD not in answer.json["detail"]


def test_credentials_are_asked_before_the_token_and_clerk_is_not(moody: Moody) -> None:
    problem(moody.get("good-but-too-early", "both"), 401, "basic-required")
    assert moody.asked("good-but-too-early") == 0


def test_the_right_credentials_do_not_make_up_for_a_wrong_token(moody: Moody) -> None:
    headers = {"Authorization": credentials("clerk", PASSWORD)}
    problem(moody.get("bad-with-basic", "both", headers=headers), 401, "token-rejected")
    problem(moody.get(None, "both", headers=headers), 401, "token-missing")


def test_no_token_password_or_key_reaches_an_answer_or_the_log(moody: Moody) -> None:
    answers = [
        moody.get("good-but-secret"),
        moody.get("bad-but-secret"),
        moody.get(None, headers={"X-Clerk-Authorization": "Bearer odd-but-secret and more"}),
        moody.get("good-but-secret", "both", headers={"Authorization": credentials("clerk", "wrong-but-secret")}),
        moody.get("bad-but-secret", "both", headers={"Authorization": credentials("clerk", PASSWORD)}),
    ]
    moody.clerk.behaviour = behaves(lambda: error("InternalError"))
    answers.append(moody.get("unasked-but-secret"))
    assert [answer.status for answer in answers] == [200, 401, 401, 401, 401, 503]
    text = moody.service.log.read_text() + "".join(answer.body.decode() for answer in answers)
    assert "token-rejected" in text
    for secret in (
        "but-secret",
        "key-of-",
        PASSWORD,
        json.dumps(PASSWORD)[1:-1],
        credentials("clerk", PASSWORD),
        credentials("clerk", "wrong-but-secret"),
    ):
        assert secret not in text


class Clock:
    """Stands in for the time module: both clocks move when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1.7e9


class Scripted:
    """A verifier that answers by a script and counts."""

    def __init__(self) -> None:
        self.answer: Verdict | None = Verdict(True)
        self.calls = 0
        self.gate: asyncio.Event | None = None

    async def verify(self, token: str, public_key: str) -> Verdict:
        self.calls += 1
        if self.gate:
            await self.gate.wait()
        if self.answer is None:
            raise ClerkUnreachableError("no answer")
        return self.answer


ANY = "token"


class Bench:
    """Tokens with a clock and a verifier in a test's hands."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.clerk = Scripted()
        self.events: list[Event] = []
        access = Access(token_ttl=Duration(600), token_grace=Duration(900), token_cache=2)
        self.tokens = Tokens(self.clerk, access, self.events.append)
        self.store = Store(public_key="key-of-dk", name="dk")

    async def ask(self, token: str = ANY) -> str:
        """The code of the refusal, or "ok"."""
        try:
            await self.tokens.check(self.store, token)
        except Refusal as refusal:
            return refusal.problem.code
        return "ok"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = Clock()
    monkeypatch.setattr("app.access.tokens.time", clock)
    return Bench(clock)


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene to its end, with nothing left behind."""

    async def stage() -> None:
        await scene()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(stage())


def jwt(claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2lnbmF0dXJl"


def test_a_token_is_known_for_its_ttl_and_not_longer(bench: Bench) -> None:
    async def scene() -> None:
        assert not bench.tokens.is_known(bench.store, "token")
        assert await bench.ask() == "ok"
        bench.clock.now += 599
        assert bench.tokens.is_known(bench.store, "token")
        assert (await bench.ask(), bench.clerk.calls) == ("ok", 1)
        bench.clock.now += 2
        assert not bench.tokens.is_known(bench.store, "token")
        assert (await bench.ask(), bench.clerk.calls) == ("ok", 2)

    play(scene)


def test_grace_counts_from_the_last_time_clerk_vouched(bench: Bench) -> None:
    async def scene() -> None:
        assert await bench.ask() == "ok"
        bench.clock.now += 601
        assert await bench.ask() == "ok"
        bench.clerk.answer = None
        bench.clock.now += 899
        assert await bench.ask() == "ok"
        bench.clock.now += 2
        assert await bench.ask() == "clerk-unreachable"

    play(scene)


def test_in_grace_clerk_is_asked_again_once_a_second_at_most(bench: Bench) -> None:
    async def scene() -> None:
        await bench.ask()
        bench.clock.now += 601
        bench.clerk.answer = None
        assert [await bench.ask() for _ in range(5)] == ["ok"] * 5
        assert bench.clerk.calls == 2
        bench.clock.now += 1.1
        bench.clerk.answer = Verdict(True)
        assert (await bench.ask(), bench.clerk.calls) == ("ok", 3)
        assert bench.tokens.is_known(bench.store, "token")

    play(scene)


def test_in_grace_clerk_is_asked_again_however_busy_the_importer_is(bench: Bench) -> None:
    async def scene() -> None:
        await bench.ask()
        bench.clock.now += 601
        bench.clerk.answer = None
        assert await bench.ask() == "ok"
        bench.clerk.answer = Verdict(False)
        answers = []
        for _ in range(6):
            bench.clock.now += 0.3
            answers.append(await bench.ask())
        assert answers[-1] == "token-rejected"

    play(scene)


def test_a_token_that_clerk_takes_back_has_no_grace(bench: Bench) -> None:
    async def scene() -> None:
        await bench.ask()
        bench.clock.now += 601
        bench.clerk.answer = Verdict(False)
        assert await bench.ask() == "token-rejected"
        bench.clerk.answer = None
        bench.clock.now += 31
        assert await bench.ask() == "clerk-unreachable"

    play(scene)


def test_exp_beats_ttl_and_grace(bench: Bench) -> None:
    async def scene() -> None:
        bench.clerk.answer = Verdict(True, bench.clock.time() + 60)
        assert await bench.ask() == "ok"
        bench.clock.now += 59
        assert (await bench.ask(), bench.clerk.calls) == ("ok", 1)
        bench.clerk.answer = None
        bench.clock.now += 2
        assert await bench.ask() == "clerk-unreachable"

    play(scene)


def test_exp_far_ahead_does_not_prolong_the_ttl(bench: Bench) -> None:
    async def scene() -> None:
        bench.clerk.answer = Verdict(True, bench.clock.time() + 86_400)
        await bench.ask()
        bench.clock.now += 601
        await bench.ask()
        assert bench.clerk.calls == 2

    play(scene)


@pytest.mark.parametrize(("in_payload", "in_token"), [(60, 600), (600, 60)])
def test_of_two_exps_the_earlier_counts(bench: Bench, in_payload: float, in_token: float) -> None:
    async def scene() -> None:
        bench.clerk.answer = Verdict(True, bench.clock.time() + in_payload)
        token = jwt({"exp": bench.clock.time() + in_token})
        await bench.ask(token)
        bench.clock.now += 59
        assert bench.tokens.is_known(bench.store, token)
        bench.clock.now += 2
        assert not bench.tokens.is_known(bench.store, token)

    play(scene)


@pytest.mark.parametrize(
    "token",
    [
        "a.b.c",
        "..",
        "a.!!!.c",
        jwt({}),
        jwt({"exp": "soon"}),
        jwt({"exp": None}),
        jwt({"exp": 0}),
        jwt({"exp": True}),
        jwt([1]),
        jwt("exp"),
        f"a.{base64.urlsafe_b64encode(b'[' * 5000).decode()}.c",
    ],
    ids=lambda token: token[:50],
)
def test_a_token_that_is_no_jwt_with_an_exp_lives_for_the_ttl(bench: Bench, token: str) -> None:
    async def scene() -> None:
        assert await bench.ask(token) == "ok"
        bench.clock.now += 599
        assert bench.tokens.is_known(bench.store, token)

    play(scene)


def test_a_rejection_is_forgotten_after_half_a_minute(bench: Bench) -> None:
    async def scene() -> None:
        bench.clerk.answer = Verdict(False)
        assert await bench.ask() == "token-rejected"
        bench.clerk.answer = Verdict(True)
        bench.clock.now += 29
        assert (await bench.ask(), bench.clerk.calls) == ("token-rejected", 1)
        bench.clock.now += 2
        assert (await bench.ask(), bench.clerk.calls) == ("ok", 2)

    play(scene)


def test_a_caller_that_gives_up_does_not_end_the_call_for_the_others(bench: Bench) -> None:
    async def scene() -> None:
        bench.clerk.gate = asyncio.Event()
        impatient = asyncio.create_task(bench.ask())
        patient = asyncio.create_task(bench.ask())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        bench.clerk.gate.set()
        assert await patient == "ok"
        assert bench.clerk.calls == 1

    play(scene)


def test_a_call_nobody_waits_for_any_more_still_counts(bench: Bench) -> None:
    async def scene() -> None:
        bench.clerk.gate = asyncio.Event()
        impatient = asyncio.create_task(bench.ask())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        bench.clerk.gate.set()
        for _ in range(3):
            await asyncio.sleep(0)
        assert bench.tokens.is_known(bench.store, "token")

    play(scene)


def test_more_tokens_than_the_cache_holds_push_the_least_used_out(bench: Bench) -> None:
    async def scene() -> None:
        for token in ("first", "second", "first", "third"):
            await bench.ask(token)
        assert [bench.tokens.is_known(bench.store, token) for token in ("first", "second", "third")] == [
            True,
            False,
            True,
        ]

    play(scene)


def test_store_and_token_are_told_apart_whatever_their_letters(bench: Bench) -> None:
    async def scene() -> None:
        await bench.ask("1:token")
        other = Store(public_key="key", name="dk:1")
        assert not bench.tokens.is_known(other, "token")
        assert not bench.tokens.is_known(other, "1:token")

    play(scene)


def test_the_longest_token_that_passes_has_8192_characters() -> None:
    assert len(bearer("Bearer " + "x" * 8192)) == 8192
    with pytest.raises(Refusal) as refused:
        bearer("Bearer " + "x" * 8193)
    assert "8192" in refused.value.detail
