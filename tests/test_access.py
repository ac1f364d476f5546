"""Promises of the threat model that belong to no single part, and that SECURITY.md names tests which exist."""

import importlib
import io
import re
from pathlib import Path

import pytest

from app.access.tokens import Tokens
from app.clerk.api import Verdict
from app.protocol.problems import ALL, Refusal
from app.protocol.sync_errors import SYNC_ERRORS
from app.settings import Access, Duration, SettingsError, Store, parse
from app.status.events import Failed, Refused
from app.status.log import Log
from tests.conftest import Running, Shop
from tests.test_tokens import play

ROOT = Path(__file__).parents[1]
SECURITY = (ROOT / "SECURITY.md").read_text()


def test_every_line_of_the_threat_model_points_at_a_test() -> None:
    rows = re.findall(r"^\| (?!who, and|---)(.*) \|$", SECURITY, re.MULTILINE)
    assert len(rows) > 15
    for row in rows:
        who, stops, shown = row.split(" | ")
        assert who
        assert stops
        assert re.fullmatch(r"`tests/\S+\.py::test_\w+`(, `tests/\S+\.py::test_\w+`)*", shown), row


@pytest.mark.parametrize("place", sorted(set(re.findall(r"`(tests/[^`]+)`", SECURITY))))
def test_a_test_that_the_threat_model_names_exists(place: str) -> None:
    path, _, name = place.partition("::")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert callable(getattr(module, name))


@pytest.mark.parametrize("path", ["products?limit=5&offset=0", "products", "feed.json", "nothing", "products?x=1"])
@pytest.mark.parametrize("known", [True, False])
def test_no_answer_may_be_cached(catalog: Shop, path: str, known: bool) -> None:
    catalog.execute("insert into {s}.products (id) values (1)")
    answer = catalog.get(path) if known else catalog.get(path, token=None)
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/-/healthz", "/-/readyz", "/nothing/at/all", "/s0"])
def test_no_answer_beside_the_feeds_may_be_cached_either(shared_service: Running, path: str) -> None:
    assert shared_service.get(path).headers["Cache-Control"] == "no-store"


GUIDE = {
    "token-missing": ("X-Clerk-Authorization", "proxy"),
    "token-malformed": ("Bearer", "rewrites"),
    "token-rejected": ("public key", "my.clerk.io"),
    "basic-required": ("import URL", "USER:PASS@"),
    "not-secure": ("https://",),
    "proxy-not-trusted": ("trusted_proxies",),
    "address-not-allowed": ("allowed_addresses", "importer"),
    "not-found": ("/STORE/products",),
    "store-unknown": ("URL", "feed.toml"),
    "feed-missing": ("view",),
    "refused-too-often": ("Retry-After", "refusal_rate"),
    "too-fast": ("access.rate", "Page Size"),
    "clerk-unreachable": ("temporary",),
    "database-unavailable": ("temporary",),
    "busy": ("Ask again", "pool_size"),
    "streams-full": ("Ask again", "max_streams"),
    "http-version": ("proxy_http_version 1.1",),
}
"""What the cure of each refusal must say: that of Clerk's guide to sync errors which fits what was seen."""


@pytest.mark.parametrize("code", GUIDE)
def test_a_refusal_carries_the_cure_of_clerks_guide(code: str) -> None:
    [known] = [problem for problem in ALL if problem.code == code]
    for words in GUIDE[code]:
        assert words in f"{known.title} {known.fix}"


def test_every_status_of_clerks_guide_has_a_cure_and_no_refusal_of_the_gate_is_without() -> None:
    assert set(SYNC_ERRORS) >= {401, 403, 404, 429, 500, 503}
    gates = {problem.code for problem in ALL if problem.status in (401, 403, 404, 429, 505)}
    assert gates - {"admin-required", "draft-unknown"} <= set(GUIDE)


UNSAFE = {
    "neither tokens nor a password": ('[stores.x]\npublic_key = "k"\ntoken_auth = false', "open to everyone"),
    "a user without a password": ('[stores.x]\npublic_key = "k"\nbasic = { username = "u" }', "go together"),
    "plain HTTP off this machine": ('[server]\nbind = ["0.0.0.0:80"]', "HTTPS only"),
    "Cloudflare over plain HTTP": (
        '[server]\nbind = ["0.0.0.0:80"]\n[access]\ntrusted_proxies = ["cloudflare"]',
        "HTTPS only",
    ),
    "operators' pages for everybody": ('[server]\nadmin_bind = "0.0.0.0:8001"', "access.admin"),
    "the whole Internet as a proxy": ('[access]\ntrusted_proxies = ["0.0.0.0/0"]', "far too many"),
    "the same in IPv6 clothes": ('[access]\ntrusted_proxies = ["::ffff:0:0/96"]', "far too many"),
    "tokens over plain HTTP": ('[access]\nverify_url = "http://api.clerk.example/"', "must be https"),
    "client certificates without TLS": ('[server]\nclient_ca = "ca.pem"', "certfile"),
    "a certificate without its key": ('[server]\ncertfile = "cert.pem"', "go together"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_combinations_are_refused_at_the_start(name: str) -> None:
    text, reason = UNSAFE[name]
    store = "" if "[stores.x]" in text else '\n[stores.x]\npublic_key = "k"\n'
    with pytest.raises(SettingsError) as refused:
        parse(text + store, {})
    assert reason in str(refused.value)


class Clocks:
    """Stands in for the time module: two clocks, each moved on its own."""

    def __init__(self) -> None:
        self.steady, self.wall = 1_000.0, 1.7e9

    def monotonic(self) -> float:
        return self.steady

    def time(self) -> float:
        return self.wall


@pytest.mark.parametrize("step", [-10 * 365 * 86_400, -3600, 3600, 10 * 365 * 86_400])
@pytest.mark.parametrize("exp", [None, 1.7e9 + 600])
def test_a_wall_clock_that_jumps_locks_nobody_out(
    step: float, exp: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it make a token live longer: after its ttl by the monotonic clock Clerk is asked again."""
    clocks = Clocks()
    monkeypatch.setattr("app.access.tokens.time", clocks)
    calls = 0
    good = True

    class Clerk:
        async def verify(self, token: str, public_key: str) -> Verdict:
            nonlocal calls
            calls += 1
            return Verdict(good, exp)

    tokens = Tokens(Clerk(), Access(token_ttl=Duration(600)), lambda event: None)
    store = Store(public_key="k", name="dk")

    async def scene() -> None:
        nonlocal good
        await tokens.check(store, "token")
        clocks.wall += step
        await tokens.check(store, "token")
        good = False
        clocks.steady += 601
        with pytest.raises(Refusal):
            await tokens.check(store, "token")

    play(scene)


def test_a_path_writes_nothing_but_its_letters_into_a_terminal() -> None:
    stream = io.StringIO()
    log = Log(stream, human=True)
    nasty = "/dk/\x1b[2J\n12:00:00  all is well\r\x9b31m\u202e"
    log(Refused(store="", feed="", method="GET", path=nasty, address="203.0.113.5", status=404, code="x", detail="y"))
    log(Failed(path=nasty, error="E", traceback="t"))
    log.close()
    written = stream.getvalue()
    assert "all is well" in written
    assert not set(written) & {"\x1b", "\r", "\x9b", "\u202e"}
    assert not any(line.startswith("12:00:00  all") for line in written.splitlines())
