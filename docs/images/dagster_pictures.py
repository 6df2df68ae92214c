"""Takes the pictures of the Dagster UI that the documentation shows.

    siglip-pipeline up                           # over some videos, and a file that is none
    python docs/images/dagster_pictures.py http://127.0.0.1:3000 --video a.mp4 --bad b.mp4

Materializes all, for the picture of a backfill. Needs Chromium and its driver (Debian:
chromium-driver) and the package selenium.
"""

import argparse
import json
import shutil
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from siglip_pipeline.runs.dagster_api import FINISHED, DagsterApi

FOLDER = Path(__file__).parent
CHECK = "/assets/video_frames?view=checks&checkDetail=can_be_decoded"
GROUP = "/locations/__repository__@siglip_pipeline/asset-groups/video_search"
ASSETS = ("video_frames", "frame_embeddings", "similarity_index", "video_similarity")
LAUNCH = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
    ... on LaunchBackfillSuccess { backfillId } } }"""


def main() -> None:
    """Ask the UI, and write the pictures beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of the running Dagster UI")
    parser.add_argument("--video", required=True, help="whose partition is shown")
    parser.add_argument("--bad", required=True, help="the file that is none")
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
        clicks = ("Partitions", arguments.bad)
        take(browser, url + CHECK, "check.png", 1500, 680, shows="About", clicks=clicks)
        take(browser, f"{url}/runs/b/{backfill}", "backfill.png", 1500, 490, shows="completed")
    finally:
        browser.quit()


def take(
    browser: webdriver.Chrome,
    address: str,
    name: str,
    width: int,
    height: int,
    *,
    shows: str,
    clicks: Sequence[str] = (),
) -> None:
    """Take a picture once the page shows a text and has come to rest, after clicks on texts."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(address)
    text = "return document.body.innerText"
    WebDriverWait(browser, 90).until(lambda b: shows in str(b.execute_script(text)))
    time.sleep(6)
    for label in clicks:
        found = browser.find_elements(By.XPATH, f"//*[normalize-space(text())='{label}']")
        browser.execute_script("arguments[0].click()", found[-1])
        time.sleep(4)
    browser.save_screenshot(str(FOLDER / name))


def make_backfill(url: str) -> str:
    """Materialize all, as the UI does it, and wait for the end."""
    api = DagsterApi(url)
    chosen = {"assetSelection": [{"path": [asset]} for asset in ASSETS], "allPartitions": True}
    backfill = str(ask(url, LAUNCH, p=chosen)["launchPartitionBackfill"]["backfillId"])
    while api.backfill_status(backfill) not in FINISHED:
        time.sleep(2)
    return backfill


def ask(url: str, query: str, **variables: Any) -> Any:
    """Return the data of a GraphQL query's answer."""
    request = urllib.request.Request(
        f"{url}/graphql",
        data=json.dumps({"query": query, "variables": variables}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


if __name__ == "__main__":
    main()
