"""A page of another origin in a real browser, and the service's own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium import webdriver

from siglip_pipeline_tests.conftest import collection_settings
from siglip_pipeline_tests.web.browser import CHROMIUM, DRIVER, chromium
from siglip_pipeline_tests.web.conftest import serving, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium"),
]

KEY = "a-key-of-more-than-16-characters"
FORM = """<!doctype html><title>other</title>
<form method="post" action="{action}" enctype="{enctype}">
<input name="key" value="{key}"><input name="next" value="/videos"><button>go</button></form>"""


@contextmanager
def another_site(page: str) -> Iterator[str]:
    """A page on another port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def submit(browser: webdriver.Chrome, address: str) -> str:
    """Press the only button of a page; the text of what follows."""
    browser.get(address)
    before = browser.find_element("css selector", "html").id
    browser.find_element("css selector", "form button").click()
    # Between two documents there is none.
    wait_until(lambda: {e.id for e in browser.find_elements("css selector", "html")} - {before})
    wait_until(lambda: browser.find_elements("css selector", "body"))
    return browser.find_element("css selector", "body").text


def test_a_form_elsewhere_is_refused_and_our_own_works(database_url: str, tmp_path: Path) -> None:
    settings = collection_settings(tmp_path, database_url)
    with serving(settings, api_key=KEY) as served, chromium() as browser:
        for path, enctype in (
            ("/login", "application/x-www-form-urlencoded"),
            ("/", "multipart/form-data"),
            ("/api/search", "multipart/form-data"),
            ("/api/search", "text/plain"),
        ):
            page = FORM.format(action=f"{served.url}{path}", enctype=enctype, key=KEY)
            with another_site(page) as elsewhere:
                assert "pages of other sites" in submit(browser, elsewhere), path
        browser.get(f"{served.url}/videos")
        assert "/login" in browser.current_url  # the right key, from elsewhere, signed nobody in
        browser.find_element("css selector", "form.login input[name=key]").send_keys(KEY)
        browser.find_element("css selector", "form.login button").click()
        wait_until(lambda: browser.current_url == f"{served.url}/videos", seconds=20)
