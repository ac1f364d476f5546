"""`make eager`: importers at their most eager against default settings. Does a good one ever see a refusal?

Every store reads its five feeds at once, page after page without a pause, all from one address; one store more is
misconfigured, so that Clerk knows none of its tokens, and a caller without a token asks beside them. First every
importer keeps one token, then it brings a fresh one with every request.
"""

import http.client
import itertools
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import click
import msgspec
import uvloop

from app.catalog.embedded import Embedded, EmbeddedError
from app.clerk.standin import running
from app.protocol.feeds import FEEDS
from loadtests.processes import ProcessError, serving

LIMIT = 25
MOST_REFUSALS = 1000
"""After so many an importer gives up."""
_KEPT = "kept-token"
_FRESH = "fresh-token-"
_SCHEMA = "eager"


class AnyFresh(frozenset[str]):
    """The tokens of a store: one that stays, and every one that begins as a fresh one does."""

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and (token == _KEPT or token.startswith(_FRESH))


class Outcome(msgspec.Struct):
    """What some importers got."""

    statuses: Counter[int] = msgspec.field(default_factory=Counter)
    items: int = 0
    seconds: float = 0.0

    @property
    def refusals(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())

    def add(self, other: "Outcome") -> None:
        self.statuses.update(other.statuses)
        self.items += other.items
        self.seconds = max(self.seconds, other.seconds)


def good_tokens(stores: Sequence[str]) -> dict[str, AnyFresh]:
    """For the stand-in of Clerk: the tokens by the public key of each store."""
    return {f"key-{store}": AnyFresh() for store in stores}


def settings(stores: Sequence[str]) -> str:
    """The [stores.…] tables of a feed.toml: all read the same relations."""
    return "".join(f'[stores.{store}]\npublic_key = "key-{store}"\nschema = "{_SCHEMA}"\n' for store in stores)


def schema(items: int) -> str:
    """SQL for five feeds of so many items each."""
    columns = {
        "products": "'Chair ' || i as name, 'A chair' as description, 10.5 as price, 'https://x.example/i' as image,"
        " 'https://x.example/c' as url, '{1}'::int[] as categories, timestamptz '2026-01-01' as created_at",
        "categories": "'Chairs' as name, 'https://x.example/' as url, '{}'::int[] as subcategories",
        "orders": 'json \'[{"id":1,"quantity":1,"price":10.5}]\' as products, timestamptz \'2026-01-01\' as time',
        "customers": "'c' || i || '@shop.example' as email",
        "pages": "'cms' as type, 'https://x.example/p' as url, 'Page' as title, 'Text' as text",
    }
    made = [f"drop schema if exists {_SCHEMA} cascade; create schema {_SCHEMA}"]
    for feed, listed in columns.items():
        made.append(f"create table {_SCHEMA}.{feed} as select i as id, {listed} from generate_series(1, {items}) i")
        made.append(f"alter table {_SCHEMA}.{feed} add primary key (id)")
        made.append(f"analyze {_SCHEMA}.{feed}")
    return ";\n".join(made)


def kept() -> Callable[[], str]:
    """The same token throughout."""
    return lambda: _KEPT


def fresh(name: str) -> Callable[[], str]:
    """A token never seen before with every request."""
    numbers = itertools.count()
    return lambda: f"{_FRESH}{name}-{next(numbers)}"


def walk(url: str, store: str, feed: str, *, is_fresh: bool) -> Outcome:
    """Read a feed to its end, each page as soon as the one before has come; ask again at once for what is refused."""
    token = fresh(f"{store}-{feed}") if is_fresh else kept()
    outcome, started, offset = Outcome(), time.perf_counter(), 0
    with closing(_Asker(url, token)) as asker:
        while outcome.refusals < MOST_REFUSALS:
            status, body = asker.ask(f"/{store}/{feed}?limit={LIMIT}&offset={offset}")
            outcome.statuses[status] += 1
            if status != 200:
                continue
            if not body:
                break
            outcome.items += body.count(b"\n")
            offset += LIMIT
    outcome.seconds = time.perf_counter() - started
    return outcome


def knock(url: str, store: str, until: threading.Event, token: Callable[[], str] | None = None) -> Outcome:
    """Ask for a page again and again, without a token or with wrong ones, until told to stop."""
    outcome, started = Outcome(), time.perf_counter()
    with closing(_Asker(url, token)) as asker:
        while True:
            status, _ = asker.ask(f"/{store}/products?limit={LIMIT}&offset=0")
            outcome.statuses[status] += 1
            if until.is_set():
                break
    outcome.seconds = time.perf_counter() - started
    return outcome


class _Asker:
    """One connection, and a token with every request where there is one."""

    def __init__(self, url: str, token: Callable[[], str] | None) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
        self._token = token

    def ask(self, path: str) -> tuple[int, bytes]:
        headers = {"X-Clerk-Authorization": f"Bearer {self._token()}"} if self._token else {}
        self._connection.request("GET", path, headers=headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._connection.close()


def read_all(
    url: str, stores: Sequence[str], *, is_fresh: bool, pool: ThreadPoolExecutor | ProcessPoolExecutor
) -> Outcome:
    """Every feed of every store at once."""
    walks = [pool.submit(walk, url, store, feed, is_fresh=is_fresh) for store in stores for feed in FEEDS]
    total = Outcome()
    for done in walks:
        total.add(done.result())
    return total


@click.command()
@click.option("--items", type=click.IntRange(LIMIT), default=100_000, show_default=True, help="Of each feed.")
@click.option("--stores", type=click.IntRange(1), default=2, show_default=True, help="Good stores.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".clerk-feed/eager"),
    show_default=True,
    help="Where the embedded PostgreSQL keeps its data.",
)
def eager(items: int, stores: int, data_dir: Path) -> None:
    """Play the most eager importers, and count what they are refused."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    good, bad = [f"shop{number}" for number in range(stores)], "misconfigured"
    try:
        with ExitStack() as stack:
            server = Embedded.start(data_dir)
            stack.callback(server.stop)
            click.echo(f"{len(FEEDS)} feeds of {items:,} items each …")
            uvloop.run(prepare(server.dsn, items))
            verify_url = stack.enter_context(running(good_tokens(good)))
            config = f"[database]\ndsn = {json.dumps(server.dsn)}\n[access]\nverify_url = {json.dumps(verify_url)}\n"
            target = stack.enter_context(serving(config + settings([*good, bad]), data_dir))
            refused = sum(_round(target.url, good, bad, items, is_fresh=is_fresh) for is_fresh in (False, True))
    except (EmbeddedError, ProcessError) as error:
        raise click.ClickException(str(error)) from None
    if refused:
        raise click.ClickException(f"{refused} requests of good importers were refused.")
    click.echo("No request of a good importer was refused.")


def _round(url: str, good: Sequence[str], bad: str, items: int, *, is_fresh: bool) -> int:
    """One way of bringing tokens; how many requests of good importers were refused, or items were missing."""
    done = threading.Event()
    with ProcessPoolExecutor(len(good) * len(FEEDS)) as processes, ThreadPoolExecutor(2) as threads:
        wrong = threads.submit(knock, url, bad, done, fresh(bad) if is_fresh else kept())
        without = threads.submit(knock, url, bad, done)
        outcome = read_all(url, good, is_fresh=is_fresh, pool=processes)
        done.set()
        beside = {"misconfigured": wrong.result(), "without a token": without.result()}
    how = "a fresh token with every request" if is_fresh else "the same token throughout"
    click.echo(f"\n{len(good) * len(FEEDS)} importers at once, limit {LIMIT}, {how}:")
    rate = outcome.requests / outcome.seconds
    click.echo(f"  good             {_counted(outcome)}, {rate:,.0f} pages/s for {outcome.seconds:,.0f} s")
    for name, found in beside.items():
        click.echo(f"  {name:<16} {_counted(found)}, {found.requests / found.seconds:,.0f} requests/s held")
    missing = items * len(FEEDS) * len(good) - outcome.items
    if missing:
        click.echo(f"  {missing:,} items did not come")
    return outcome.refusals + (1 if missing else 0)


def _counted(outcome: Outcome) -> str:
    return ", ".join(f"{count:,} x {status}" for status, count in sorted(outcome.statuses.items()))


async def prepare(dsn: str, items: int) -> None:
    """Make the relations of five feeds anew."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(schema(items))
    finally:
        await connection.close()


if __name__ == "__main__":
    sys.exit(eager())
