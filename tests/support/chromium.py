"""A headless Chromium that tests drive as a person would: by keys, clicks and what the page shows."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WAIT = 60.0  # seconds until a page must have answered; a busy machine takes its time


def missing_browser() -> str:
    """Why no browser can be driven here; empty if one can."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed; run make install-test"
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(lacking)} missing; run apt-get install chromium chromium-driver" if lacking else ""


@contextlib.contextmanager
def chromium(*, width: int = 1280, height: int = 900) -> "Iterator[Chrome]":
    """A new browser without a window. width, height: of the page in pixels."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        f"--window-size={width},{height}",
    ):
        options.add_argument(word)
    driver = Chrome(options, ChromeService(shutil.which("chromedriver"), env={**os.environ, "no_proxy": "*"}))
    try:
        yield driver
    finally:
        driver.quit()


def wait_until(driver: "Chrome", what: str, condition: Callable[[], Any]) -> Any:
    """The first true value of a condition; elements that are just being redrawn do not count. Fails after WAIT seconds."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = (NoSuchElementException, StaleElementReferenceException)
    try:
        return WebDriverWait(driver, WAIT, 0.05, ignored).until(lambda _: condition())
    except TimeoutException:
        body = driver.execute_script("return document.body.innerText")
        pytest.fail(f"the page never showed: {what}; it shows:\n{body}")


def press(driver: "Chrome", *keys: str) -> None:
    """Type keys into whatever has the focus."""
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def press_control(driver: "Chrome", key: str) -> None:
    """Press a key together with Control."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(driver).key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()


def retype(driver: "Chrome", words: str) -> None:
    """Replace the text of the field that has the focus."""
    from selenium.webdriver.common.keys import Keys

    press_control(driver, "a")
    press(driver, Keys.DELETE, words)
