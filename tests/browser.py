"""A real Chromium for the tests that look at pages.

It is Debian's own (apt-get install chromium chromium-driver), driven by selenium; where it is missing, these tests skip
and say so. One browser serves all tests of a worker; it reaches nothing but this machine.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def _options(binary: str, profile: Path) -> ChromeOptions:
    options = ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        "--no-sandbox",  # Chromium's own sandbox refuses root
        "--disable-gpu",
        "--disable-dev-shm-usage",  # a container's /dev/shm holds 64 MB
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        "--window-size=1280,1000",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return options


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    binary = next(filter(None, map(shutil.which, _NAMES)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium chromium-driver")
    options = _options(binary, tmp_path_factory.mktemp("chromium"))
    chrome = Chrome(options=options, service=ChromeService(executable_path=driver))
    chrome.set_page_load_timeout(30)
    yield chrome
    chrome.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Iterator[Chrome]:
    """A browser on an empty page, without cookies or what an earlier test wrote to the console."""
    yield chromium
    for window in chromium.window_handles[1:]:
        chromium.switch_to.window(window)
        chromium.close()
    chromium.switch_to.window(chromium.window_handles[0])
    chromium.delete_all_cookies()
    chromium.get("about:blank")
    complaints(chromium)


def complaints(browser: Chrome) -> list[str]:
    """What the console has to say since it was last asked: script errors, refusals by a CSP, what is missing."""
    entries: list[dict[str, Any]] = browser.execute("getLog", {"type": "browser"})["value"]
    return [str(entry["message"]) for entry in entries if entry["level"] in ("SEVERE", "WARNING")]
