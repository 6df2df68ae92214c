"""Debian's Chromium without a window, for the tests of the page and its benchmark."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")

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
