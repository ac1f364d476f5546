"""What Clerk's sync log shows when a feed answers with an error, and what to do: from Clerk's guide to sync errors."""

import msgspec


class SyncError(msgspec.Struct, frozen=True):
    """A status as Clerk's sync log shows it."""

    cause: str
    cure: str


SYNC_ERRORS: dict[int, SyncError] = {
    401: SyncError(
        "HTTP authentication or Clerk's token is missing or wrong.",
        "Put USER:PASS into the import URL, https://USER:PASS@host/…, and let X-Clerk-Authorization through.",
    ),
    403: SyncError(
        "The server, or a firewall or proxy before it, blocks the importer.",
        "Allow the importer's address; check the public key and the URL; exempt the importer from rate limits and bot"
        " checks of Cloudflare; see that no proxy removes the authentication headers.",
    ),
    404: SyncError(
        "There is no feed at this URL, or a cache hides it.",
        "Check the URL, store and feed name included; empty caches on the way.",
    ),
    429: SyncError(
        "The server refuses the importer for asking too often.",
        "Raise the server's limit, or raise Page Size in Clerk's Data Sync so that requests are fewer and bigger.",
    ),
    500: SyncError(
        "The server failed, mostly over one item with an invalid attribute.",
        "Find the error in the server's log.",
    ),
    503: SyncError(
        "The server is too busy or its database is away; usually temporary.",
        "Try again later; check the server's load.",
    ),
}
"""By HTTP status. 502 and 504 of a proxy mean what 503 means."""


def of_status(status: int) -> SyncError:
    """What a status means to a sync, for any status."""
    if status in SYNC_ERRORS:
        return SYNC_ERRORS[status]
    if status >= 500:
        return SYNC_ERRORS[503 if status in (502, 504) else 500]
    if 300 <= status < 400:
        return SyncError("The URL redirects elsewhere.", "Use the URL it redirects to, with https://.")
    return SyncError("The server did not understand the request.", "Read the body of the answer; check the URL.")
