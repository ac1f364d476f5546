"""The users of the load profiles, for locust: Clerk's importer, and those one would rather not have.

`python -m loadtests.load` starts it and hands over a plan. The importer does what Clerk's does: asks page by page until
an empty answer, with a token in X-Clerk-Authorization, and asks again what failed. It counts what it got. Everyone's
requests go to the service as from the proxy in front of it, each with the address of who asks.
"""

import itertools
import os
import random
import time
from pathlib import Path
from typing import Any

import gevent
import msgspec
from gevent import socket
from locust import FastHttpUser, LoadTestShape, User, constant, events, task

from app.clerk.importer import ImportFailedError, ids_of
from loadtests.profiles import Kind, Plan, Recording, Request, Walk

PLAN = msgspec.json.decode(Path(os.environ["LOAD_PLAN"]).read_bytes(), type=Plan)
IMPORTER_ADDRESS = "52.57.0.11"
ATTEMPTS = 20
RETRIED_SECONDS = 0.5

recording = Recording(time.time())
_numbers = itertools.count()
_stores = itertools.cycle(PLAN.stores)


def _headers(token: str, address: str) -> dict[str, str]:
    return {
        "X-Clerk-Authorization": f"Bearer {token}",
        "X-Forwarded-For": address,
        "X-Forwarded-Proto": "https",
        "Accept": "application/x-ndjson",
    }


class Stages(LoadTestShape):
    """The profile's stages, one after the other."""

    def tick(self) -> tuple[int, float, list[type[User]]] | None:
        until = 0.0
        for stage in PLAN.profile.stages:
            until += stage.share * PLAN.seconds
            if self.get_run_time() < until:  # type: ignore[no-untyped-call]
                return sum(stage.users.values()), stage.spawn_rate, [USERS[kind] for kind in stage.users]
        return None


class _Reader(FastHttpUser):
    """What the importers have in common: a page that is asked for until it comes."""

    abstract = True
    wait_time = constant(0)
    network_timeout = 120.0
    connection_timeout = 30.0
    kind: Kind

    def page(self, target: str, name: str) -> list[Any]:
        """The ids of one page. Raises ImportFailedError where it does not come."""
        for attempt in range(ATTEMPTS):
            token = f"{PLAN.token}-{next(_numbers)}" if PLAN.profile.fresh_tokens else PLAN.token
            started = time.perf_counter()
            at = time.time() - recording.first
            with self.client.get(
                target, name=name, headers=_headers(token, IMPORTER_ADDRESS), catch_response=True
            ) as answer:
                body = answer.content or b""
                seconds = time.perf_counter() - started
                ids: list[Any] | None = None
                cause = ""
                if answer.status_code == 200:
                    try:
                        ids = list(ids_of(body, 0))
                    except ImportFailedError as error:
                        cause = str(error)
                else:
                    cause = body[:300].decode(errors="replace") or str(answer.error)
                record = Request(at, seconds, self.kind, answer.status_code or 0, len(ids or ()), len(body), cause)
                recording.requests.append(record)
                if ids is not None:
                    answer.success()
                    return ids
                answer.failure(cause)
                pause = answer.headers.get("Retry-After", "") if answer.headers else ""
            gevent.sleep(float(pause) if pause.isdigit() else RETRIED_SECONDS * (1 + attempt / 4))
        raise ImportFailedError(f"{target} did not come in {ATTEMPTS} attempts")

    def walk(self, store: str, feed: str, since: float | None = None) -> Walk:
        began, started = time.time(), time.perf_counter()
        seen: list[Any] = []
        pages = offset = 0
        after = "" if since is None else f"&modified_after={int(since)}"
        while True:
            ids = self.page(f"/{store}/{feed}?limit={PLAN.profile.limit}&offset={offset}{after}", feed)
            pages += 1
            if not ids:
                break
            seen += ids
            offset += PLAN.profile.limit
        unique = set(seen)
        walk = Walk(
            store,
            feed,
            len(seen),
            pages,
            time.perf_counter() - started,
            repeated=len(seen) - len(unique),
            missing=0 if since is not None else len(self.expected(store, feed) - unique),
            since=since,
            began=began,
            changed=[] if since is None else sorted(unique),
        )
        recording.walks.append(walk)
        return walk

    def expected(self, store: str, feed: str) -> set[Any]:
        if feed == "customers":
            return {f"C{number:09}" for number in range(1, PLAN.totals[feed] + 1)}
        first = PLAN.first_ids[store] if feed == "products" else 1
        return set(range(first, first + PLAN.totals[feed]))


class Importer(_Reader):
    """Clerk's importer: full walks."""

    kind: Kind = "Importer"

    def on_start(self) -> None:
        self.store = next(_stores)

    @task
    def sync(self) -> None:
        for feed in PLAN.totals if PLAN.profile.all_feeds else ("products",):
            self.walk(self.store, feed)
        if PLAN.profile.once:
            self.environment.runner.quit()
            gevent.sleep(60)


class DeltaImporter(_Reader):
    """Clerk's importer with an Incremental Time: what changed since it asked last."""

    kind: Kind = "DeltaImporter"

    def on_start(self) -> None:
        self.store = next(_stores)
        self.since = time.time()

    @task
    def sync(self) -> None:
        gevent.sleep(2)
        began = time.time()
        self.walk(self.store, "products", self.since)
        self.since = began


class WrongToken(FastHttpUser):
    """Tries tokens, one after the other, from an address of its own."""

    wait_time = constant(0.1)
    network_timeout = 60.0

    def on_start(self) -> None:
        self.address = f"203.0.113.{next(_numbers) % 250 + 1}"

    @task
    def guess(self) -> None:
        headers = _headers(f"guess-{random.random()}", self.address)
        started, at = time.perf_counter(), time.time() - recording.first
        target = f"/{PLAN.stores[0]}/{random.choice(list(PLAN.totals))}?limit=1000&offset=0"
        with self.client.get(target, name="wrong token", headers=headers, catch_response=True) as answer:
            status = answer.status_code or 0
            if status in (401, 429):
                answer.success()
        recording.requests.append(Request(at, time.perf_counter() - started, "WrongToken", status))


class SlowReader(User):
    """Has a good token of another store, asks for its whole feed, and takes a kilobyte now and then."""

    wait_time = constant(1)

    @task
    def crawl(self) -> None:
        host, _, port = (self.host or "").removeprefix("http://").partition(":")
        started, at = time.perf_counter(), time.time() - recording.first
        status = size = 0
        try:
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                headers = "".join(
                    f"{name}: {value}\r\n" for name, value in _headers(PLAN.token, "198.51.100.9").items()
                )
                connection.sendall(f"GET /{PLAN.slow_store}/products HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
                while time.perf_counter() - started < 20 and (piece := connection.recv(1024)):
                    status = status or int(piece.split(b" ", 2)[1])
                    size += len(piece)
                    gevent.sleep(0.2)
        except OSError:
            pass
        recording.requests.append(Request(at, time.perf_counter() - started, "SlowReader", status, bytes=size))


USERS: dict[Kind, type[User]] = {
    "Importer": Importer,
    "DeltaImporter": DeltaImporter,
    "WrongToken": WrongToken,
    "SlowReader": SlowReader,
}


_last = PLAN.profile.stages[-1].users
for _kind, _count in _last.items():
    # Locust spawns users of a fixed count once, before all others, so only who is there from the beginning has one.
    if _kind in PLAN.profile.stages[0].users and len(_last) > 1:
        USERS[_kind].fixed_count = _count
    else:
        USERS[_kind].weight = _count


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def write_down(**_: object) -> None:
    """Locust's own statistics know nothing of items and walks."""
    Path(PLAN.recording).write_bytes(msgspec.json.encode(recording))
