"""Debian's Chromium without a window, for the tests of the page and its benchmark."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")

IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="chromium and chromedriver are not installed (apt-get install chromium-driver)",
    ),
]
"""Marks of test modules that drive the page."""

FIRST_PICTURES_MS = """
const shown = performance.getEntriesByType('resource')
    .filter(e => e.name.includes('thumbnails')).slice(0, 4);
return Math.max(performance.getEntriesByType('navigation')[0].responseEnd,
                ...shown.map(e => e.responseEnd))
"""
"""Script: milliseconds from the click until the page and its first four pictures were there."""

PICTURES_ARE_THERE = """
return [...document.images].filter(i => i.loading != 'lazy')
    .every(i => i.complete && i.naturalWidth > 0)
"""
"""Script: whether every picture in sight has loaded."""


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser that keeps its console's messages."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--autoplay-policy=no-user-gesture-required", "--window-size=1200,900"),
        "--disable-background-networking",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield started
    finally:
        started.quit()


class Page:
    """A browser on the service, and what people do with it."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        self.url = url

    def go(self, path: str) -> None:
        self.browser.get(self.url + path)

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def press(self, *keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(*keys)

    def run(self, script: str, *values: object) -> object:
        return self.browser.execute_script(script, *values)

    def path(self) -> str:
        return self.browser.current_url.removeprefix(self.url)

    def has_loaded_all_pictures(self) -> bool:
        return bool(self.run(PICTURES_ARE_THERE))

    def faults(self) -> list[str]:
        """What the browser complained about: scripts that failed, what the policy forbade."""
        log = self.browser.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]

    def downloads_to(self, folder: Path) -> None:
        """Save what is downloaded in a folder, without asking."""
        behaviour = {"behavior": "allow", "downloadPath": str(folder)}
        self.browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)

    def offline(self, is_offline: bool) -> None:
        """Have all requests fail, or none."""
        self.browser.execute_cdp_cmd("Network.enable", {})
        limits = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.browser.execute_cdp_cmd(
            "Network.emulateNetworkConditions", {"offline": is_offline, **limits}
        )

    def colour_scheme(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
