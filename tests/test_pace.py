"""How often and how many at once: who is slowed, who is refused, and who notices nothing of either."""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.responses import Response

from app.access.client import Client
from app.access.pace import AT_ONCE, Pace, Refusals, SteadyStorage
from app.access.places import Places
from app.protocol.problems import Refusal
from app.settings import Rate, Store
from tests.clerk import FakeClerk, accepted, error, problem, rejected
from tests.conftest import (
    PRODUCTS,
    Answer,
    Database,
    Hosted,
    Running,
    base_config,
    eventually,
    start_service,
)
from tests.test_tokens import credentials

PAGE = "products?limit=10&offset=0"
REFUSALS = 5
"""So many are let pass before the service stops looking."""


class Slow:
    """A service with small bounds, and a Clerk that knows every token which starts with good."""

    def __init__(self, service: Running, clerk: FakeClerk) -> None:
        self.service = service
        self.clerk = clerk
        self._addresses = iter(range(2, 250))

    def get(self, token: str | None, store: str = "dk", path: str = PAGE, **options: Any) -> Answer:
        return self.service.get(f"/{store}/{path}", token=token, **options)

    def address(self) -> str:
        """An address that nobody has asked from yet: what it is refused, no other test has a part in."""
        return f"127.0.1.{next(self._addresses)}"

    def caller(self) -> dict[str, str]:
        """Headers of a caller behind a proxy whom nobody has seen yet."""
        return caller(f"203.0.113.{next(self._addresses)}")


def caller(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address, "X-Forwarded-Proto": "https"}


@pytest.fixture(scope="module")
def slow_service(
    create_database: Callable[[], Database], hosted: Hosted, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Slow]:
    database = create_database()
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute("insert into shop.products (id, name) select i, repeat('x', 3000) from generate_series(1, 9000) i")
    clerk = FakeClerk()
    clerk.url = hosted(clerk.app)
    access = (
        f'refusal_rate = "{REFUSALS}/hour"\nmax_streams = 2\nmax_wait = "2s"\nrate = "300/second"\ntoken_ttl = "1s"'
    )
    config = base_config(database.dsn, clerk.verify_url, access=access, server='send_timeout = "60s"')
    basic = 'basic = { username = "clerk", password = "right" }'
    for name, more in {
        "dk": "",
        "de": "",
        "se": "",
        "both": basic,
        "basic-only": f"token_auth = false\n{basic}",
    }.items():
        config += f'[stores.{name}]\npublic_key = "key-of-{name}"\nschema = "shop"\n{more}\n'
    service = start_service(tmp_path_factory.mktemp("slow"), config)
    yield Slow(service, clerk)
    service.stop()


@pytest.fixture
def slow(slow_service: Slow) -> Slow:
    async def knows(token: str, key: str) -> Response:
        return accepted() if token.startswith("good") else rejected()

    slow_service.clerk.behaviour = knows
    return slow_service


def refused_until_stopped(slow: Slow, token: str | None, store: str = "dk", **options: Any) -> Answer:
    """The 429 after so many refusals as are let pass."""
    for number in range(REFUSALS):
        # A token of its own each: one that is known as bad would not be asked about.
        answer = slow.get(f"{token}-{number}" if token else None, store, **options)
        assert answer.status == 401
    return slow.get(f"{token}-last" if token else None, store, **options)


@pytest.mark.parametrize("token", [None, "bad", "bad but malformed"])
def test_a_caller_without_a_good_token_is_refused_a_bounded_number_of_times(slow: Slow, token: str | None) -> None:
    headers = slow.caller()
    answer = refused_until_stopped(slow, token, headers=headers)
    said = problem(answer, 429, "refused-too-often")
    assert 0 < int(answer.headers["Retry-After"]) <= 3600
    assert headers["X-Forwarded-For"] in said["detail"]
    asked = len(slow.clerk.calls)
    problem(slow.get("bad-still", headers=headers), 429, "refused-too-often")
    assert len(slow.clerk.calls) == asked


def test_a_token_that_clerk_has_vouched_for_passes_meanwhile_even_past_its_ttl(slow: Slow) -> None:
    headers = slow.caller()
    assert slow.get("good-and-known", headers=headers).status == 200
    refused_until_stopped(slow, "bad", headers=headers)
    assert slow.get("good-and-known", headers=headers).status == 200
    time.sleep(1.1)  # its ttl
    asked = slow.clerk.calls_for("key-of-dk").count("good-and-known")
    assert slow.get("good-and-known", headers=headers).status == 200
    assert slow.clerk.calls_for("key-of-dk").count("good-and-known") == asked + 1
    problem(slow.get("good-but-unknown", headers=headers), 429, "refused-too-often")


def test_refusals_count_by_address_and_store(slow: Slow) -> None:
    headers = slow.caller()
    problem(refused_until_stopped(slow, "bad", headers=headers), 429, "refused-too-often")
    assert slow.get("good-of-another-address", headers=slow.caller()).status == 200
    assert slow.get("good-of-another-store", "de", headers=headers).status == 200
    problem(slow.get("bad-of-another-store", "de", headers=headers), 401, "token-rejected")


def test_connections_count_by_their_address_too(slow: Slow, hosted: Hosted) -> None:
    headers = caller("2001:db8:1:2::1")
    problem(refused_until_stopped(slow, "bad", headers=headers), 429, "refused-too-often")
    problem(slow.get("good-beside", headers=caller("2001:db8:1:2:ffff::9")), 429, "refused-too-often")
    assert slow.get("good-elsewhere", headers=caller("2001:db8:1:3::1")).status == 200


def test_successes_and_clerks_own_trouble_count_for_nothing(slow: Slow) -> None:
    headers = slow.caller()
    for number in range(REFUSALS + 1):
        assert slow.get(f"good-fresh-{number}", headers=headers).status == 200
    healthy = slow.clerk.behaviour

    async def troubled(token: str, key: str) -> Response:
        return error("InternalError")

    slow.clerk.behaviour = troubled
    for number in range(REFUSALS + 1):
        problem(slow.get(f"good-in-trouble-{number}", headers=headers), 503, "clerk-unreachable")
    slow.clerk.behaviour = healthy
    assert slow.get("good-after-trouble", headers=headers).status == 200


@pytest.mark.parametrize(("store", "token"), [("both", "good-challenged"), ("basic-only", None)])
def test_the_challenge_of_basic_counts_for_nothing(slow: Slow, store: str, token: str | None) -> None:
    headers = slow.caller()
    for _ in range(REFUSALS + 1):
        problem(slow.get(token, store, headers=headers), 401, "basic-required")
    right = {**headers, "Authorization": credentials("clerk", "right")}
    assert slow.get(token, store, headers=right).status == 200


def test_a_caller_who_brings_neither_credentials_nor_token_is_no_importer(slow: Slow) -> None:
    headers = slow.caller()
    problem(refused_until_stopped(slow, None, "both", headers=headers), 429, "refused-too-often")


@pytest.mark.parametrize(("store", "token"), [("both", "good-and-stolen"), ("basic-only", None)])
def test_a_password_can_be_guessed_a_bounded_number_of_times_even_with_a_stolen_token(
    slow: Slow, store: str, token: str | None
) -> None:
    headers = slow.caller()
    right = {**headers, "Authorization": credentials("clerk", "right")}
    assert slow.get(token, store, headers=right).status == 200
    for number in range(REFUSALS):
        wrong = {**headers, "Authorization": credentials("clerk", f"guess-{number}")}
        problem(slow.get(token, store, headers=wrong), 401, "basic-required")
    wrong = {**headers, "Authorization": credentials("clerk", "guess")}
    problem(slow.get(token, store, headers=wrong), 429, "refused-too-often")
    # With the token Clerk vouched for, the right password still opens; without a token it can't be told from a guess.
    assert slow.get(token, store, headers=right).status == (200 if token else 429)


def test_guesses_sent_together_are_not_all_looked_at(slow: Slow) -> None:
    headers = slow.caller()

    async def thoughtful(token: str, key: str) -> Response:
        await asyncio.sleep(0.2)
        return rejected()

    slow.clerk.behaviour = thoughtful
    guesses = 60
    with ThreadPoolExecutor(guesses) as threads:
        answers = list(threads.map(lambda n: slow.get(f"bad-together-{n}", headers=headers), range(guesses)))
    asked = sum(token.startswith("bad-together") for token, _ in list(slow.clerk.calls))
    assert REFUSALS <= asked <= REFUSALS + AT_ONCE
    assert Counter(answer.status for answer in answers) == {401: asked, 429: guesses - asked}


def test_who_is_too_fast_waits_and_is_not_refused(slow: Slow) -> None:
    """450 requests by 15 callers at 300 a second: each waits for its turn, well below max_wait."""
    assert slow.get("good-and-fast", "se").status == 200
    with ThreadPoolExecutor(15) as threads:
        statuses = Counter(threads.map(lambda _: slow.get("good-and-fast", "se", "nothing").status, range(450)))
    assert statuses == {404: 450}  # past the gate, where there is no such feed


def hold(slow: Slow, store: str) -> socket.socket:
    """A reader of a whole feed who has read its status line and reads no more."""
    parts = urlsplit(slow.service.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect((parts.hostname, parts.port))
    head = f"GET /{store}/products HTTP/1.1\r\nHost: x\r\nX-Clerk-Authorization: Bearer good-and-slow\r\n\r\n"
    connection.sendall(head.encode())
    assert connection.recv(15).startswith(b"HTTP/1.1 200")
    return connection


def test_more_answers_than_a_store_has_places_wait_and_get_a_503(slow: Slow) -> None:
    with closing(hold(slow, "dk")), closing(hold(slow, "dk")):
        answer = slow.get("good-and-late")
        said = problem(answer, 503, "streams-full")
        assert int(answer.headers["Retry-After"]) > 0
        assert "dk" in said["detail"]
        assert "max_streams" in said["fix"]
        assert slow.get("good-of-another-store", "de").status == 200
    eventually(lambda: slow.get("good-and-later").status == 200)


def test_who_waits_for_a_place_gets_it_when_an_answer_ends(slow: Slow) -> None:
    with closing(hold(slow, "de")):
        second = hold(slow, "de")
        answers: list[Answer] = []
        waiting = threading.Thread(target=lambda: answers.append(slow.get("good-and-patient", "de")))
        waiting.start()
        time.sleep(0.1)
        second.close()
        waiting.join(20)
    assert [answer.status for answer in answers] == [200]


def test_the_line_before_the_places_is_bounded(slow: Slow) -> None:
    """Two places, sixteen in line for each of them: whoever comes then does not wait at all."""
    with closing(hold(slow, "se")), closing(hold(slow, "se")), ThreadPoolExecutor(60) as threads:
        answers = list(threads.map(lambda _: slow.get("good-and-many", "se"), range(60)))
    details = Counter("more wait" in problem(answer, 503, "streams-full")["detail"] for answer in answers)
    assert details[True] >= 60 - 2 * 16 - 4  # a few may come when others have left the line already
    assert details[False] >= 1


STORE, HERE = Store(public_key="key", name="dk"), Client("203.0.113.5", "203.0.113.5")


class Clock:
    """Stands in for the time module: the monotonic clock moves when told to, and nobody may ask the other."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("app.access.pace.time", clock)
    return clock


def looked_at(refusals: Refusals, client: Client = HERE) -> bool:
    """Whether a caller's credentials are looked at. They are wrong."""

    async def scene() -> bool:
        try:
            async with refusals.turn(STORE, client):
                refusals.count(STORE, client)
        except Refusal:
            return False
        return True

    return asyncio.run(scene())


def test_the_window_of_refusals_moves_with_the_monotonic_clock(clock: Clock) -> None:
    refusals = Refusals(Rate(2, 60))
    assert looked_at(refusals)
    clock.now += 40
    assert [looked_at(refusals), looked_at(refusals)] == [True, False]
    clock.now += 19
    assert not looked_at(refusals)
    clock.now += 2
    assert [looked_at(refusals), looked_at(refusals)] == [True, False]


def test_retry_after_is_when_the_next_one_is_looked_at(clock: Clock) -> None:
    refusals = Refusals(Rate(1, 60))
    assert looked_at(refusals)
    clock.now += 20

    async def scene() -> None:
        async with refusals.turn(STORE, HERE):
            pass

    with pytest.raises(Refusal) as refused:
        asyncio.run(scene())
    assert refused.value.headers["Retry-After"] == "40"


def test_callers_beyond_number_are_forgotten_and_cost_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.access.pace.MOST_CALLERS", 100)
    refusals = Refusals(Rate(1, 60))
    for number in range(1_000):
        address = f"10.0.{number // 250}.{number % 250}"
        assert looked_at(refusals, Client(address, address))
    storage = refusals._limiter.storage  # noqa: SLF001
    assert isinstance(storage, SteadyStorage)
    assert len(storage._windows) == 100  # noqa: SLF001
    assert refusals._lines == {}  # noqa: SLF001


def test_credentials_are_looked_at_a_few_at_a_time_and_the_line_is_bounded() -> None:
    async def scene() -> None:
        refusals = Refusals(Rate(10_000, 60))
        inside, most, done = 0, 0, asyncio.Event()

        async def ask() -> str:
            nonlocal inside, most
            try:
                async with refusals.turn(STORE, HERE):
                    inside += 1
                    most = max(most, inside)
                    await done.wait()
                    inside -= 1
            except Refusal as refusal:
                return refusal.problem.code
            return "ok"

        asking = [asyncio.create_task(ask()) for _ in range(500)]
        await asyncio.sleep(0.05)
        assert inside == AT_ONCE
        left = asking[100]
        left.cancel()
        done.set()
        answers = Counter(await asyncio.gather(*(task for task in asking if task is not left)))
        assert answers == {"ok": AT_ONCE + 256 - 1, "refused-too-often": 500 - AT_ONCE - 256}
        assert most == AT_ONCE
        assert refusals._lines == {}  # noqa: SLF001

    asyncio.run(scene())


def test_a_pace_is_kept_evenly_and_first_come_is_first_served() -> None:
    async def scene() -> None:
        pace = Pace(Rate(6000, 60), 10)
        served: list[int] = []

        async def ask(number: int) -> None:
            await pace.take(STORE)
            served.append(number)

        await asyncio.gather(*(ask(number) for number in range(130)))
        assert served == list(range(130))

    asyncio.run(scene())


def test_after_max_wait_and_in_a_line_too_long_for_it_the_answer_is_a_429() -> None:
    async def scene() -> None:
        pace = Pace(Rate(1, 60), 0.1)
        await pace.take(STORE)

        async def refusal_of() -> Refusal:
            with pytest.raises(Refusal) as refused:
                await pace.take(STORE)
            return refused.value

        waited, turned_away = await asyncio.gather(refusal_of(), refusal_of())
        assert waited.problem.code == turned_away.problem.code == "too-fast"
        assert "no turn came" in waited.detail
        assert "wait already" in turned_away.detail
        assert 50 <= int(waited.headers["Retry-After"]) <= 60
        await Pace(Rate(1, 60), 0.1).take(STORE)

    asyncio.run(scene())


def test_stores_have_a_pace_and_places_of_their_own() -> None:
    async def scene() -> None:
        other = Store(public_key="key", name="de")
        pace, places = Pace(Rate(1, 60), 0), Places(1, 0)
        await pace.take(STORE)
        await pace.take(other)
        async with places.one(STORE), places.one(other):
            with pytest.raises(Refusal):
                async with places.one(STORE):
                    pass
        async with places.one(STORE):
            pass

    asyncio.run(scene())


def test_a_place_is_given_back_however_its_holder_or_waiter_ends() -> None:
    async def scene() -> None:
        places = Places(1, 5)

        async def hold(seconds: float) -> None:
            async with places.one(STORE):
                await asyncio.sleep(seconds)
                raise LookupError

        for _ in range(50):
            tasks = [asyncio.create_task(hold(0.001)) for _ in range(5)]
            await asyncio.sleep(0.0005)
            for task in tasks[1::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(1), places.one(STORE):
            pass

    asyncio.run(scene())
