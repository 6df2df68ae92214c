"""Takes the pictures of the Dagster UI that the documentation shows.

    siglip-pipeline up                           # over some videos, and a file that is none
    python docs/images/dagster_pictures.py http://127.0.0.1:3000 --video a.mp4

Starts a backfill over the first four partitions, for the picture of one. Needs Chromium and its
driver (Debian: chromium-driver) and the package selenium.
"""

import argparse
import json
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from siglip_pipeline.runs.dagster_api import FINISHED, DagsterApi

FOLDER = Path(__file__).parent
GROUP = "/locations/__repository__@siglip_pipeline/asset-groups/video_search"
KEYS = """{ assetNodeOrError(assetKey: {path: ["video_frames"]}) {
    ... on AssetNode { partitionKeys } } }"""


def main() -> None:
    """Ask the UI, and write the pictures beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of the running Dagster UI")
    parser.add_argument("--video", required=True, help="whose partition is shown")
    arguments = parser.parse_args()
    url = arguments.url.rstrip("/")
    backfill = make_backfill(url)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    partition = f"/assets/video_frames?view=partitions&partition={arguments.video}"
    try:
        take(browser, url + GROUP, "asset-graph.png", 1700, 680, shows="reconciliation")
        take(browser, url + partition, "partition.png", 1500, 1000, shows="contact_sheet")
        take(browser, f"{url}/runs/b/{backfill}", "backfill.png", 1500, 370, shows="completed")
    finally:
        browser.quit()


def take(
    browser: webdriver.Chrome, address: str, name: str, width: int, height: int, *, shows: str
) -> None:
    """One picture, once the page shows a text and has come to rest."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(address)
    text = "return document.body.innerText"
    WebDriverWait(browser, 90).until(lambda b: shows in str(b.execute_script(text)))
    time.sleep(6)
    browser.save_screenshot(str(FOLDER / name))


def make_backfill(url: str) -> str:
    """Run a backfill over the first four partitions to its end."""
    api = DagsterApi(url)
    keys = ask(url, KEYS)["assetNodeOrError"]["partitionKeys"][:4]
    backfill = api.launch_backfill(["video_frames", "frame_embeddings"], keys)
    while api.backfill_status(backfill) not in FINISHED:
        time.sleep(2)
    return backfill


def ask(url: str, query: str) -> Any:
    """Return the data of a GraphQL query's answer."""
    request = urllib.request.Request(
        f"{url}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


if __name__ == "__main__":
    main()
