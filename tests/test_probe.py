"""`clerk-feed probe`: what a person learns of a feed, good or bad."""

import subprocess
import sys

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from tests.conftest import TOKEN, Hosted, Shop


def probe(url: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "app", "probe", url, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_probe_reads_a_feed_to_its_end_and_says_how_it_went(catalog: Shop) -> None:
    catalog.execute("insert into {s}.products (id) select generate_series(1, 250)")
    url = f"{catalog.service.url}/{catalog.name}/products?limit={{{{limit}}}}&offset={{{{offset}}}}"
    done = probe(url, "--token", TOKEN, "--limit", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("items         250", "pages         4", "slowest page", "items/s", "under 10 minutes"):
        assert words in done.stdout


def test_probe_tells_the_problem_and_its_cure(catalog: Shop) -> None:
    url = f"{catalog.service.url}/{catalog.name}/products?limit={{{{limit}}}}&offset={{{{offset}}}}"
    done = probe(url, "--token", "wrong-token")
    assert done.returncode == 1
    assert "HTTP status 401" in done.stdout
    assert "public_key" in done.stdout
    assert "wrong-token" not in done.stdout + done.stderr


def test_probe_tells_clerks_cause_and_cure_where_a_feed_of_another_tells_nothing(hosted: Hosted) -> None:
    async def refuse(request: Request) -> Response:
        return Response("no", int(request.path_params["status"]))

    url = hosted(Starlette(routes=[Route("/{status}", refuse)]))
    for status, cure in ((401, "USER:PASS"), (403, "Cloudflare"), (404, "caches"), (418, "Read the body")):
        done = probe(f"{url.replace('//', '//user:secret@')}/{status}")
        assert done.returncode == 1
        assert f"HTTP status {status}" in done.stdout
        assert cure in done.stdout
        assert "secret" not in done.stdout + done.stderr


def test_probe_shows_what_came_in_place_of_a_feed(hosted: Hosted) -> None:
    async def page(request: Request) -> Response:
        return HTMLResponse("<!doctype html><title>Just a moment…</title>")

    done = probe(hosted(Starlette(routes=[Route("/", page)])))
    assert done.returncode == 1
    assert "Just a moment" in done.stdout


def test_probe_warns_of_an_empty_feed(catalog: Shop) -> None:
    done = probe(f"{catalog.service.url}/{catalog.name}/products", "--token", TOKEN)
    assert done.returncode == 0
    assert "deleted everything" in done.stdout


def test_probe_refuses_what_is_no_url() -> None:
    done = probe("feeds.shop.dk/products")
    assert done.returncode == 2
    assert "not a feed URL" in done.stderr
