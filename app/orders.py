"""What the supervisor and a worker tell each other, one JSON line a word."""

import msgspec


class Orders(msgspec.Struct, frozen=True):
    """What to serve: the text of feed.toml, where it lies, the database, and the descriptors to listen on."""

    text: str
    path: str
    dsn: str
    public: tuple[int, ...]
    admin: int
    greets: bool
    """Whether this worker tells the terminal what is served."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker answers on its sockets."""

    database: str
    """What it reads, e.g. "PostgreSQL 18.4"."""


class Unable(msgspec.Struct, frozen=True, tag="unable"):
    """The worker can't start; the message is for the person who started the service."""

    message: str
