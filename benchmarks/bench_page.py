"""How long from a click on "search" until the first pictures are in sight, on the demo's index?

Chromium without a window asks the service that ``siglip-pipeline serve`` runs, over the videos that
the demo renders. The time is the browser's own (Navigation and Resource Timing): from the start of
the navigation until the page and the first four pictures have been received. Pictures are new to
the browser in every search, as they are to a person's; the model is loaded before.

    python benchmarks/bench_page.py [--json] [--queries N]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from http_service import running
from store_report import Case, print_report

from siglip_pipeline.demo.films import demo_scenes
from siglip_pipeline.demo.run import demo_settings, run_demo
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline_tests.web.browser import FIRST_PICTURES_MS, PICTURES_ARE_THERE, chromium

GOAL_MS = 300.0
SERVE = (sys.executable, "-m", "siglip_pipeline.cli.main", "serve", "--load-model")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--queries", type=int, default=20)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="siglip-page-") as folder:
        Path(folder).chmod(0o755)
        settings = Settings.load(home=folder, database_url=None)
        run_demo(settings, keep_running=False, quiet=True)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with running(
            [*SERVE, "--port", str(port)],
            f"{url}/readyz",
            environment=child_environment(demo_settings(settings)),
        ):
            times = first_pictures(url, options.queries)
    cases = [
        Case(
            name=f"first_pictures_{name}",
            value=value,
            unit="milliseconds",
            goal=GOAL_MS,
            better="lower",
            note=f"{len(times)} searches by text on the demo's index",
        )
        for name, value in (
            ("p50", float(np.median(times))),
            ("p95", float(np.percentile(times, 95))),
            ("most", max(times)),
        )
    ]
    print_report("page", cases, as_json=options.json)


def first_pictures(url: str, queries: int) -> list[float]:
    """Milliseconds of each search; one that starts the browser's own caches is left out."""
    captions = [scene.caption for scene in demo_scenes()]
    times = []
    with chromium() as browser:
        browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
        for number in range(queries + 1):
            browser.get(f"{url}/?q={quote(captions[number % len(captions)])}")
            while not browser.execute_script(PICTURES_ARE_THERE):
                time.sleep(0.02)
            times.append(float(browser.execute_script(FIRST_PICTURES_MS)))
    return times[1:]


if __name__ == "__main__":
    main()
