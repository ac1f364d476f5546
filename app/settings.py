"""feed.toml, read and checked.

Everything is frozen once read. An error is one line that names the key, the value and the rule; a secret is never
part of it.
"""

import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import combinations, product
from pathlib import Path
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

import msgspec

from app.protocol.feeds import FEEDS, FeedName
from app.protocol.redaction import redacted
from app.protocol.request import HourUnit

DEFAULT_PATH = Path("feed.toml")
T = TypeVar("T")


class SettingsError(Exception):
    """feed.toml can't be used. The message is one line for the person who wrote it."""

    def __init__(self, message: str) -> None:
        # A value out of ${NAME} may hold line breaks.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class Secret:
    """A value that shows itself only when asked by name: never in a log, an error or a repr."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(…)" if self._value else "Secret('')"


class Duration(msgspec.Struct, frozen=True):
    """A length of time, written like 30s, 5m or 2h."""

    seconds: float


class Rate(msgspec.Struct, frozen=True):
    """So many in so long, written like 600/minute."""

    count: int
    seconds: int


_NO_SECRET = Secret("")


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of feed.toml: frozen, and an unknown key is an error."""


class Database(_Table, frozen=True):
    dsn: Secret | None = None
    data_dir: str = ".clerk-feed"
    pool_size: int = 8
    cursor_lease: Duration = Duration(5)
    resume_for: Duration = Duration(30)
    statement_timeout: Duration = Duration(60)
    state_dsn: Secret = _NO_SECRET
    pgbouncer: bool = False


class Server(_Table, frozen=True):
    bind: tuple[str, ...] = ("127.0.0.1:8000",)
    workers: int = 1
    admin_bind: str = "127.0.0.1:8001"
    certfile: str = ""
    keyfile: str = ""
    client_ca: str = ""
    send_timeout: Duration = Duration(30)
    shutdown_timeout: Duration = Duration(30)

    @property
    def tls(self) -> bool:
        """Whether `bind` speaks HTTPS."""
        return bool(self.certfile)

    @property
    def admin_tls(self) -> bool:
        """Whether `admin_bind` does: not on loopback, where nobody listens and the certificate's name is another."""
        return self.tls and not is_loopback(split_address(self.admin_bind)[0] or "")


class Credentials(_Table, frozen=True):
    username: str = ""
    password: Secret = _NO_SECRET

    def __bool__(self) -> bool:
        return bool(self.username)


class Access(_Table, frozen=True):
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    allowed_addresses: tuple[str, ...] = ()
    verify_url: str = "https://api.clerk.io/v2/token/verify"
    verify_timeout: Duration = Duration(5)
    token_ttl: Duration = Duration(600)
    token_cache: int = 1024
    token_grace: Duration = Duration(900)
    rate: Rate = Rate(1000, 1)
    max_wait: Duration = Duration(10)
    max_streams: int = 8
    refusal_rate: Rate = Rate(60, 60)
    admin: Credentials = Credentials()


class Clerk(_Table, frozen=True):
    api_url: str = "https://api.clerk.io/v2"


class FeedSettings(_Table, frozen=True):
    source: str = ""
    rendered: bool = False
    refresh_every: str = ""
    shrink_limit: float = 0.2
    shrink_floor: int = 20
    strict: bool = False
    delete_orders: bool = False

    @property
    def refresh_seconds(self) -> float | None:
        """How often to refresh; None for by hand."""
        return _duration(self.refresh_every)["seconds"] if self.refresh_every else None


class Store(_Table, frozen=True):
    """One Clerk store. `name` is the key of its table; `schema` is never empty once read."""

    public_key: str
    private_key: Secret = _NO_SECRET
    schema: str = ""
    token_auth: bool = True
    basic: Credentials = Credentials()
    incremental_overlap: Duration = Duration(3600)
    modified_after_unit: HourUnit = "hours"
    feeds: dict[FeedName, FeedSettings] = msgspec.field(default_factory=dict)
    name: str = ""

    def feed(self, feed: FeedName) -> FeedSettings:
        return self.feeds.get(feed, _PLAIN_FEED)


_PLAIN_FEED = FeedSettings()


class Settings(_Table, frozen=True):
    database: Database = Database()
    server: Server = Server()
    access: Access = Access()
    clerk: Clerk = Clerk()
    stores: dict[str, Store] = msgspec.field(default_factory=dict)


def load(path: Path, environment: dict[str, str] | None = None) -> Settings:
    """Read and check a feed.toml. Raises SettingsError; `environment` is os.environ unless given."""
    return of_file(read(path), path, environment)


def read(path: Path) -> str:
    """The text of a feed.toml. Raises SettingsError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: there is no such file. 'clerk-feed init' writes one; 'clerk-feed demo' needs none;"
            " --config PATH names another."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: it can't be read: {error}") from None


def of_file(text: str, path: Path, environment: dict[str, str] | None = None) -> Settings:
    """The settings in the text of the file at `path`, whose folder the paths in it go from. Raises SettingsError."""
    try:
        settings = parse(text, dict(os.environ) if environment is None else environment)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    data_dir = path.parent / settings.database.data_dir
    files = {key: getattr(settings.server, key) for key in ("certfile", "keyfile", "client_ca")}
    beside = {key: str(path.parent / name) if name else "" for key, name in files.items()}
    return replace(
        settings,
        database=replace(settings.database, data_dir=str(data_dir)),
        server=replace(settings.server, **beside),
    )


def parse(text: str, environment: dict[str, str]) -> Settings:
    """Read the text of a feed.toml. Raises SettingsError with one line."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"not valid TOML: {error}") from None
    data = _with_environment(raw, environment, "")
    _reject_unknown(data, Settings, "")
    try:
        settings = msgspec.convert(data, Settings, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(str(error), data)) from None
    stores = {name: replace(store, name=name, schema=store.schema or name) for name, store in settings.stores.items()}
    settings = replace(settings, stores=stores)
    for complaint in _complaints(settings):
        raise SettingsError(complaint)
    return settings


def replace(table: T, **changes: Any) -> T:
    """A copy of a table with some keys changed."""
    return msgspec.structs.replace(table, **changes)  # type: ignore[type-var]


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


def _decode(kind: type, value: Any) -> Any:
    """Hook of msgspec for the one type it does not know."""
    if kind is Secret:
        if not isinstance(value, str):
            raise ValueError("Expected `str`")
        return Secret(value)
    raise NotImplementedError(kind)


def _duration(value: Any) -> dict[str, float]:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", value) if isinstance(value, str) else None
    if not match:
        raise SettingsError("a duration is a number with a unit, such as 30s, 5m or 2h")
    return {"seconds": float(match[1]) * _UNITS[match[2]]}


def _rate(value: Any) -> dict[str, int]:
    match = re.fullmatch(r"([1-9][0-9]*)/(second|minute|hour|day)", value) if isinstance(value, str) else None
    if not match:
        raise SettingsError("a rate is a number by second, minute, hour or day, such as 600/minute")
    return {"count": int(match[1]), "seconds": _PERIODS[match[2]]}


def _with_environment(value: Any, environment: dict[str, str], path: str) -> Any:
    """Replace ${NAME} in every string by the environment's value."""
    if isinstance(value, dict):
        return {k: _with_environment(v, environment, f"{path}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_environment(v, environment, f"{path}[{n}]") for n, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def read(match: re.Match[str]) -> str:
        name = match[1]
        if name not in environment:
            raise SettingsError(f"{path}: ${{{name}}} is not set in the environment")
        return environment[name]

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", read, value)


def _tables(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if value is None:
        return
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: this must be a table, [{path}.<name>]")
    for name, table in value.items():
        if not isinstance(table, dict):
            raise SettingsError(f"{path}.{name}: this must be a table, [{path}.{name}]")
        yield name, table


def _reject_unknown(data: dict[str, Any], kind: type, path: str) -> None:
    """Name unknown keys and read durations and rates, before msgspec checks the types.

    msgspec names the table an unknown key is in but can't suggest the one that was meant.
    """
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    if kind is Store:
        del known["name"]  # the table's own name
    for key, value in list(data.items()):
        place = f"{path}.{key}".lstrip(".")
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
            raise SettingsError(f"{place}: unknown key{hint}")
        wanted = known[key]
        try:
            if wanted is Duration:
                data[key] = _duration(value)
            elif wanted is Rate:
                data[key] = _rate(value)
        except SettingsError as rule:
            raise SettingsError(f"{place} = {_shown(place, value)}: {rule}") from None
        if isinstance(wanted, type) and issubclass(wanted, _Table):
            if not isinstance(value, dict):
                raise SettingsError(f"{place}: this must be a table, [{place}]")
            _reject_unknown(value, wanted, place)
    _reject_unknown_below(data, kind, path)


def _reject_unknown_below(data: dict[str, Any], kind: type, path: str) -> None:
    """The same for the tables whose names the user chooses."""
    if kind is Settings:
        for name, table in _tables(data.get("stores"), "stores"):
            _reject_unknown(table, Store, f"stores.{name}")
    if kind is Store:
        for name, table in _tables(data.get("feeds"), f"{path}.feeds"):
            if name not in FEEDS:
                raise SettingsError(f"{path}.feeds.{name}: there is no such feed; the feeds are {', '.join(FEEDS)}")
            _reject_unknown(table, FeedSettings, f"{path}.feeds.{name}")


def _explain(message: str, data: dict[str, Any]) -> str:
    """msgspec's message, turned round: key, value, rule."""
    rule, _, pointer = message.partition(" - at ")
    path = pointer.strip("`").removeprefix("$").removeprefix(".")
    rule = rule.replace("`", "").replace("Expected str", "it must be text").replace("Expected", "it must be")
    if rule.startswith("Invalid enum value"):
        rule = "it must be " + " or ".join(get_args(HourUnit))  # the only key of the kind
    steps = path.split(".")
    if "[...]" in path:  # msgspec hides the key of a mapping: find the first that does not fit
        steps = _first_misfit(data)
    path = ".".join(steps)
    missing = re.fullmatch(r"Object missing required field (\w+)", rule)
    if missing:
        return f"{path}.{missing[1]}: it is missing, and has no default"
    return f"{path} = {_shown(path, _at(data, steps))}: {rule}"


def _first_misfit(data: dict[str, Any]) -> list[str]:
    """The way to the first value of a store that is of the wrong type."""
    for name, table in data.get("stores", {}).items():
        places: list[tuple[list[str], Any, type]] = [(["stores", name], {**table, "feeds": {}}, Store)]
        places += [(["stores", name, "feeds", feed], t, FeedSettings) for feed, t in table.get("feeds", {}).items()]
        for steps, value, kind in places:
            try:
                msgspec.convert(value, kind, dec_hook=_decode)
            except msgspec.ValidationError as error:
                inner = str(error).partition(" - at ")[2].strip("`").removeprefix("$")
                return steps + [step for step in inner.split(".") if step]
    return ["stores"]


def _at(data: Any, steps: list[str]) -> Any:
    for step in steps:
        key, *places = step.rstrip("]").split("[") if step.endswith("]") else [step]
        try:
            data = data[key]
            for place in places:
                data = data[int(place.rstrip("]"))]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return data


def _shown(path: str, value: Any) -> str:
    """A value as an error may show it."""
    if re.search(r"(password|private_key|dsn)$", path):
        return "(hidden)"
    text = repr(value) if not isinstance(value, str) else f'"{value}"'
    return text if len(text) <= 80 else text[:80] + "…"


def _complaints(settings: Settings) -> Iterator[str]:
    """What is wrong with settings whose types are right, worst first."""
    yield from _database_complaints(settings.database)
    yield from _server_complaints(settings.server)
    yield from _access_complaints(settings.access)
    yield from _unreachable_complaints(settings)
    yield from _open_admin_complaints(settings)
    yield from _url_complaints("clerk.api_url", settings.clerk.api_url)
    if not settings.stores:
        yield "stores: none is configured; add a table [stores.<name>] with public_key"
    for store in settings.stores.values():
        yield from _store_complaints(store)
    yield from _twice_deleting_complaints(settings)


def _too_short(path: str, duration: Duration, least: float) -> Iterator[str]:
    if duration.seconds < least:
        rule = f"it must be at least {least:g}s" if least >= 1 else f"it must be at least {least * 1000:g}ms"
        yield f"{path} = {duration.seconds:g}s: {rule}"


def _database_complaints(database: Database) -> Iterator[str]:
    if database.dsn is not None and not re.match(r"postgres(ql)?://", database.dsn.reveal()):
        yield "database.dsn: it must be a URL, postgresql://USER:PASSWORD@HOST/DATABASE"
    if database.state_dsn and not re.match(r"postgres(ql)?://", database.state_dsn.reveal()):
        yield "database.state_dsn: it must be a URL, postgresql://USER:PASSWORD@HOST/DATABASE"
    if database.state_dsn and database.dsn is None:
        yield "database.state_dsn: it names the primary of the servers of database.dsn; set dsn too"
    if not 1 <= database.pool_size <= 1000:
        yield f"database.pool_size = {database.pool_size}: it must be a whole number from 1 to 1000"
    for key in ("cursor_lease", "statement_timeout"):
        yield from _too_short(f"database.{key}", getattr(database, key), 0.001)


def _server_complaints(server: Server) -> Iterator[str]:
    if not server.bind:
        yield "server.bind = []: at least one address is needed, such as 127.0.0.1:8000"
    for number, address in enumerate(server.bind):
        yield from _bind_complaints(f"server.bind[{number}]", address)
    yield from _bind_complaints("server.admin_bind", server.admin_bind)
    if not 1 <= server.workers <= 256:
        yield f"server.workers = {server.workers}: it must be a whole number from 1 to 256"
    if bool(server.certfile) != bool(server.keyfile):
        yield "server.certfile: certfile and keyfile go together; set both or none"
    if server.client_ca and not server.certfile:
        yield "server.client_ca: client certificates need TLS here; set certfile and keyfile"
    yield from _too_short("server.send_timeout", server.send_timeout, 1)


def _bind_complaints(path: str, address: str) -> Iterator[str]:
    host, port = split_address(address)
    if host is None or port is None:
        yield f'{path} = "{address}": it must be an address and a port, such as 127.0.0.1:8000 or [::1]:8000'


def split_address(address: str) -> tuple[str | None, int | None]:
    """'127.0.0.1:8000' or '[::1]:8000' in its parts; (None, None) where it is neither."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s]+)):([0-9]{1,5})", address, re.ASCII)
    if not match or int(match[3]) > 65_535:
        return None, None
    host = match[1] or match[2]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            return None, None
    return host, int(match[3])


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, stays on this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _access_complaints(access: Access) -> Iterator[str]:
    for key in ("trusted_proxies", "allowed_addresses"):
        for number, network in enumerate(getattr(access, key)):
            if key == "trusted_proxies" and network == "cloudflare":
                continue
            place = f'access.{key}[{number}] = "{network}"'
            try:
                parsed = ipaddress.ip_network(network)
            except ValueError as error:
                yield f"{place}: it must be an address or a network: {error}"
                continue
            if key == "trusted_proxies" and _is_wide(parsed):
                yield (
                    f"{place}: a trusted proxy may claim any address for its caller, and these are far too many;"
                    " name your own proxies"
                )
    yield from _url_complaints("access.verify_url", access.verify_url)
    for key, least in (("token_cache", 1), ("max_streams", 1)):
        if getattr(access, key) < least:
            yield f"access.{key} = {getattr(access, key)}: it must be at least {least}"
    yield from _too_short("access.verify_timeout", access.verify_timeout, 0.001)
    yield from _credentials_complaints("access.admin", access.admin)


_WIDEST_PROXIES = {4: 8, 6: 16}
"""The shortest prefix of a network of proxies: 10.0.0.0/8 is somebody's own, 0.0.0.0/0 is not."""


def _is_wide(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Whether a network holds more than anybody's proxies. ::ffff:0:0/96 is all of IPv4 in IPv6 clothes."""
    mapped = getattr(network.network_address, "ipv4_mapped", None) is not None
    return network.prefixlen < (96 + _WIDEST_PROXIES[4] if mapped else _WIDEST_PROXIES[network.version])


def _unreachable_complaints(settings: Settings) -> Iterator[str]:
    """Addresses that would refuse every request: nothing but HTTPS is served off this machine."""
    if settings.server.certfile or any(
        name != "cloudflare" and not is_loopback(str(ipaddress.ip_network(name)[0]))
        for name in settings.access.trusted_proxies
    ):
        return
    for number, address in enumerate(settings.server.bind):
        host = split_address(address)[0]
        if host and not is_loopback(host):
            yield (
                f'server.bind[{number}] = "{address}": feeds leave this machine over HTTPS only; set certfile and'
                " keyfile, or name the proxy that ends TLS in access.trusted_proxies"
            )


def _open_admin_complaints(settings: Settings) -> Iterator[str]:
    """The operators' pages show what fails and why: off this machine only to who can say who they are."""
    host = split_address(settings.server.admin_bind)[0]
    if host and not is_loopback(host) and not settings.access.admin:
        yield (
            f'server.admin_bind = "{settings.server.admin_bind}": off loopback it needs a user name and a password;'
            " set access.admin, or use 127.0.0.1"
        )


def _url_complaints(path: str, url: str) -> Iterator[str]:
    """A token goes there: TLS, or this very machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        host = None
    shown = redacted(url)
    if host is None or parts.scheme not in ("http", "https"):
        yield f'{path} = "{shown}": it must be a URL, https://…'
    elif re.search(r"[\s\x00-\x20\x7f]", url):
        yield f'{path} = "{shown}": a URL holds no white space'
    elif parts.scheme == "http" and not is_loopback(host):
        yield f'{path} = "{shown}": secrets are sent there, so it must be https (http only to this machine)'


def _credentials_complaints(path: str, credentials: Credentials) -> Iterator[str]:
    if bool(credentials.username) != bool(credentials.password):
        yield f"{path}: username and password go together; set both or none"
    if ":" in credentials.username:
        yield f"{path}.username: HTTP authentication allows no colon in it; the password has a key of its own"


def _store_complaints(store: Store) -> Iterator[str]:
    path = f"stores.{store.name}"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", store.name, re.ASCII) or store.name == "-":
        yield f"{path}: a store's name has letters, digits, - and _ only (up to 63, not - alone): it is part of the URL"
    if not store.public_key.strip():
        yield f"{path}.public_key: it is empty; copy it from my.clerk.io, Settings, API keys"
    yield from _credentials_complaints(f"{path}.basic", store.basic)
    if not store.token_auth and not store.basic:
        yield f"{path}.token_auth = false: then basic must be set, or the feed would be open to everyone"
    for name, feed in store.feeds.items():
        place = f"{path}.feeds.{name}"
        if feed.source and len(relation_parts(feed.source)) != 2:
            yield f'{place}.source = "{feed.source}": it must be SCHEMA.RELATION, quoted like SQL where it needs it'
        if not (0 < feed.shrink_limit <= 1) or math.isnan(feed.shrink_limit):
            yield f"{place}.shrink_limit = {feed.shrink_limit}: it must lie above 0 and be at most 1"
        if feed.shrink_floor < 0:
            yield f"{place}.shrink_floor = {feed.shrink_floor}: it must be 0 or more"
        yield from _refresh_complaints(place, feed)
        if feed.delete_orders and name == "orders" and not (feed.rendered and store.private_key):
            yield f"{place}.delete_orders: it needs rendered = true, by which deletions are known, and private_key"
        if feed.delete_orders and name != "orders":
            yield f"{place}.delete_orders: it belongs to the orders feed only"


def _twice_deleting_complaints(settings: Settings) -> Iterator[str]:
    """Stores whose items another one deletes at Clerk: what one has lost the other may have."""
    for one, other in combinations(settings.stores.values(), 2):
        if one.public_key != other.public_key:
            continue
        for store, feed in product((one, other), FEEDS):
            if _deletes(store, feed):
                yield (
                    f"stores.{other.name}.public_key: it is that of {one.name} too, and {store.name} has rendered"
                    f" {feed} and a private_key: what vanishes from it is deleted at Clerk, though the other store may"
                    " have it. Make them one store, whose feeds may each have a source of their own, or give each its"
                    " own store at Clerk"
                )
                break


def _deletes(store: Store, feed: FeedName) -> bool:
    """Whether what vanishes from a feed is deleted at Clerk."""
    settings = store.feed(feed)
    return bool(store.private_key) and settings.rendered and (feed != "orders" or settings.delete_orders)


def _refresh_complaints(place: str, feed: FeedSettings) -> Iterator[str]:
    if not feed.refresh_every:
        return
    try:
        seconds = feed.refresh_seconds or 0
    except SettingsError as rule:
        yield f'{place}.refresh_every = "{feed.refresh_every}": {rule}'
        return
    if seconds < _SHORTEST_REFRESH:
        yield f'{place}.refresh_every = "{feed.refresh_every}": it must be at least {_SHORTEST_REFRESH:g}s'
    if not feed.rendered:
        yield f"{place}.refresh_every: only a rendered feed is refreshed; set rendered = true as well"


_SHORTEST_REFRESH = 1.0


def relation_parts(source: str) -> tuple[str, ...]:
    """'schema.relation' in its parts, as PostgreSQL spells them. Case is kept; double quotes allow a dot.

    An empty tuple where it is not a name at all.
    """
    part = r'"(?:[^"]|"")+"|[^".\s]+'
    if not re.fullmatch(rf"(?:{part})(?:\.(?:{part}))*", source):
        return ()
    return tuple(
        piece[1:-1].replace('""', '"') if piece.startswith('"') else piece for piece in re.findall(part, source)
    )
