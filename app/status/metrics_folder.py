"""The folder that the processes of a service share for their metrics (prometheus_client's multiprocess mode)."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class MetricsFolderError(Exception):
    """There is no place for the metrics. The message says what to do."""


@contextmanager
def metrics_folder() -> Iterator[Path]:
    """A folder for the metrics of this process and of those it starts. Enter before anything imports the client.

    Raises MetricsFolderError.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="clerk-feed-metrics-"))
    except OSError as error:
        raise MetricsFolderError(
            f"The metrics need a folder for temporary files, and none can be written to ({error.strerror})."
            " Where the root filesystem is read-only, mount a tmpfs on /tmp; TMPDIR names another place."
        ) from None
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
        shutil.rmtree(folder, ignore_errors=True)


def inherited_folder() -> Path:
    """The folder that this process, or the one that started it, has made."""
    if _VARIABLE not in os.environ:
        raise RuntimeError("metrics_folder() comes before who keeps metrics")
    return Path(os.environ[_VARIABLE])
