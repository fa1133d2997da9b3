"""A real headless Chromium that sees pages from disk and no network; tests that need it are skipped where it is not."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--window-size=1280,900",
)
REQUIRED = "BNAS_BROWSER_REQUIRED"
"""With this in the environment, as in CI, a browser that is not there is a failure."""
TEXTS = """
const texts = [];
const walk = (root) => root.querySelectorAll("*").forEach((one) => {
  if (one.shadowRoot) walk(one.shadowRoot);
  if (one.classList.contains("bk-tooltip-content")) texts.push(one.innerText);
});
walk(document);
return texts.join("|");
"""
POINT = """
const [plot, x, y] = arguments;
const walk = (view) => [view, ...(view.child_views ?? []).flatMap(walk)];
const host = document.getElementById(`plot-${plot}`);
const views = [...Bokeh.index.roots].filter((view) => host.contains(view.el)).flatMap(walk);
const frame = views.find((view) => view.frame)?.frame;
const canvas = views.find((view) => view.frame).canvas_view.el.getBoundingClientRect();
return [canvas.left + frame.x_scale.compute(x), canvas.top + frame.y_scale.compute(y)];
"""


class Browser:
    """A window; `faults` is what went wrong in it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path) -> None:
        """Load a page from disk and wait until its script is done, or failed."""
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # those of pages before
        self.driver.get(page.resolve().as_uri())
        self.seen: list[str] = []
        done = "return document.documentElement.dataset.ready === 'yes'"
        try:
            WebDriverWait(self.driver, 60, 0.05).until(lambda driver: driver.execute_script(done) or self.faults())
        finally:
            self.page = page

    def faults(self) -> list[str]:
        """Errors and warnings of the console so far, and everything that was fetched beside the page itself."""
        for entry in self.driver.get_log("browser"):
            if entry["level"] != "INFO":
                self.seen.append(entry["message"])
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("data:", "blob:")) and url != self.driver.current_url:
                    self.seen.append(f"asks for {url}")
        return self.seen

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """The text of the element, as it is in the page."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def send(self, command: str, **arguments: Any) -> Mapping[str, Any]:
        """A command of the Chrome DevTools Protocol."""
        answer: Mapping[str, Any] = self.driver.execute_cdp_cmd(command, arguments)
        return answer

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        """What the page sees as its screen."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def place(self, plot: str, x: float, y: float) -> tuple[float, float]:
        """Where a point of a plot is in the window; the plot is scrolled to."""
        self.run("document.getElementById(arguments[0]).scrollIntoView({block: 'center'})", f"plot-{plot}")
        left, top = self.run(POINT, plot, x, y)
        return left, top

    def move(self, left: float, top: float) -> None:
        """The mouse, to a place in the window."""
        for nearer in (3, 0):
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=left + nearer, y=top)

    def click(self, left: float, top: float) -> None:
        """The left button, at a place in the window."""
        self.move(left, top)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=left, y=top, button="left", clickCount=1, buttons=1)

    def told(self) -> str:
        """What is told about the point under the mouse; empty where nothing is."""
        return str(self.run(TEXTS))

    def picture(self, path: Path) -> None:
        """The whole page, for a person to look at."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def paper(self, path: Path) -> None:
        """The page printed on A4."""
        answer = self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A fresh Chromium; the test is skipped where there is none."""
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        message = "no Chromium: on Debian, apt-get install chromium chromium-driver"
        if os.environ.get(REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield Browser(window)
        finally:
            window.quit()
