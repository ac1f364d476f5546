"""Every refusal and failure a caller can meet: its status, what it means, and the cure.

Rendered as RFC 9457 problem details, and as a page for people at `/-/problems`. Causes and cures follow Clerk's
guide to sync errors, because its sync log shows no more than the status.
"""

from collections.abc import Mapping

import msgspec

PROBLEMS_PATH = "/-/problems"
MEDIA_TYPE = "application/problem+json"


class Problem(msgspec.Struct, frozen=True):
    """One kind of refusal: what is always true of it."""

    status: int
    code: str
    title: str
    fix: str


class ProblemDetails(msgspec.Struct, frozen=True):
    """What the caller gets to see: a problem details object (RFC 9457), with `fix` as our extension."""

    type: str
    title: str
    status: int
    detail: str
    fix: str


class Refusal(Exception):
    """A problem met by one request.

    `detail` says what was seen this time and must never hold a secret. `headers` go with the answer.
    """

    def __init__(
        self,
        problem: Problem,
        detail: str,
        *,
        fix: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{problem.code}: {detail}")
        self.problem = problem
        self.detail = detail
        self.fix = fix or problem.fix
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """The members of the problem details object."""
        return msgspec.structs.asdict(
            ProblemDetails(
                type=f"{PROBLEMS_PATH}#{self.problem.code}",
                title=self.problem.title,
                status=self.problem.status,
                detail=self.detail,
                fix=self.fix,
            )
        )


PARAMETER_INVALID = Problem(
    400,
    "parameter-invalid",
    "A query parameter is not understood.",
    "Use limit (1 to 1000) together with offset (0 and up), and modified_after; see the detail for the one at"
    " fault. Nothing is clamped silently: a client that steps by a limit it did not get would lose items.",
)
TOKEN_MISSING = Problem(
    401,
    "token-missing",
    "The header X-Clerk-Authorization did not arrive.",
    "Clerk sends it with every request of a JSON Feed V2. If Clerk's sync shows this, a proxy on the way strips the"
    " header: let it through.",
)
TOKEN_MALFORMED = Problem(
    401,
    "token-malformed",
    "The header X-Clerk-Authorization is not of the form 'Bearer TOKEN'.",
    "Clerk sends 'X-Clerk-Authorization: Bearer …'. If something on the way rewrites the header, let it through"
    " untouched.",
)
TOKEN_REJECTED = Problem(
    401,
    "token-rejected",
    "Clerk does not know this token for this store.",
    "Check that public_key of this store in feed.toml is the public key of the store in my.clerk.io whose Data Sync"
    " asks for this URL.",
)
BASIC_REQUIRED = Problem(
    401,
    "basic-required",
    "This store asks for HTTP authentication, and the request came without it or with the wrong one.",
    "Put the user name and the password into the import URL in Clerk's Data Sync: https://USER:PASS@host/….",
)
ADMIN_REQUIRED = Problem(
    401,
    "admin-required",
    "The operators' pages ask for HTTP authentication, and the request came without it or with the wrong one.",
    "The user name and the password are those of access.admin in feed.toml.",
)
ADMIN_NAME = Problem(
    421,
    "admin-name",
    "The operators' pages were asked for under a name that is not this machine's own. Without access.admin they answer"
    " to localhost and loopback addresses only, so that no web page elsewhere can have a browser here read them.",
    "Ask for http://localhost:PORT/-/status, or set access.admin in feed.toml.",
)
NOT_SECURE = Problem(
    403,
    "not-secure",
    "Feeds are served over HTTPS only.",
    "Ask over https://. Plain HTTP is answered on this machine's own loopback address only, for trying things out.",
)
PROXY_NOT_TRUSTED = Problem(
    403,
    "proxy-not-trusted",
    "The request came through a proxy that is not declared.",
    "If the proxy is yours, add its address to access.trusted_proxies in feed.toml. If you ask directly, leave the"
    " forwarding headers out.",
)
ADDRESS_NOT_ALLOWED = Problem(
    403,
    "address-not-allowed",
    "The address is not one that may read here.",
    "Add it to access.allowed_addresses in feed.toml if it is Clerk's importer or your own. If it is the address of a"
    " proxy of yours, add that to access.trusted_proxies, and let it send X-Forwarded-For.",
)
NOT_FOUND = Problem(
    404,
    "not-found",
    "There is nothing at this address.",
    "Feeds are at /STORE/products, /STORE/categories, /STORE/orders, /STORE/customers and /STORE/pages, with .json"
    " or .ndjson added if you like, and all in one at /STORE/feed.json.",
)
STORE_UNKNOWN = Problem(
    404,
    "store-unknown",
    "No store of this name is configured.",
    "The first part of the path is the name of a [stores.<name>] table in feed.toml. Correct the URL in Clerk's Data"
    " Sync, or add the store.",
)
FEED_MISSING = Problem(
    404,
    "feed-missing",
    "The store has no relation for this feed.",
    "Create the view named in the detail; the page /-/problems and the README show what it needs. Or remove the URL"
    " from Clerk's Data Sync.",
)
REFUSED_TOO_OFTEN = Problem(
    429,
    "refused-too-often",
    "Too many requests with missing or wrong credentials came from this address.",
    "Correct the token's way here or the credentials, then wait as long as Retry-After says. Requests with a token that"
    " Clerk has vouched for pass meanwhile. The limit is access.refusal_rate in feed.toml.",
)
TOO_FAST = Problem(
    429,
    "too-fast",
    "This store is read faster than its rate allows.",
    "Raise access.rate in feed.toml, or raise Page Size in Clerk's Data Sync (up to 1000): then requests are fewer and"
    " bigger.",
)
METHOD_NOT_ALLOWED = Problem(
    405,
    "method-not-allowed",
    "Feeds are read with GET or HEAD.",
    "Use GET. Nothing can be written through this service.",
)
BODY_UNEXPECTED = Problem(
    413,
    "body-unexpected",
    "The request carries a body, and nothing here reads one.",
    "Ask with GET and without a body.",
)
INTERNAL = Problem(
    500,
    "internal-error",
    "The service failed in a way it did not expect.",
    "The log has the error under the same time and path. It is worth a report.",
)
SOURCE_UNUSABLE = Problem(
    500,
    "source-unusable",
    "The relation behind this feed can't be served as it is.",
    "Change the view as the detail says, then ask again; no restart is needed.",
)
SOURCE_FAILED = Problem(
    500,
    "source-failed",
    "PostgreSQL reported an error while reading this feed.",
    "The log has the error with its SQLSTATE. Often one row makes an expression of the view fail: a cast, or a"
    " division by zero.",
)
ITEM_INVALID = Problem(
    500,
    "item-invalid",
    "An item lacks a required attribute, and this feed is strict.",
    "Give the item the attribute, leave it out in the view, or set strict = false to serve the others without it.",
)
FEED_SHRUNK = Problem(
    503,
    "feed-shrunk",
    "The feed has lost far more items than is usual, so its end is held back.",
    "Clerk would delete what is missing. Check the view: a join that finds nothing, an emptied table, a required column"
    " gone NULL. The shop keeps its index meanwhile. If the shrink is right, say so:"
    " clerk-feed accept-shrink --store STORE --feed FEED --items ITEMS",
)
FEED_NOT_RENDERED = Problem(
    503,
    "feed-not-rendered",
    "The feed is rendered, and its first refresh is still to come.",
    "Run: clerk-feed refresh --store STORE --feed FEED. Or set refresh_every, and serve does it by itself.",
)
CLERK_UNREACHABLE = Problem(
    503,
    "clerk-unreachable",
    "Clerk could not be asked whether the token is good.",
    "Usually temporary. Check that this machine reaches verify_url and that its clock and certificates are right.",
)
DATABASE_UNAVAILABLE = Problem(
    503,
    "database-unavailable",
    "The database does not answer.",
    "Usually temporary: ask again. If it lasts, check that PostgreSQL runs and that dsn in feed.toml is right.",
)
STATE_UNAVAILABLE = Problem(
    503,
    "state-unavailable",
    "The place where this page begins can't be read or written.",
    "Check that the role of the service owns the schema clerk_feed and its tables, and that the disk is not full. The"
    " walk goes on when it can. Where the database was moved to another server, start the service again.",
)
OFFSET_LOST = Problem(
    409,
    "offset-lost",
    "The feed ends with this page or before it, and this sync was not led there: no end to be believed.",
    "Put limit={{limit}}&offset={{offset}} into the import URL and start the sync again: each page must begin where the"
    " one before it ended, and the first at offset 0.",
)
KEY_CHANGED = Problem(
    500,
    "key-changed",
    "The relation of this feed, the type of its id, or whether it has a modified_at changed during a walk: there is no"
    " way on from an old id.",
    "Start the sync again: a walk that begins at offset 0 goes by the new ids. It is refused like this for up to two"
    " hours where another one may still be at the old ids; if no sync is under way: clerk-feed end-walks --store STORE"
    " --feed FEED",
)
STANDBY_BEHIND = Problem(
    503,
    "standby-behind",
    "The standbys are too far behind the primary: what there was when this sync began, or newer, may be missing.",
    "Usually temporary: ask again. If it lasts, look at their replay (pg_stat_replication on the primary), and check"
    " that database.dsn names standbys of the database that database.state_dsn names. They may lag by a quarter of the"
    " store's incremental_overlap.",
)
SOURCE_CHANGING = Problem(
    503,
    "source-changing",
    "The tables of this feed are being split, swapped or attached, again and again.",
    "Usually temporary: ask again.",
)
WALK_LOST = Problem(
    503,
    "walk-lost",
    "How far this sync had come may be lost: the database was failed over, or its walks were ended by command.",
    "Start the sync again: a walk that begins at offset 0 is whole. It is refused like this for up to two hours where"
    " another one may have been under way at the failover; if none was: clerk-feed end-walks --store STORE --feed FEED",
)
BUSY = Problem(
    503,
    "busy",
    "Every database connection is in use.",
    "Ask again in a moment. If it lasts, raise pool_size in feed.toml, or sync fewer feeds at the same time.",
)
STREAMS_FULL = Problem(
    503,
    "streams-full",
    "As many answers of this store as are allowed are on their way already.",
    "Ask again in a moment. If it lasts, sync fewer feeds at the same time, look for readers that do not read, or raise"
    " access.max_streams in feed.toml.",
)
VERSION_NOT_SUPPORTED = Problem(
    505,
    "http-version",
    "This HTTP version can't carry the answer safely.",
    "Speak HTTP/1.1 to this service: in nginx 'proxy_http_version 1.1', in a tunnel turn HTTP/2 to the origin off."
    " Over HTTP/1.0 a feed that was cut off can't be told from a complete one.",
)

ALL: tuple[Problem, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Problem))
