"""`clerk-feed design preview`: a design with real items, looked at in a real Chromium."""

import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from tests.browser import complaints
from tests.conftest import Database, eventually

DESIGNS = Path(__file__).parent / "designs" / "clerkjs2"

CATALOG = """
create schema dk;
create table dk.products as select
  g as id, 'Chair ' || g as name, '<p class="d">Nice &amp; soft</p>' as description, 10.5 + g as price,
  'https://images.shop.example/' || g || '.jpg' as image, 'https://shop.example/' || g as url,
  array[1] as categories, timestamptz '2026-01-01' + (g * 37 % 100) * interval '1 day' as created_at,
  case when g % 10 <> 0 then 20 + g end as list_price,
  case when g % 20 <> 0 then 'Fjord' end as brand
from generate_series(1, 90) as g;
alter table dk.products add primary key (id);
"""

CARD = (
    "{% for product in products %}<p class='item'>{{ product.name }} {{ product.list_price | money }}</p>{% endfor %}"
)


class Preview:
    """A preview that runs, of a design in a file of its own."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.database = database
        self.folder = folder
        self.design = folder / "design.html"
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        (folder / "feed.toml").write_text(
            f'[database]\ndsn = {json.dumps(database.dsn)}\nresume_for = "1s"\n[stores.dk]\npublic_key = "key"\n'
        )

    def start(self, text: str, *options: str) -> None:
        self.design.write_text(text)
        arguments = ["design", "preview", "design.html", "--store", "dk", "--port", "0", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first.startswith("design.html with products of dk: http://127.0.0.1:")
        self.url = first.split()[-1]

    def stop(self) -> int:
        if self.process is None:
            return 0
        self.process.terminate()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(20)

    def ask(self, path: str, host: str = "") -> tuple[int, http.client.HTTPMessage, str]:
        port = urlsplit(self.url).port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            connection.close()

    def state(self, query: str = "") -> dict[str, Any]:
        status, _, body = self.ask(f"/state?{query}")
        assert status == 200, body
        said: dict[str, Any] = json.loads(body)
        return said

    def names(self, query: str = "") -> list[str]:
        """The items of a rendering of CARD."""
        _, _, body = self.ask(self.state(query)["frame"])
        return [part.split("</p>")[0].strip() for part in body.split("<p class='item'>")[1:]]


@pytest.fixture(scope="module")
def products(create_database: Callable[[], Database]) -> Database:
    database = create_database()
    database.execute(CATALOG)
    return database


@pytest.fixture
def preview(products: Database, tmp_path: Path) -> Iterator[Preview]:
    running = Preview(tmp_path, products)
    yield running
    running.stop()


def in_frame(browser: Chrome, selector: str, what: str = "element.innerText") -> list[str]:
    """The texts of elements of the shown design; none while it is being replaced."""
    browser.switch_to.default_content()
    try:
        browser.switch_to.frame("frame")
        found: list[str] = browser.execute_script(
            f"return [...document.querySelectorAll(arguments[0])].map(element => {what})", selector
        )
    except WebDriverException:
        return []
    finally:
        browser.switch_to.default_content()
    return found


def told(browser: Chrome, element: str) -> str:
    return browser.find_element(By.ID, element).text


def opened(browser: Chrome, preview: Preview) -> None:
    """Open the page and wait for its first answer, be it a design or an error."""
    browser.get(preview.url)
    eventually(lambda: browser.execute_script("return document.body.dataset.asked") is not None)


def test_the_design_is_shown_with_real_items(browser: Chrome, preview: Preview) -> None:
    preview.start((DESIGNS / "slider.html").read_text())
    opened(browser, preview)
    eventually(lambda: len(in_frame(browser, "li.clerk-product h3")) == 12)
    assert all(name.startswith("Chair ") for name in in_frame(browser, "li.clerk-product h3"))
    assert in_frame(browser, "h2") == ["Headline"]
    assert all(float(price) > 10 for price in in_frame(browser, "b"))
    assert told(browser, "state").startswith("12 items, ")
    assert told(browser, "hosts") == "https://images.shop.example, https://shop.example"
    assert browser.title == "design.html: preview"
    # The images' host is not there; that is all there is to complain about.
    assert [entry for entry in complaints(browser) if "images.shop.example" not in entry] == []


def test_it_is_shown_anew_when_it_is_saved(browser: Chrome, preview: Preview) -> None:
    preview.start(CARD)
    opened(browser, preview)
    eventually(lambda: len(in_frame(browser, ".item")) == 12)
    before = in_frame(browser, ".item")
    preview.design.write_text(CARD.replace("'item'", "'item' title='new'"))
    eventually(lambda: len(in_frame(browser, ".item[title=new]")) == 12)
    assert in_frame(browser, ".item") == before, "the items stay, so that only the design differs"
    # As editors do that write another file and rename it.
    other = preview.folder / "design.html~"
    other.write_text("<h1>Renamed</h1>" + CARD)
    other.rename(preview.design)
    eventually(lambda: in_frame(browser, "h1") == ["Renamed"])


def test_a_mistake_is_told_with_its_line_until_it_is_mended(browser: Chrome, preview: Preview) -> None:
    preview.start(CARD)
    opened(browser, preview)
    eventually(lambda: len(in_frame(browser, ".item")) == 12)
    preview.design.write_text("\n{% for product in products %}{{ product.name }}")
    eventually(lambda: told(browser, "error") == "line 2: for without endfor")
    assert len(in_frame(browser, ".item")) == 12, "what was shown last stays, faded"
    assert told(browser, "state") == "not rendered"
    preview.design.write_text(CARD.replace("list_price", "lst_price"))
    eventually(lambda: told(browser, "problems") != "")
    assert told(browser, "error") == ""
    assert "line 1: product.lst_price does not exist in the feed; did you mean list_price?" in told(browser, "problems")
    preview.design.write_text(CARD)
    eventually(lambda: told(browser, "problems") == "")


def test_the_items_can_be_chosen(browser: Chrome, preview: Preview) -> None:
    preview.start(CARD + "{% for product in products %}{{ product.brand }}{% endfor %}", "--items", "5")
    opened(browser, preview)
    pick = Select(browser.find_element(By.ID, "pick"))
    pick.select_by_visible_text("the first by id")
    eventually(lambda: [name.split()[1] for name in in_frame(browser, ".item")] == ["1", "2", "3", "4", "5"])
    pick.select_by_visible_text("with missing attributes first")
    eventually(lambda: [name.split()[1] for name in in_frame(browser, ".item")] == ["20", "40", "60", "80", "10"])
    assert "product.list_price: missing in 5 of 5" in told(browser, "missing")
    assert "product.brand: missing in 4 of 5" in told(browser, "missing")
    pick.select_by_visible_text("the newest")
    newest = [
        f"Chair {row['id']}"
        for row in preview.database.fetch("select id from dk.products order by created_at desc, id desc limit 5")
    ]
    eventually(lambda: [" ".join(name.split()[:2]) for name in in_frame(browser, ".item")] == newest)
    pick.select_by_visible_text("drawn at random")
    eventually(lambda: [" ".join(name.split()[:2]) for name in in_frame(browser, ".item")] != newest)
    drawn = in_frame(browser, ".item")
    browser.find_element(By.ID, "again").click()
    eventually(lambda: in_frame(browser, ".item") != drawn)


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server that is no part of the preview, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join(10)


def test_a_hostile_design_can_do_nothing(browser: Chrome, preview: Preview, elsewhere: tuple[str, list[str]]) -> None:
    evil, asked = elsewhere
    text = (DESIGNS / "hostile.html").read_text()
    assert "https://evil.example" in text
    preview.start(text.replace("https://evil.example", evil))
    opened(browser, preview)
    eventually(lambda: len(in_frame(browser, ".item")) == 12)
    browser.switch_to.frame("frame")
    assert browser.execute_script("return [document.title, self.origin]") == ["Design", "null"], "no script ran"
    browser.find_element(By.ID, "send").click()
    browser.find_element(By.ID, "away").click()
    browser.switch_to.default_content()
    preview.design.write_text(preview.design.read_text() + "<u>more</u>")
    eventually(lambda: in_frame(browser, "u") == ["more"])
    assert len(in_frame(browser, ".item")) == 12, "neither the form nor the link nor the refresh led away"
    assert browser.title == "design.html: preview"
    assert browser.current_url.startswith(preview.url)
    assert asked == []


def test_images_of_the_items_load_and_nothing_else_from_there(
    browser: Chrome, create_database: Callable[[], Database], tmp_path: Path, elsewhere: tuple[str, list[str]]
) -> None:
    images, asked = elsewhere
    database = create_database()
    database.execute(CATALOG + f"update dk.products set image = '{images}/chair.png'")
    preview = Preview(tmp_path, database)
    try:
        preview.start(
            "{% for product in products %}<img src='{{ product.image }}'>{% endfor %}"
            f"<script src='{images}/x.js'></script><link rel='stylesheet' href='{images}/x.css'>"
        )
        opened(browser, preview)
        eventually(lambda: bool(asked))
        assert set(asked) == {"/chair.png"}
    finally:
        preview.stop()


def test_markup_in_items_can_do_nothing_either(
    browser: Chrome, create_database: Callable[[], Database], tmp_path: Path
) -> None:
    database = create_database()
    database.execute(CATALOG)
    database.execute("update dk.products set name = $1", "<script>top.document.title='x'</script><b class=item>x</b>")
    preview = Preview(tmp_path, database)
    try:
        preview.start("{% for product in products %}{{ product.name }}{% endfor %}")
        opened(browser, preview)
        eventually(lambda: in_frame(browser, ".item") == ["x"] * 12)
        assert browser.title == "design.html: preview"
    finally:
        preview.stop()


def test_a_style_sheet_is_used_and_watched(browser: Chrome, preview: Preview) -> None:
    (preview.folder / "card.css").write_text(".item { color: rgb(1, 2, 3) } </style><i>out</i>")
    preview.start(CARD, "--css", "card.css")
    opened(browser, preview)

    def colors() -> set[str]:
        return set(in_frame(browser, ".item", "getComputedStyle(element).color"))

    eventually(lambda: colors() == {"rgb(1, 2, 3)"})
    assert in_frame(browser, "i") == []
    (preview.folder / "card.css").write_text(".item { color: rgb(4, 5, 6) }")
    eventually(lambda: colors() == {"rgb(4, 5, 6)"})


def test_the_page_says_what_it_allows(preview: Preview) -> None:
    preview.start(CARD)
    _, page, _ = preview.ask("/")
    assert "default-src 'none'" in page["Content-Security-Policy"]
    assert "unsafe-inline" not in page["Content-Security-Policy"]
    status, frame, _ = preview.ask(preview.state()["frame"])
    assert status == 200
    assert frame["Content-Security-Policy"] == (
        "default-src 'none'; img-src data: https://images.shop.example https://shop.example; style-src 'unsafe-inline';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox"
    )
    for headers in (page, frame):
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_name_that_points_to_loopback_is_refused(preview: Preview) -> None:
    preview.start(CARD)
    port = urlsplit(preview.url).port
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"localhost:x:{port}"):
        assert preview.ask("/state", host)[0] == 403, host
    for host in (f"localhost:{port}", "localhost:9000"):
        assert preview.ask("/state", host)[0] == 200, host


def test_missing_items_come_first_by_what_the_design_uses(preview: Preview) -> None:
    preview.start(CARD, "--items", "3")
    assert [name.split()[1] for name in preview.names("pick=missing")] == ["10", "20", "30"]
    assert preview.ask("/state?pick=nonsense")[0] == 400


def test_trouble_with_the_database_is_told_on_the_page(
    browser: Chrome, create_database: Callable[[], Database], tmp_path: Path
) -> None:
    database = create_database()
    database.execute(CATALOG)
    preview = Preview(tmp_path, database)
    try:
        preview.start(CARD)
        opened(browser, preview)
        eventually(lambda: len(in_frame(browser, ".item")) == 12)
        database.execute("alter table dk.products rename to goods")
        browser.find_element(By.ID, "again").click()
        expected = 'The items could not be read: the database could not be asked: relation "dk.products" does not exist'
        eventually(lambda: told(browser, "error") == expected)
        database.execute("alter table dk.goods rename to products")
        browser.find_element(By.ID, "again").click()
        eventually(lambda: told(browser, "error") == "")
    finally:
        preview.stop()


def test_a_design_that_goes_away_is_told_and_taken_up_again(browser: Chrome, preview: Preview) -> None:
    preview.start(CARD)
    opened(browser, preview)
    preview.design.unlink()
    eventually(lambda: told(browser, "error") == "design.html can't be read: No such file or directory")
    preview.design.write_bytes(b"\xff")
    eventually(lambda: told(browser, "error") == "the file is not in UTF-8")
    preview.design.write_text(CARD)
    eventually(lambda: told(browser, "error") == "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told_to_though_a_page_is_open(browser: Chrome, preview: Preview, number: signal.Signals) -> None:
    preview.start(CARD)
    opened(browser, preview)
    assert preview.process is not None
    preview.process.send_signal(number)
    assert preview.process.wait(20) == 0


def test_a_port_in_use_is_told(preview: Preview) -> None:
    preview.design.write_text(CARD)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "app", "design", "preview", "design.html", "--store", "dk", "--port", port],
            cwd=preview.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == f"Error: another program listens on port {port}; choose one with --port\n"
