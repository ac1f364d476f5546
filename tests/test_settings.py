"""feed.toml: what it may say, and the one line that tells what is wrong with it."""

import json
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.protocol.redaction import redacted
from app.settings import Duration, FeedSettings, Rate, Secret, Settings, SettingsError, Store, load, parse

SHOP = '[stores.shop]\npublic_key = "pk"\n'
SECRET = "hunter2"

DOCUMENTED = """
[database]
dsn = "postgresql://feeds@db.example/shop"
data_dir = ".clerk-feed"
pool_size = 8
cursor_lease = "5s"
resume_for = "30s"
statement_timeout = "60s"
state_dsn = ""
pgbouncer = false

[server]
bind = ["127.0.0.1:8000"]
workers = 1
admin_bind = "127.0.0.1:8001"
certfile = ""
keyfile = ""
client_ca = ""
send_timeout = "30s"
shutdown_timeout = "30s"

[access]
trusted_proxies = ["127.0.0.1", "::1"]
allowed_addresses = []
verify_url = "https://api.clerk.io/v2/token/verify"
verify_timeout = "5s"
token_ttl = "10m"
token_cache = 1024
token_grace = "15m"
rate = "1000/second"
max_wait = "10s"
max_streams = 8
refusal_rate = "60/minute"
admin = { username = "", password = "" }

[clerk]
api_url = "https://api.clerk.io/v2"

[stores.shop]
public_key = "pk"
private_key = ""
schema = "shop"
token_auth = true
basic = { username = "", password = "" }
incremental_overlap = "1h"
modified_after_unit = "hours"

[stores.shop.feeds.orders]
source = "shop.orders"
rendered = false
refresh_every = ""
shrink_limit = 0.2
shrink_floor = 20
strict = false
delete_orders = false
"""
"""Every key there is, at its default where it has one."""

FEED = "stores.shop.feeds.orders"

KEYS: dict[str, dict[str, tuple[str, str]]] = {
    "database": {
        "dsn": ("5", "text"),
        "data_dir": ("5", "text"),
        "pool_size": ('"8"', "int"),
        "cursor_lease": ("5", "a duration"),
        "resume_for": ("30.0", "a duration"),
        "statement_timeout": ("true", "a duration"),
        "state_dsn": ("[]", "text"),
        "pgbouncer": ('"no"', "bool"),
    },
    "server": {
        "bind": ('"127.0.0.1:8000"', "array"),
        "workers": ("1.5", "int"),
        "admin_bind": ("8001", "text"),
        "certfile": ("1", "text"),
        "keyfile": ("1", "text"),
        "client_ca": ("false", "text"),
        "send_timeout": ("30", "a duration"),
        "shutdown_timeout": ('["30s"]', "a duration"),
    },
    "access": {
        "trusted_proxies": ('"127.0.0.1"', "array"),
        "allowed_addresses": ("{}", "array"),
        "verify_url": ("1", "text"),
        "verify_timeout": ("5", "a duration"),
        "token_ttl": ("600", "a duration"),
        "token_cache": ('"1024"', "int"),
        "token_grace": ("{ minutes = 15 }", "a duration"),
        "rate": ("1000", "a rate"),
        "max_wait": ("10", "a duration"),
        "max_streams": ("true", "int"),
        "refusal_rate": ("[60]", "a rate"),
        "admin": ("true", "a table"),
    },
    "clerk": {"api_url": ("1", "text")},
    "stores.shop": {
        "public_key": ("1", "text"),
        "private_key": ("1", "text"),
        "schema": ("1", "text"),
        "token_auth": ('"false"', "bool"),
        "basic": ("1", "a table"),
        "incremental_overlap": ("1", "a duration"),
        "modified_after_unit": ("1", "text"),
        "feeds": ("1", "a table"),
    },
    FEED: {
        "source": ("1", "text"),
        "rendered": ("1", "bool"),
        "refresh_every": ("10", "text"),
        "shrink_limit": ('"20 %"', "float"),
        "shrink_floor": ("20.5", "int"),
        "strict": ('"yes"', "bool"),
        "delete_orders": ("0", "bool"),
    },
}
"""Each key of each table, with a value of the wrong type and what the error must ask for instead."""

KEYED = [(table, key) for table, keys in KEYS.items() for key in keys]


def config(table: str, line: str) -> str:
    """A feed.toml of one line in a table, with all that is needed around it."""
    if table == "stores.shop":
        return f"[stores.shop]\n{line}\n" + ("" if line.startswith("public_key ") else 'public_key = "pk"\n')
    return f"{SHOP}[{table}]\n{line}\n"


def refusal_of(text: str, **environment: str) -> str:
    """The message of the error: one line."""
    with pytest.raises(SettingsError) as caught:
        parse(text, environment)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def in_words(value: Any) -> Any:
    """Settings as plain values, durations in seconds."""
    if isinstance(value, Duration):
        return value.seconds
    if isinstance(value, Rate):
        return (value.count, value.seconds)
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, msgspec.Struct):
        return {name: in_words(found) for name, found in msgspec.structs.asdict(value).items()}
    if isinstance(value, dict):
        return {name: in_words(found) for name, found in value.items()}
    return value


# What is documented


def test_every_documented_key_loads() -> None:
    found = in_words(parse(DOCUMENTED, {}))
    assert found["database"]["dsn"] == "postgresql://feeds@db.example/shop"
    assert found["stores"]["shop"]["public_key"] == "pk"
    assert found["stores"]["shop"]["feeds"]["orders"]["source"] == "shop.orders"


def test_defaults_are_the_documented_ones() -> None:
    assert in_words(parse(SHOP, {})) == {
        "database": {
            "dsn": None,
            "data_dir": ".clerk-feed",
            "pool_size": 8,
            "cursor_lease": 5,
            "resume_for": 30,
            "statement_timeout": 60,
            "state_dsn": "",
            "pgbouncer": False,
        },
        "server": {
            "bind": ("127.0.0.1:8000",),
            "workers": 1,
            "admin_bind": "127.0.0.1:8001",
            "certfile": "",
            "keyfile": "",
            "client_ca": "",
            "send_timeout": 30,
            "shutdown_timeout": 30,
        },
        "access": {
            "trusted_proxies": ("127.0.0.1", "::1"),
            "allowed_addresses": (),
            "verify_url": "https://api.clerk.io/v2/token/verify",
            "verify_timeout": 5,
            "token_ttl": 600,
            "token_cache": 1024,
            "token_grace": 900,
            "rate": (1000, 1),
            "max_wait": 10,
            "max_streams": 8,
            "refusal_rate": (60, 60),
            "admin": {"username": "", "password": ""},
        },
        "clerk": {"api_url": "https://api.clerk.io/v2"},
        "stores": {
            "shop": {
                "public_key": "pk",
                "private_key": "",
                "schema": "shop",
                "token_auth": True,
                "basic": {"username": "", "password": ""},
                "incremental_overlap": 3600,
                "modified_after_unit": "hours",
                "feeds": {},
                "name": "shop",
            }
        },
    }


def test_defaults_of_a_feed_are_the_documented_ones() -> None:
    expected = {
        "source": "",
        "rendered": False,
        "refresh_every": "",
        "shrink_limit": 0.2,
        "shrink_floor": 20,
        "strict": False,
        "delete_orders": False,
    }
    assert in_words(parse(SHOP + "[stores.shop.feeds.orders]\n", {}).stores["shop"].feed("orders")) == expected
    assert in_words(parse(SHOP, {}).stores["shop"].feed("pages")) == expected


def test_the_documented_block_says_what_the_defaults_are() -> None:
    documented, bare = in_words(parse(DOCUMENTED, {})), in_words(parse(SHOP, {}))
    for table in ("server", "access", "clerk"):
        assert documented[table] == bare[table]
    assert {**documented["database"], "dsn": None} == bare["database"]
    assert {**documented["stores"]["shop"], "feeds": {}} == bare["stores"]["shop"]
    assert documented["stores"]["shop"]["feeds"] == {"orders": {**in_words(FeedSettings()), "source": "shop.orders"}}


@pytest.mark.parametrize("table", KEYS)
def test_an_unknown_key_is_answered_with_the_documented_ones_and_no_more(table: str) -> None:
    message = refusal_of(config(table, "qqq = 1"))
    start = f"{table}.qqq: unknown key; known here: "
    assert message.startswith(start)
    assert set(message.removeprefix(start).split(", ")) == set(KEYS[table])


def test_values_that_deviate_are_read() -> None:
    settings = parse(
        """
        [database]
        dsn = "postgres://feeds:pw@db.example/shop"
        data_dir = "/var/lib/feeds"
        pool_size = 20
        cursor_lease = "2.5s"
        resume_for = "0s"
        statement_timeout = "2m"
        [server]
        bind = ["0.0.0.0:80", "[::]:8443", "localhost:0"]
        admin_bind = "[::1]:9000"
        send_timeout = "1s"
        shutdown_timeout = "1h"
        [access]
        trusted_proxies = ["10.1.0.0/16", "cloudflare"]
        verify_url = "http://127.0.0.1:9999/verify"
        verify_timeout = "500ms"
        token_ttl = "1d"
        token_cache = 1
        token_grace = "0s"
        [stores.shop]
        public_key = "pk"
        schema = "catalog"
        token_auth = false
        basic = { username = "clerk", password = "pw" }
        incremental_overlap = "0s"
        modified_after_unit = "days"
        [stores.shop.feeds.products]
        source = 'catalog."Products.all"'
        strict = true
        [stores.shop-2_B]
        public_key = "pk2"
        """,
        {},
    )
    database, server, access, shop = settings.database, settings.server, settings.access, settings.stores["shop"]
    assert in_words(database.dsn) == "postgres://feeds:pw@db.example/shop"
    assert (database.data_dir, database.pool_size) == ("/var/lib/feeds", 20)
    assert in_words([database.cursor_lease, database.resume_for, database.statement_timeout]) == [
        Duration(2.5),
        Duration(0),
        Duration(120),
    ]
    assert (server.bind, server.admin_bind) == (("0.0.0.0:80", "[::]:8443", "localhost:0"), "[::1]:9000")
    assert (server.send_timeout, server.shutdown_timeout) == (Duration(1), Duration(3600))
    assert access.verify_url == "http://127.0.0.1:9999/verify"
    assert (access.verify_timeout, access.token_ttl) == (Duration(0.5), Duration(86_400))
    assert (access.token_cache, access.token_grace) == (1, Duration(0))
    assert (shop.schema, shop.token_auth, shop.modified_after_unit) == ("catalog", False, "days")
    assert (shop.basic.username, shop.basic.password.reveal()) == ("clerk", "pw")
    assert shop.incremental_overlap == Duration(0)
    assert shop.feed("products").source == 'catalog."Products.all"'
    assert shop.feed("products").strict
    assert not shop.feed("orders").strict
    assert (settings.stores["shop-2_B"].name, settings.stores["shop-2_B"].schema) == ("shop-2_B", "shop-2_B")


def test_settings_are_frozen() -> None:
    settings = parse(SHOP, {})
    with pytest.raises(AttributeError):
        settings.database.pool_size = 9  # type: ignore[misc]


# What is wrong


@pytest.mark.parametrize(("table", "key"), KEYED)
def test_a_value_of_the_wrong_type_is_named_with_its_key_and_the_rule(table: str, key: str) -> None:
    value, rule = KEYS[table][key]
    message = refusal_of(config(table, f"{key} = {value}"))
    assert message.startswith((f"{table}.{key} = ", f"{table}.{key}: "))
    assert rule in message
    if rule != "a table" and key not in ("dsn", "state_dsn", "private_key") and value[0] not in "[{t'f":
        assert message.startswith(f"{table}.{key} = {value}: ")


@pytest.mark.parametrize(
    ("text", "start", "rule"),
    [
        (SHOP + "basic = { username = 1 }\n", "stores.shop.basic.username = 1: ", "text"),
        (SHOP + "basic = { password = 1 }\n", "stores.shop.basic.password = ", "text"),
        (SHOP + "[access]\nadmin = { username = 1 }\n", "access.admin.username = 1: ", "text"),
        (SHOP + "[server]\nbind = [8000]\n", "server.bind[0] = 8000: ", "text"),
        (SHOP + '[server]\nbind = ["127.0.0.1:1", 8000]\n', "server.bind[1] = 8000: ", "text"),
        (SHOP + "[access]\nallowed_addresses = [1]\n", "access.allowed_addresses[0] = 1: ", "text"),
    ],
)
def test_a_wrong_type_is_named_inside_lists_and_tables(text: str, start: str, rule: str) -> None:
    message = refusal_of(text)
    assert message.startswith(start)
    assert rule in message


@pytest.mark.parametrize("value", ["1", "1.5", "true", "[]", '"text"'])
@pytest.mark.parametrize(
    ("place", "table"),
    [
        ("database", "[database]"),
        ("server", "[server]"),
        ("access", "[access]"),
        ("access.admin", "[access.admin]"),
        ("clerk", "[clerk]"),
        ("stores", "[stores.<name>]"),
        ("stores.shop", "[stores.shop]"),
        ("stores.shop.basic", "[stores.shop.basic]"),
        ("stores.shop.feeds", "[stores.shop.feeds.<name>]"),
        ("stores.shop.feeds.orders", "[stores.shop.feeds.orders]"),
    ],
)
def test_what_should_be_a_table_is_named_with_its_heading(place: str, table: str, value: str) -> None:
    """The value may go unsaid: a connection string or a password is what people put there."""
    message = refusal_of(f"{place} = {value}\n")
    assert message.startswith((f"{place} = ", f"{place}: "))
    assert f"must be a table, {table}" in message


def test_a_wrong_type_is_found_in_the_store_and_feed_that_has_it() -> None:
    stores = "".join(f'[stores.s{number}]\npublic_key = "pk"\n[stores.s{number}.feeds.pages]\n' for number in range(3))
    assert refusal_of(stores + "strict = 5\n").startswith("stores.s2.feeds.pages.strict = 5: ")
    assert refusal_of(stores + "[stores.s3]\npublic_key = 7\n").startswith("stores.s3.public_key = 7: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHOP + "[databse]\n", "databse: unknown key; did you mean database?"),
        (SHOP + "[database]\npoolsize = 1\n", "database.poolsize: unknown key; did you mean pool_size?"),
        (SHOP + "[server]\nworker = 1\n", "server.worker: unknown key; did you mean workers?"),
        (SHOP + "[access]\nverify_uri = 1\n", "access.verify_uri: unknown key; did you mean verify_url?"),
        (SHOP + "publickey = 1\n", "stores.shop.publickey: unknown key; did you mean public_key?"),
        (SHOP + "basic.user = 1\n", "stores.shop.basic.user: unknown key; did you mean username?"),
        (SHOP + "[access.admin]\npasswd = 1\n", "access.admin.passwd: unknown key; did you mean password?"),
        (SHOP + "feeds.pages.stric = 1\n", "stores.shop.feeds.pages.stric: unknown key; did you mean strict?"),
        (SHOP + "[store.shop]\n", "store: unknown key; did you mean stores?"),
    ],
)
def test_an_unknown_key_comes_with_the_one_that_was_meant(text: str, message: str) -> None:
    assert refusal_of(text) == message


def test_the_name_of_a_store_is_no_key_of_it_and_never_suggested() -> None:
    assert refusal_of(SHOP + 'name = "x"\n').startswith("stores.shop.name: unknown key")
    assert "did you mean name" not in refusal_of(SHOP + 'nam = "x"\n')


def test_an_unknown_feed_is_answered_with_the_five() -> None:
    message = refusal_of(SHOP + "[stores.shop.feeds.product]\n")
    assert message.startswith("stores.shop.feeds.product: ")
    assert "products, categories, orders, customers, pages" in message


@pytest.mark.parametrize(
    "value", ["", "5", "s", "5 s", "5sec", "-5s", "5S", "1h30m", "five", "٥s", "1e3s", ".5s", "5s "]
)
@pytest.mark.parametrize("place", ["database.cursor_lease", "access.token_ttl", "stores.shop.incremental_overlap"])
def test_a_bad_duration_is_shown_with_good_ones(place: str, value: str) -> None:
    table, _, key = place.rpartition(".")
    message = refusal_of(config(table, f'{key} = "{value}"'))
    assert message.startswith(f'{place} = "{value}": ')
    assert "30s, 5m or 2h" in message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1ms", 0.001), ("250ms", 0.25), ("1s", 1), ("0.5s", 0.5), ("5m", 300), ("2h", 7200), ("1d", 86_400)],
)
def test_durations_come_in_five_units(text: str, seconds: float) -> None:
    settings = parse(config("access", f'token_grace = "{text}"'), {})
    assert settings.access.token_grace.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "60", "60/", "/minute", "0/minute", "-1/second", "1.5/second", "60/week", "60 / minute"]
)
@pytest.mark.parametrize("key", ["rate", "refusal_rate"])
def test_a_bad_rate_is_shown_with_a_good_one(key: str, value: str) -> None:
    message = refusal_of(config("access", f'{key} = "{value}"'))
    assert message.startswith(f'access.{key} = "{value}": ')
    assert "600/minute" in message


@pytest.mark.parametrize(
    "place", ["database.cursor_lease", "database.statement_timeout", "server.send_timeout", "access.verify_timeout"]
)
def test_a_time_that_must_not_be_nothing_is_named_with_its_value(place: str) -> None:
    table, _, key = place.rpartition(".")
    assert re.match(rf'{place} = "?0s"?: ', refusal_of(config(table, f'{key} = "0s"')))


BAD_ADDRESSES = ["", "8000", ":8000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:8000"]
BAD_ADDRESSES += ["[::1]", "[::1:8000", "256.0.0.1:80", "feeds.example:80", "http://127.0.0.1:80", "127.0.0.1:٨٠"]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_a_bad_address_to_listen_on_is_shown_with_a_good_one(address: str) -> None:
    for line, place in [
        (f'bind = ["127.0.0.1:8000", "{address}"]', "server.bind[1]"),
        (f'admin_bind = "{address}"', "server.admin_bind"),
    ]:
        message = refusal_of(config("server", line))
        assert message.startswith(f'{place} = "{address}": ')
        assert "such as 127.0.0.1:8000 or [::1]:8000" in message


def test_there_must_be_an_address_to_listen_on() -> None:
    assert refusal_of(config("server", "bind = []")).startswith("server.bind = []: ")


@pytest.mark.parametrize("address", ["0.0.0.0:8001", "[::]:8001", "10.0.0.1:8001"])
def test_own_pages_off_loopback_need_a_password(address: str) -> None:
    message = refusal_of(config("server", f'admin_bind = "{address}"'))
    assert message.startswith(f'server.admin_bind = "{address}": ')
    assert "access.admin" in message
    admin = '[access]\nadmin = { username = "me", password = "pw" }\n'
    assert parse(config("server", f'admin_bind = "{address}"') + admin, {}).server.admin_bind == address


@pytest.mark.parametrize("key", ["trusted_proxies", "allowed_addresses"])
@pytest.mark.parametrize("address", ["", "x", "10.0.0.1/8", "10.0.0.0/33", "example.com", "10.0.0.1:80", "fe80::/129"])
def test_a_bad_network_is_named(key: str, address: str) -> None:
    message = refusal_of(config("access", f'{key} = ["127.0.0.1", "{address}"]'))
    assert message.startswith(f'access.{key}[1] = "{address}": ')
    assert "an address or a network" in message


def test_cloudflare_is_a_proxy_but_no_address() -> None:
    assert 'access.allowed_addresses[0] = "cloudflare": ' in refusal_of(
        config("access", 'allowed_addresses = ["cloudflare"]')
    )
    assert parse(config("access", 'trusted_proxies = ["cloudflare"]'), {}).access.trusted_proxies == ("cloudflare",)


@pytest.mark.parametrize(
    "url", ["", "api.clerk.io", "ftp://api.clerk.io/", "https://", "https://h:x/", "https://[::1/"]
)
def test_a_bad_url_is_named(url: str) -> None:
    message = refusal_of(config("access", f'verify_url = "{url}"'))
    assert message.startswith(f'access.verify_url = "{url}": ')
    assert "https://" in message


@pytest.mark.parametrize(
    "url", ["https://api.clerk.io/v2/token/verify\\n", "https://api clerk.io/", " https://api.clerk.io/"]
)
def test_a_url_holds_no_white_space(url: str) -> None:
    """Values from the environment often end in a line break; every verification would fail."""
    assert refusal_of(config("access", f'verify_url = "{url}"')).startswith("access.verify_url = ")


@pytest.mark.parametrize(
    "url",
    [
        "http://api.clerk.io/v2/token/verify",
        "HTTP://api.clerk.io/",
        "http://127.0.0.1.evil.example/",
        "http://localhost.evil.example/",
        "http://10.0.0.1/",
        "http://0.0.0.0/",
        "http://127.0.0.1@evil.example/",
    ],
)
def test_tokens_leave_this_machine_over_https_only(url: str) -> None:
    message = refusal_of(config("access", f'verify_url = "{url}"'))
    assert message.startswith(f'access.verify_url = "{redacted(url)}": ')
    assert "https" in message.partition('": ')[2]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.8.8.8:80/",
        "http://localhost:9/x",
        "http://[::1]:9/",
        "http://[::ffff:127.0.0.1]/",
    ],
)
def test_plain_http_may_stay_on_this_machine(url: str) -> None:
    assert parse(config("access", f'verify_url = "{url}"'), {}).access.verify_url == url


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a.b", "ærø", "a?b", "x" * 64, "a%20b", "٣"])
def test_a_store_name_that_fits_no_url_is_refused(name: str) -> None:
    message = refusal_of(f'[stores."{name}"]\npublic_key = "pk"\n')
    assert message.startswith(f"stores.{name}: ")
    assert "letters, digits, - and _ only" in message


def test_an_error_in_a_store_whose_name_has_a_dot_shows_the_right_value() -> None:
    assert "None" not in refusal_of('[stores."shop.dk"]\npublic_key = 7\n')


def test_some_store_must_be_configured() -> None:
    for text in ("", "[stores]\n", "[database]\n"):
        message = refusal_of(text)
        assert message.startswith("stores: none is configured")
        assert "[stores.<name>]" in message


def test_a_store_without_a_public_key_is_named() -> None:
    message = refusal_of(SHOP + '[stores.other]\nschema = "x"\n')
    assert message.startswith("stores.other.public_key: ")
    assert "missing" in message


@pytest.mark.parametrize("key", ["", " ", "\\t"])
def test_an_empty_public_key_is_as_good_as_none(key: str) -> None:
    assert refusal_of(f'[stores.shop]\npublic_key = "{key}"\n').startswith("stores.shop.public_key: it is empty")


TWO = """
[stores.{name}]
public_key = "pk"
private_key = "{private}"
[stores.{name}.feeds.{feed}]
rendered = true
"""


@pytest.mark.parametrize(("private", "feed"), [("secret", "products"), ("", "pages")])
def test_stores_of_one_key_may_not_delete_each_others_items(private: str, feed: str) -> None:
    live = TWO.format(name="live", private="secret", feed="products")
    message = refusal_of(live + TWO.format(name="staging", private=private, feed=feed))
    assert message.startswith("stores.staging.public_key: it is that of live too, and live has rendered products")
    assert "secret" not in message


def test_stores_of_one_key_that_delete_nothing_are_let_be() -> None:
    stores = (TWO.format(name=name, private="", feed="products") for name in ("live", "staging"))
    assert len(parse("".join(stores), {}).stores) == 2


def test_a_feed_without_token_needs_a_password() -> None:
    message = refusal_of(SHOP + "token_auth = false\n")
    assert message.startswith("stores.shop.token_auth = false: ")
    assert "basic" in message


@pytest.mark.parametrize("basic", ['username = "clerk"', 'password = "pw"'])
def test_username_and_password_go_together(basic: str) -> None:
    for auth in ("", "token_auth = false\n"):
        message = refusal_of(f"{SHOP}{auth}basic = {{ {basic} }}\n")
        assert message.startswith("stores.shop.basic: ")
        assert "username and password go together" in message


def test_a_username_has_no_colon() -> None:
    message = refusal_of(SHOP + 'basic = { username = "a:b", password = "pw" }\n')
    assert message.startswith("stores.shop.basic.username")
    assert "colon" in message


@pytest.mark.parametrize("unit", ["", "hour", "Hours", "weeks"])
def test_a_unit_that_is_none_is_answered_with_the_two(unit: str) -> None:
    message = refusal_of(SHOP + f'modified_after_unit = "{unit}"\n')
    assert message.startswith(f'stores.shop.modified_after_unit = "{unit}": ')
    rule = message.partition('": ')[2]
    assert "hours" in rule
    assert "days" in rule


@pytest.mark.parametrize("source", ["orders", "a.b.c", "a.", ".b", "a b.c", 'a."b', "a.b; drop table x"])
def test_a_source_is_a_schema_and_a_relation(source: str) -> None:
    message = refusal_of(config(FEED, f"source = {toml(source)}"))
    assert message.startswith(f'{FEED}.source = "{source}": ')
    assert "SCHEMA.RELATION" in message


@pytest.mark.parametrize(
    ("place", "value", "rule"),
    [
        ("database.pool_size", "0", "from 1 to 1000"),
        ("database.pool_size", "1001", "from 1 to 1000"),
        ("database.pool_size", "-1", "from 1 to 1000"),
        ("server.workers", "0", "from 1 to 256"),
        ("server.workers", "257", "from 1 to 256"),
        ("access.token_cache", "0", "at least 1"),
        ("access.max_streams", "0", "at least 1"),
        (f"{FEED}.shrink_limit", "0.0", "above 0"),
        (f"{FEED}.shrink_limit", "1.1", "at most 1"),
        (f"{FEED}.shrink_limit", "-0.2", "above 0"),
        (f"{FEED}.shrink_limit", "nan", "above 0"),
        (f"{FEED}.shrink_floor", "-1", "0 or more"),
    ],
)
def test_a_number_out_of_its_range_is_named_with_the_range(place: str, value: str, rule: str) -> None:
    table, _, key = place.rpartition(".")
    message = refusal_of(config(table, f"{key} = {value}"))
    assert message.startswith(f"{place} = {value}: ")
    assert rule in message


def test_a_dsn_is_a_url() -> None:
    for dsn in ("", "host=db dbname=shop", "mysql://db/shop"):
        assert refusal_of(config("database", f'dsn = "{dsn}"')).startswith("database.dsn: it must be a URL")


def test_certificate_and_key_go_together() -> None:
    assert "go together" in refusal_of(config("server", 'certfile = "cert.pem"'))
    assert "go together" in refusal_of(config("server", 'keyfile = "key.pem"'))
    assert refusal_of(config("server", 'client_ca = "ca.pem"')).startswith("server.client_ca: ")


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "0.0.0.0/1", "2000::/3", "::ffff:0:0/96", "::ffff:0:0/103"])
def test_half_the_world_is_no_proxy(network: str) -> None:
    message = refusal_of(config("access", f'trusted_proxies = ["10.0.0.1", "{network}"]'))
    assert message.startswith(f'access.trusted_proxies[1] = "{network}": a trusted proxy may claim any address')


@pytest.mark.parametrize("address", ["0.0.0.0:443", "[::]:443", "192.0.2.1:80"])
def test_an_address_that_would_refuse_every_request_is_refused_at_start(address: str) -> None:
    server = f'bind = ["127.0.0.1:8000", "{address}"]'
    message = refusal_of(config("server", server))
    assert message.startswith(f'server.bind[1] = "{address}": feeds leave this machine over HTTPS only')
    parse(config("server", f'{server}\ncertfile = "c"\nkeyfile = "k"'), {})
    parse(config("server", server) + '[access]\ntrusted_proxies = ["10.0.0.7"]\n', {})


def test_only_orders_are_deleted_by_request() -> None:
    message = refusal_of(SHOP + "feeds.pages.delete_orders = true\n")
    assert message == "stores.shop.feeds.pages.delete_orders: it belongs to the orders feed only"


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ('rendered = true\nrefresh_every = "10"', '.refresh_every = "10": a duration is a number with a unit'),
        ('rendered = true\nrefresh_every = "10ms"', '.refresh_every = "10ms": it must be at least 1s'),
        ('refresh_every = "10m"', ".refresh_every: only a rendered feed is refreshed; set rendered = true as well"),
    ],
)
def test_refresh_every_is_a_duration_of_a_rendered_feed(keys: str, rule: str) -> None:
    assert refusal_of(config(FEED, keys)).startswith(FEED + rule)


def test_deletions_of_orders_need_a_rendered_feed_and_the_private_key() -> None:
    asked = f"[{FEED}]\nrendered = true\ndelete_orders = true\n"
    message = f"{FEED}.delete_orders: it needs rendered = true, by which deletions are known, and private_key"
    assert refusal_of(SHOP + asked) == message
    assert refusal_of(SHOP + 'private_key = "k"\n' + asked.replace("rendered = true", "")) == message
    assert parse(SHOP + 'private_key = "k"\n' + asked, {}).stores["shop"].feed("orders").delete_orders


def test_the_private_key_goes_over_tls_or_stays_on_this_machine() -> None:
    message = refusal_of(config("clerk", 'api_url = "http://api.example/v2"'))
    assert message.startswith('clerk.api_url = "http://api.example/v2": secrets are sent there, so it must be https')
    for url in ("https://api.example/v2", "http://127.0.0.1:9/v2", "http://[::1]:9"):
        assert parse(config("clerk", f'api_url = "{url}"'), {}).clerk.api_url == url


def test_standbys_and_pgbouncer_may_be_set() -> None:
    database = parse(
        config("database", 'dsn = "postgresql://a,b/shop"\nstate_dsn = "postgresql://c/shop"\npgbouncer = true'), {}
    ).database
    assert database.pgbouncer
    assert database.state_dsn.reveal() == "postgresql://c/shop"


def test_a_primary_without_standbys_is_refused() -> None:
    assert refusal_of(config("database", 'state_dsn = "postgresql://c/shop"')).startswith(
        "database.state_dsn: it names"
    )
    said = refusal_of(config("database", 'dsn = "postgresql://a/shop"\nstate_dsn = "host=c"'))
    assert said.startswith("database.state_dsn: it must be a URL")


def test_a_rendered_feed_may_be_refreshed_by_itself() -> None:
    feed = parse(config(FEED, 'rendered = true\nrefresh_every = "10m"'), {}).stores["shop"].feed("orders")
    assert feed.refresh_seconds == 600
    assert FeedSettings().refresh_seconds is None


@pytest.mark.parametrize(
    "text", ["[database", "dsn = ", "= 1", "a = 1\na = 2", "[a]\n[a]", 'x = "\n"', "\x00", "x = 'a"]
)
def test_what_is_not_toml_is_called_so(text: str) -> None:
    assert refusal_of(text).startswith("not valid TOML: ")


@pytest.mark.parametrize(
    "text",
    [
        config("server", 'admin_bind = "127.0.0.1:8001\\n"'),
        config("server", 'bind = ["127.0.0.1:8000\\r\\n"]'),
        config("access", 'verify_url = "http://clerk.example/\\nx"'),
        config("access", 'token_ttl = "5m\\n"'),
        config("access", 'allowed_addresses = ["10.0.0.1\\n"]'),
        config(FEED, 'source = "a\\nb"'),
        config("stores.shop", 'basic = { username = "a:\\nb", password = "pw" }'),
        '[stores."a\\nb"]\npublic_key = "pk"\n',
        config("database", '"a\\nb" = 1'),
    ],
)
def test_an_error_stays_one_line_where_a_value_has_line_breaks(text: str) -> None:
    """Values from the environment often end in one."""
    assert len(refusal_of(text).splitlines()) == 1


# ${NAME}


def test_names_in_any_string_are_read_from_the_environment() -> None:
    text = """
    [database]
    dsn = "postgresql://feeds:${DB_PASSWORD}@${DB_HOST}/shop"
    [server]
    bind = ["127.0.0.1:${PORT}"]
    [stores.shop]
    public_key = "${_key1}"
    basic = { username = "clerk", password = "a${DB_PASSWORD}b${DB_PASSWORD}" }
    feeds.pages.source = "${SCHEMA}.pages"
    """
    settings = parse(text, {"DB_PASSWORD": "p$w", "DB_HOST": "db", "PORT": "80", "_key1": "pk", "SCHEMA": "s"})
    shop = settings.stores["shop"]
    assert in_words(settings.database.dsn) == "postgresql://feeds:p$w@db/shop"
    assert settings.server.bind == ("127.0.0.1:80",)
    assert (shop.public_key, shop.basic.password.reveal(), shop.feed("pages").source) == ("pk", "ap$wbp$w", "s.pages")


def test_a_name_may_be_empty_in_the_environment() -> None:
    assert parse(SHOP + 'schema = "x${NOTHING}"\n', {"NOTHING": ""}).stores["shop"].schema == "x"


def test_what_the_environment_holds_is_not_replaced_again() -> None:
    settings = parse('[stores.shop]\npublic_key = "${A}"\n', {"A": "${B}", "B": "b"})
    assert settings.stores["shop"].public_key == "${B}"


@pytest.mark.parametrize("text", ["$A", "${}", "${1A}", "{A}", "$$", "${A-B}"])
def test_what_is_no_name_in_braces_stays_as_it_is(text: str) -> None:
    assert parse(f'[stores.shop]\npublic_key = "{text}"\n', {"A": "a"}).stores["shop"].public_key == text


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (config("database", 'dsn = "postgresql://${MISSING}/shop"'), "database.dsn"),
        (config("server", 'bind = ["127.0.0.1:1", "${MISSING}"]'), "server.bind[1]"),
        (SHOP + 'basic = { username = "u", password = "${MISSING}" }\n', "stores.shop.basic.password"),
        (config(FEED, 'source = "${MISSING}.x"'), f"{FEED}.source"),
    ],
)
def test_a_name_the_environment_lacks_is_named_with_its_key(text: str, place: str) -> None:
    message = refusal_of(text, PRESENT="x")
    assert message.startswith(f"{place}: ")
    assert "${MISSING} is not set" in message


# Secrets

_SECRETS_IN_PLACE = [
    config("database", f'dsn = "{SECRET}"'),
    config("database", f'dsn = ["{SECRET}"]'),
    config("database", f'dsn = {{ url = "{SECRET}" }}'),
    config("database", f'dsn = "postgresql://u:{SECRET}@h/d"\nstate_dsn = "host=h password={SECRET}"'),
    config("database", f'dsn = "mysql://u:{SECRET}@h/d"'),
    config("database", f'dsn = "postgresql://u:{SECRET}@h/d"\npool_size = "many"'),
    config("database", f'dns = "{SECRET}"'),
    config("database", f'dsn = "{SECRET}${{MISSING}}"'),
    config("access", f'admin = {{ username = "", password = "{SECRET}" }}'),
    config("access", f'admin = {{ username = "u", password = ["{SECRET}"] }}'),
    config("stores.shop", f'private_key = "{SECRET}"\nschema = 1'),
    config("stores.shop", f'private_key = ["{SECRET}"]'),
    config("stores.shop", f'privatekey = "{SECRET}"'),
    config("stores.shop", f'basic = {{ username = 1, password = "{SECRET}" }}'),
    config("stores.shop", f'basic = {{ user = "u", password = "{SECRET}" }}'),
    config("stores.shop", f'basic = {{ username = "u", pass = "{SECRET}" }}'),
    config("stores.shop", f'basic = {{ username = "a:b", password = "{SECRET}" }}'),
]

_SECRETS_OUT_OF_PLACE = [
    f'database = "postgresql://u:{SECRET}@h/d"\n' + SHOP,
    f'[[database]]\ndsn = "postgresql://u:{SECRET}@h/d"\n' + SHOP,
    f'[[stores]]\nprivate_key = "{SECRET}"\n',
    f'[[stores.shop]]\nprivate_key = "{SECRET}"\n',
    f'[stores]\nshop = "{SECRET}"\n',
    f'stores = ["{SECRET}"]\n',
    config("stores.shop", f'basic = "clerk:{SECRET}"'),
    config("stores.shop", f'basic = ["clerk", "{SECRET}"]'),
    config("stores.shop", f'basic = [{{ username = "u", password = "{SECRET}" }}]'),
    config("stores.shop", f'[[stores.shop.basic]]\npassword = "{SECRET}"'),
    config("access", f'admin = "admin:{SECRET}"'),
    config("access", f'[[access.admin]]\npassword = "{SECRET}"'),
]


@pytest.mark.parametrize("text", _SECRETS_IN_PLACE + _SECRETS_OUT_OF_PLACE)
def test_a_secret_is_in_no_error(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text, {})
    assert SECRET not in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_secret_from_the_environment_is_in_no_error() -> None:
    message = refusal_of(config("database", 'dsn = "${DSN}"'), DSN=f"jdbc:postgresql://u:{SECRET}@h/d")
    assert SECRET not in message


def test_a_secret_is_in_no_repr() -> None:
    settings = parse(
        f"""
        [database]
        dsn = "postgresql://u:{SECRET}@h/d"
        [stores.shop]
        public_key = "pk"
        basic = {{ username = "clerk", password = "{SECRET}" }}
        """,
        {},
    )
    store = settings.stores["shop"]
    for shown in (settings, settings.database, store, store.basic, store.basic.password, [store.basic.password]):
        assert SECRET not in repr(shown)
        assert SECRET not in str(shown)
        assert SECRET not in f"{shown}"
    assert store.basic.password.reveal() == SECRET


def test_a_repr_of_a_private_key_and_of_admin_hides_them() -> None:
    settings = msgspec.structs.replace(
        parse(SHOP, {}), stores={"shop": Store(public_key="pk", private_key=Secret(SECRET))}
    )
    assert SECRET not in repr(settings)


def test_secrets_are_equal_by_their_value_and_false_when_empty() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != "a"
    assert not Secret("")
    assert Secret("0")


# The file


def test_a_file_is_read_with_the_environment_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLERK_FEED_TEST_KEY", "pk-from-environment")
    path = tmp_path / "feed.toml"
    path.write_text('[stores.shop]\npublic_key = "${CLERK_FEED_TEST_KEY}"\nschema = "ærø"\n', encoding="utf-8")
    assert load(path).stores["shop"].public_key == "pk-from-environment"
    assert load(path).stores["shop"].schema == "ærø"
    with pytest.raises(SettingsError, match=r"CLERK_FEED_TEST_KEY.* is not set"):
        load(path, {})


def test_the_data_folder_is_beside_the_file_unless_it_is_absolute(tmp_path: Path) -> None:
    path = tmp_path / "feed.toml"
    path.write_text(SHOP)
    assert load(path, {}).database.data_dir == str(tmp_path / ".clerk-feed")
    path.write_text(config("database", 'data_dir = "/var/lib/feeds"'))
    assert load(path, {}).database.data_dir == "/var/lib/feeds"


def test_an_error_begins_with_the_path_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "feed.toml"
    path.write_text(config("database", "pool_size = 0"))
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert str(caught.value).startswith(f"{path}: database.pool_size = 0: ")


def _unreadable(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "absent.toml", "there is no such file"
    yield folder / "no-folder" / "feed.toml", "there is no such file"
    yield folder, "it can't be read"
    (folder / "latin1.toml").write_bytes(b'[stores.shop]\npublic_key = "\xe6"\n')
    yield folder / "latin1.toml", "it can't be read"
    (folder / "broken.toml").write_text("[stores")
    yield folder / "broken.toml", "not valid TOML"
    (folder / "file.toml").write_text(SHOP)
    yield folder / "file.toml" / "feed.toml", "it can't be read"


def test_a_file_that_can_not_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    for path, reason in _unreadable(tmp_path):
        with pytest.raises(SettingsError) as caught:
            load(path, {})
        message = str(caught.value)
        assert message.startswith(f"{path}: {reason}")
        assert "\n" not in message


def test_a_missing_file_comes_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--config PATH"):
        load(tmp_path / "feed.toml", dict(os.environ))


# Whatever is written


def toml(value: Any) -> str:
    """A value as TOML spells it."""
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(name)} = {toml(found)}" for name, found in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)


_text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)
_words = st.sampled_from(["", "5s", "60/minute", "127.0.0.1:80", "::1", "cloudflare", "a.b", "https://h/", "days", "x"])
_scalars = _text | _words | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans()
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_text | st.sampled_from(["username", "password"]), inner)
    ),
    max_leaves=4,
)


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KEYED), _values)
def test_any_value_of_any_key_loads_or_is_refused_in_one_line_that_names_it(place: tuple[str, str], value: Any) -> None:
    table, key = place
    try:
        loaded = parse(config(table, f"{key} = {toml(value)}"), {})
    except SettingsError as error:
        message = str(error)
    else:
        message = f"{table}.{key}"
        assert isinstance(loaded, Settings)
    assert message.startswith((f"{table}.{key}", f"server.certfile: certfile and {key}"))
    assert len(message.splitlines()) == 1
