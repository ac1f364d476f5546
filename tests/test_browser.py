"""The browser that other tests look at pages with."""

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.browser import complaints
from tests.conftest import Running


def test_a_page_of_the_service_is_seen_as_a_person_sees_it(shared_service: Running, browser: Chrome) -> None:
    browser.get(f"{shared_service.url}/-/problems")
    assert browser.find_element(By.TAG_NAME, "h1").text == "Problems and their cures"
    assert [entry for entry in complaints(browser) if "favicon" not in entry] == []


def test_what_a_page_may_not_do_is_on_record(shared_service: Running, browser: Chrome) -> None:
    browser.get(f"{shared_service.url}/-/problems")
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    )
    assert browser.execute_script("return window.ran") is None
    assert any("Content Security Policy" in entry for entry in complaints(browser))
