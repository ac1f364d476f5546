"""No secret leaks: a full run with debug logging on, and everything that anyone could read of it searched."""

import base64
import http.client
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from starlette.responses import Response

from app.clerk.api import ClerkApi, ClerkDeniedError, ClerkRefusedError, ClerkUnreachableError
from tests.clerk import FakeClerk, accepted, error, rejected
from tests.conftest import PRODUCTS, Database, Hosted, Loop, Running, base_config, eventually, start_service
from tests.secure import Authority
from tests.test_startup import run

SECRETS = {
    "good token": "good-T0kenOfClerk",
    "wrong token": "bad-T0kenOfSomebody",
    "unverified token": "unverified-T0ken",
    "malformed token": "malformed-T0ken",
    "public key": "pk-0fTheStore",
    "password": "Pässw0rd-of-the-store/?#",
    "wrong password": "Gu3ss-of-somebody",
    "admin password": "0perator-passw0rd",
    "wrong admin password": "Gu3ss-at-the-operator",
    "dsn password": "Dsn-Passw0rd",
    "verify password": "V3rify-passw0rd",
    "parameter": "pr1vate-key-in-the-url",
}

DEBUGGING = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s")
"""


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def shapes(secret: str) -> set[str]:
    """What a secret looks like where somebody encoded it on the way."""
    raw = secret.encode()
    return {
        secret,
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        repr(raw)[2:-1],
        base64.b64encode(raw).decode().rstrip("="),
        raw.hex(),
        *(basic(user, secret).removeprefix("Basic ") for user in ("clerk", "operator")),
    }


class Run:
    """A service that has been through everything, and all that was said meanwhile."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}


@pytest.fixture(scope="module")
def full_run(create_database: Callable[[], Database], hosted: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "sitecustomize.py").write_text(DEBUGGING)
    database = create_database()
    database.execute("create schema shop")
    database.execute(PRODUCTS.replace("{s}", "shop"))
    database.execute("insert into shop.products (id, name) select i, repeat('x', 3000) from generate_series(1, 6000) i")
    database.execute("create view shop.pages as select 1 as id, 1/0 as type, 'u' as url, 't' as title, 't' as text")
    clerk = FakeClerk()
    clerk.url = hosted(clerk.app)

    async def knows(token: str, key: str) -> Response:
        if token.startswith("unverified"):
            return error("InternalError")
        return accepted() if token.startswith("good") else rejected()

    clerk.behaviour = knows
    authority = Authority(folder / "authority")
    # Any password is right for the embedded server, so one can be in its DSN.
    dsn = re.sub("//postgres:@", f"//postgres:{SECRETS['dsn password']}@", database.dsn)
    assert SECRETS["dsn password"] in dsn
    verify_url = clerk.verify_url.replace("://", f"://clerk:{SECRETS['verify password']}@")
    config = base_config(
        dsn,
        verify_url,
        server=f'{authority.settings}\nworkers = 2\nsend_timeout = "1s"',
        access='refusal_rate = "8/hour"\n'
        f'admin = {{ username = "operator", password = "{SECRETS["admin password"]}" }}',
    )
    config += f"""
[stores.dk]
public_key = "{SECRETS["public key"]}"
schema = "shop"
basic = {{ username = "clerk", password = "{SECRETS["password"]}" }}
"""
    environment = {
        "PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}",
        "PYTHONASYNCIODEBUG": "1",
        "PYTHONWARNINGS": "default",
    }
    service = start_service(folder / "service", config, environment=environment)
    found = Run()
    try:
        _go_through_everything(found, service, authority)
        found.said["process titles"] = titles(service.process.pid)
        found.said["check"] = run("check", "--config", str(folder / "service" / "feed.toml"), timeout=120).stdout
    finally:
        service.stop()
    found.said["log"] = service.log.read_text()
    return found


def _go_through_everything(found: Run, service: Running, authority: Authority) -> None:
    context = authority.client()
    malformed = f"Bearer {SECRETS['malformed token']} x"
    right, wrong = basic("clerk", SECRETS["password"]), basic("clerk", SECRETS["wrong password"])
    page = "/dk/products?limit=10&offset=0"
    good = f"Bearer {SECRETS['good token']}"
    asked: list[tuple[str, str, dict[str, str]]] = [
        ("served", page, {"Authorization": right, "X-Clerk-Authorization": good}),
        ("served again", page, {"Authorization": right, "X-Clerk-Authorization": good}),
        ("whole", "/dk/feed.json", {"Authorization": right, "X-Clerk-Authorization": good}),
        ("failing view", "/dk/pages", {"Authorization": right, "X-Clerk-Authorization": good}),
        ("missing feed", "/dk/orders", {"Authorization": right, "X-Clerk-Authorization": good}),
        ("no such feed", "/dk/x", {"Authorization": right, "X-Clerk-Authorization": good}),
        ("no such store", "/xx/products", {"Authorization": right, "X-Clerk-Authorization": good}),
        (
            "secret in the URL",
            f"/dk/products?private_key={SECRETS['parameter']}",
            {"Authorization": right, "X-Clerk-Authorization": good},
        ),
        ("no credentials", page, {}),
        ("no token", page, {"Authorization": right}),
        ("wrong password", page, {"Authorization": wrong, "X-Clerk-Authorization": good}),
        ("wrong token", page, {"Authorization": right, "X-Clerk-Authorization": f"Bearer {SECRETS['wrong token']}"}),
        (
            "malformed",
            page,
            {"Authorization": right, "X-Clerk-Authorization": malformed},
        ),
        ("unasked", page, {"Authorization": right, "X-Clerk-Authorization": f"Bearer {SECRETS['unverified token']}"}),
        ("through a proxy", page, {"X-Forwarded-For": "x", "X-Clerk-Authorization": good, "Authorization": right}),
        ("problems", "/-/problems", {"X-Clerk-Authorization": good}),
        ("own pages", "/-/metrics", {"X-Clerk-Authorization": good, "Authorization": right}),
    ]
    wrong_token = {"X-Clerk-Authorization": f"Bearer {SECRETS['wrong token']}", "Authorization": right}
    asked += [(f"too often {number}", page, wrong_token) for number in range(30)]
    for name, path, headers in asked:
        found.said[name] = said(service.url, path, headers, context)
    admin = basic("operator", SECRETS["admin password"])
    for path in ("/-/metrics", "/-/status", "/-/healthz", "/-/problems", "/-/nothing"):
        found.said[f"admin {path}"] = said(service.admin_url, path, {"Authorization": admin}, None)
        guess = basic("operator", SECRETS["wrong admin password"])
        found.said[f"admin {path} guessed"] = said(service.admin_url, path, {"Authorization": guess}, None)
    _leave_in_the_middle(service, context, {"Authorization": right, "X-Clerk-Authorization": good})
    eventually(lambda: '"event":"CutOff"' in service.log.read_text())
    service.process.send_signal(signal.SIGHUP)
    eventually(lambda: service.log.read_text().count('"event":"Started"') >= 1)


def said(url: str, path: str, headers: dict[str, str], context: ssl.SSLContext | None) -> str:
    """A whole answer, headers included."""
    parts = urlsplit(url)
    connection = (
        http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=60, context=context)
        if context
        else http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    )
    with closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as cut_off:
            body = cut_off.partial
        return f"{answer.status} {answer.headers}\n{body.decode(errors='replace')}"


def _leave_in_the_middle(service: Running, context: ssl.SSLContext, headers: dict[str, str]) -> None:
    parts = urlsplit(service.url)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with (
        socket.create_connection((parts.hostname, parts.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=parts.hostname) as connection,
    ):
        connection.sendall(f"GET /dk/products HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        connection.recv(100)


def titles(parent: int) -> str:
    """The command lines and names of a process and all below it."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            below.setdefault(int(stat[1]), []).append(int(entry.name))
    found, todo = [], [parent]
    while todo:
        process = todo.pop()
        todo += below.get(process, [])
        with suppress(OSError):
            found.append((Path("/proc") / str(process) / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            found.append((Path("/proc") / str(process) / "comm").read_text())
    return "\n".join(found)


def test_the_run_went_through_what_it_should(full_run: Run) -> None:
    statuses = {name: text[:3] for name, text in full_run.said.items()}
    wanted = {
        "served": "200",
        "failing view": "500",
        "missing feed": "404",
        "secret in the URL": "400",
        "no credentials": "401",
        "wrong token": "401",
        "unasked": "503",
        "through a proxy": "403",
        "too often 29": "429",
        "admin /-/metrics": "200",
        "admin /-/status guessed": "401",
    }
    assert {name: statuses[name] for name in wanted} == wanted
    assert len(full_run.said["process titles"].splitlines()) >= 6  # a parent and two workers
    assert "httpcore" in full_run.said["log"]  # what is logged at level debug is there


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_is_in_anything_that_was_said(full_run: Run, name: str) -> None:
    for place, text in full_run.said.items():
        for shape in shapes(SECRETS[name]):
            assert shape not in text, f"{name} is in {place}"


def test_no_private_key_is_in_anything_that_was_said(full_run: Run) -> None:
    for text in full_run.said.values():
        assert "PRIVATE KEY" not in text


@pytest.mark.parametrize(
    "password", ["hunter2", "hun/hunter2", "12/hunter2", "hun?hunter2", "hun#hunter2", "a@hunter2"]
)
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["for people", "for machines"])
def test_probe_shows_no_password_of_its_url(hosted: Hosted, password: str, more: list[str]) -> None:
    clerk = FakeClerk()
    host = hosted(clerk.app).removeprefix("http://")
    ended = subprocess.run(
        [sys.executable, "-m", "app", "probe", f"http://clerk:{password}@{host}/dk/products", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "CLERK_TOKEN": "t0ken-of-the-environment"},
    )
    assert ended.stdout
    for secret in ("hunter2", "t0ken-of-the", base64.b64encode(f"clerk:{password}".encode()).decode()):
        assert secret not in ended.stdout


def test_the_private_key_of_a_deletion_is_in_no_log(
    loop: Loop, hosted: Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    clerk = FakeClerk()
    url = hosted(clerk.app)

    async def delete() -> None:
        api = ClerkApi(clerk.verify_url, 5)
        try:
            with suppress(ClerkUnreachableError, ClerkDeniedError, ClerkRefusedError):
                await api.delete(url, "products", [1], public_key="public", private_key="pr1vate-of-the-deletion")
        finally:
            await api.close()

    with caplog.at_level(logging.DEBUG):
        loop.run(delete())
    assert "httpcore" in {record.name.partition(".")[0] for record in caplog.records}
    assert "pr1vate-of-the-deletion" not in caplog.text


def test_settings_that_are_refused_show_no_password_of_a_url(tmp_path: Path) -> None:
    path = tmp_path / "feed.toml"
    path.write_text('[access]\nverify_url = "http://clerk:hunter2@clerk.example/"\n[stores.dk]\npublic_key = "k"\n')
    ended: Any = run("serve", "--config", str(path))
    assert "verify_url" in ended.stdout
    assert "clerk.example" in ended.stdout
    assert "hunter2" not in ended.stdout
