"""The page that calibrates a standing query, in a browser."""

from urllib.parse import quote, urlencode

import httpx
from selenium.webdriver.common.keys import Keys

from siglip_pipeline.stages.watch_documents import WatchShown
from siglip_pipeline_tests.web.browser import IN_A_BROWSER, Page
from siglip_pipeline_tests.web.conftest import wait_until

pytestmark = IN_A_BROWSER

ANSWERS = """
return [...document.querySelectorAll('#calibration .hit')]
    .map(moment => moment.querySelector(':checked')?.value || '')
"""
PHONE = 390


def test_moments_are_answered_by_key_and_button(
    page: Page, client: httpx.Client, watch: WatchShown
) -> None:
    api = f"/api/watches/{quote(watch.name, safe='')}/calibration"
    moments = client.get(api).json()["moments"]
    page.go("/watches")
    page.find("#watches a[href^='/watches/calibration']").click()
    assert page.path() == f"/watches/calibration?{urlencode({'name': watch.name})}"
    assert len(page.all("#calibration .hit")) == len(moments)
    wait_until(page.has_loaded_all_pictures)
    page.press("y")  # of the first without an answer; then the next one has the focus
    page.press("s")
    page.press("n")
    rest = [""] * (len(moments) - 3)
    assert page.run(ANSWERS) == ["yes", "", "no", *rest]
    page.all("#calibration [value=yes]")[1].click()
    page.run("document.querySelectorAll('#calibration .open')[3].focus()")
    for _ in rest:
        page.press("n")
    page.press(Keys.ENTER)  # after the last moment the button has the focus
    wait_until(lambda: page.all("#found"))
    said = page.find("#found [role=status]").text
    assert "Of 2 judged moments at or above it 2 fit: precision 100%, 95% interval" in said
    assert page.run(ANSWERS) == ["yes", "yes"] + ["no"] * (len(moments) - 2), "to change them"
    command = page.find("#command").text
    assert command.startswith("siglip-pipeline watch calibrate ")
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.find("[data-copies]").click()
    wait_until(lambda: page.find("[data-copies]").text == "Copied")
    assert page.run("return window.copied") == command
    page.browser.set_window_size(PHONE, 844)
    metrics = {"width": PHONE, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.run("return document.documentElement.scrollWidth") == PHONE
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
