"""Takes the pictures of the search page that the documentation shows.

    siglip-pipeline demo --keep-running          # prints the page's address
    cd .siglip/demo/uploads
    ffmpeg -i reel-1.mp4 -ss 4 -t 16 -vf scale=240:-2 trailer.mp4    # a copy of a part
    mkdir holiday; head -c 20000 reel-2.mp4 > holiday/boat.mp4       # an upload that was cut off
    python docs/images/page_pictures.py http://127.0.0.1:8000

Take them once both have been found and the videos compared. Needs Chromium and its driver (Debian:
chromium-driver) and the package selenium.
"""

import argparse
import shutil
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

FOLDER = Path(__file__).parent
QUERY = "/?q=a+red+heart+on+a+green+background"
# File, path, width and height in pixels, colour scheme.
PICTURES = (
    ("page-results.png", QUERY, 1200, 780, "light"),
    ("page-video.png", None, 1200, 780, "light"),
    ("page-phone.png", QUERY, 390, 760, "dark"),
    ("page-status.png", "/status", 1200, 560, "light"),
    ("page-duplicates.png", "/duplicates", 1200, 520, "dark"),
)
PLAYED = "/?q=a+yellow+star+on+a+blue+background&videos=reel-2.mp4"  # which every browser plays
AT_THE_MOMENT = """
const video = document.querySelector('video'), done = arguments[0];
if (!video) return done();
video.pause();
video.addEventListener('seeked', () => setTimeout(done, 4000), {once: true});  // controls fade
video.currentTime = Number(document.getElementById('player').dataset.start) + 0.5;
"""
LOADED = (
    "return [...document.images].filter(i => i.src && i.loading != 'lazy')"
    ".every(i => i.naturalWidth)"
    " && [...document.querySelectorAll('video')].every(v => v.hidden || v.readyState > 1)"
)


def main() -> None:
    """Ask the page, and write the pictures beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of the running page")
    url = parser.parse_args().url.rstrip("/")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        for name, path, width, height, scheme in PICTURES:
            take(browser, url, path, FOLDER / name, width, height, scheme)
    finally:
        browser.quit()


def take(
    browser: webdriver.Chrome,
    url: str,
    path: str | None,
    target: Path,
    width: int,
    height: int,
    scheme: str,
) -> None:
    """One picture; without a path, of the page that the first hit leads to."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    if path is None:
        browser.get(url + PLAYED)
        script = "return document.querySelector('.hit .open').href"
        browser.get(str(browser.execute_script(script)))  # type: ignore[no-untyped-call]
    else:
        browser.get(url + path)
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(LOADED))
    browser.execute_async_script(AT_THE_MOMENT)  # type: ignore[no-untyped-call]
    browser.save_screenshot(str(target))


if __name__ == "__main__":
    main()
