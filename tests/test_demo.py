"""`clerk-feed demo`, as someone who has just cloned the project meets it."""

import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.demo import TOKEN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def command(data_dir: Path, port: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "app", "demo", "--data-dir", str(data_dir), "--port", str(port), *options]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_demo_shows_five_feeds_and_keeps_the_catalog(data_dir: Path, taken_port: int) -> None:
    done = subprocess.run(
        command(data_dir, taken_port, "--exit"), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Port {taken_port} is taken" in done.stdout
    for row in (
        r"products\D+100,000\D+101\D",
        r"categories\D+2,000\D",
        r"orders\D+200,000\D",
        r"customers\D+50,000\D",
        r"pages\D+500\D",
    ):
        assert re.search(row, done.stdout.split("slowest page")[1]), row
    assert "Every item arrived, exactly once." in done.stdout
    assert "curl" not in done.stdout, "nothing is left to be asked"

    # A second start finds the catalog, and stays up until it is told to stop.
    with subprocess.Popen(
        command(data_dir, free_port()), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as again:
        assert again.stdout is not None
        shown = ""
        try:
            for line in again.stdout:
                shown += line
                assert "Building" not in line
                if "stays up" in line:
                    break
            url = re.search(r"http://(127\.0\.0\.1:\d+)/demo/products", shown)
            assert url, shown
            assert "curl -H 'X-Clerk-Authorization: Bearer" in shown
            connection = http.client.HTTPConnection(url[1], timeout=30)
            connection.request(
                "GET", "/demo/pages?limit=3&offset=0", headers={"X-Clerk-Authorization": f"Bearer {TOKEN}"}
            )
            assert connection.getresponse().read().count(b"\n") == 3
            connection.close()
        finally:
            again.terminate()
        assert again.wait(30) == 0
    assert not list(data_dir.glob("postgres/postmaster.pid")), "the embedded PostgreSQL is still running"
