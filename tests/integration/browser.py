"""Pages in a real browser: one headless Chromium for a test session, each page in a profile of its own.

The driver speaks to the browser on an event loop in a thread of its own, so that tests stay plain functions and can
run jobs beside it. A page that is left checks itself: no error in the console, and no request but for its own file.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal
from playwright.async_api import Browser as Chromium
from playwright.async_api import Page as Driver
from playwright.async_api import async_playwright

T = TypeVar("T")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE_MS = 30_000


class Page:
    """A page that is open. What it does wrong is in `problems`."""

    def __init__(self, portal: BlockingPortal, driver: Driver, path: Path) -> None:
        self.problems: list[str] = []
        self._portal = portal
        self._driver = driver
        self._url = path.absolute().as_uri()
        self.do(self._listen)

    async def _listen(self, driver: Driver) -> None:
        driver.set_default_timeout(_PATIENCE_MS)
        driver.on("console", self._on_console)
        driver.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        driver.on("request", self._on_request)

    def _on_console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(f"console: {message.text}")

    def _on_request(self, request: Any) -> None:
        if request.url.partition("#")[0] != self._url and not request.url.startswith("data:"):
            self.problems.append(f"request: {request.url}")

    def do(self, action: Callable[[Driver], Awaitable[T]]) -> T:
        """Do anything that the driver can."""
        return self._portal.call(action, self._driver)

    def load(self) -> None:
        self.do(lambda driver: driver.goto(self._url))

    def wait(self, selector: str) -> None:
        """Wait until such an element is there and can be seen."""
        self.do(lambda driver: driver.wait_for_selector(selector))

    def wait_until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + _PATIENCE_MS / 1_000
        while not self.evaluate(expression):  # the driver's own way to wait needs what the page's policy forbids
            assert time.monotonic() < end, f"waited too long for {expression}"
            time.sleep(0.02)

    def evaluate(self, script: str) -> Any:
        return self.do(lambda driver: driver.evaluate(script))

    def text(self, selector: str) -> str:
        """The text of the first such element, as it is seen."""
        return self.do(lambda driver: driver.inner_text(selector))

    def texts(self, selector: str) -> list[str]:
        return self.do(lambda driver: driver.locator(selector).all_inner_texts())

    def count(self, selector: str) -> int:
        return self.do(lambda driver: driver.locator(selector).count())

    def click(self, selector: str) -> None:
        self.do(lambda driver: driver.click(selector))

    def fill(self, selector: str, text: str) -> None:
        self.do(lambda driver: driver.fill(selector, text))

    def choose(self, selector: str, value: str) -> None:
        self.do(lambda driver: driver.select_option(selector, value))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.do(lambda driver, key=key: driver.keyboard.press(key))  # type: ignore[misc]  # one key each

    def style(self, selector: str, name: str) -> str:
        """A computed style."""
        value: str = self.evaluate(f"getComputedStyle(document.querySelector({selector!r}))[{name!r}]")
        return value

    def prefer(self, **features: str) -> None:
        """Emulate media features: `color_scheme="dark"`, `media="print"`."""
        self.do(lambda driver: driver.emulate_media(**features))  # type: ignore[arg-type]  # its literals


class Browser:
    """The browser of a test session."""

    def __init__(self, portal: BlockingPortal, chromium: Chromium) -> None:
        self._portal = portal
        self._chromium = chromium

    @contextmanager
    def open(self, path: Path, *, scheme: str = "light", width: int = 1280, height: int = 900) -> Iterator[Page]:
        """Open a file; its problems fail the test when it is left."""
        options: dict[str, Any] = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
        driver = self._portal.call(lambda: self._chromium.new_page(**options))
        page = Page(self._portal, driver, path)
        try:
            page.load()
            yield page
        finally:
            self._portal.call(driver.close)
        assert not page.problems


@contextmanager
def start_browser() -> Iterator[Browser]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(async_playwright()) as playwright:
        launch = playwright.chromium.launch
        chromium = portal.call(lambda: launch(executable_path=CHROMIUM, args=_ARGUMENTS))
        try:
            yield Browser(portal, chromium)
        finally:
            portal.call(chromium.close)
