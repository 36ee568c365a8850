"""Pages in a real browser: one headless Chromium for a test session, and one tab, in which files are opened in turn.

The driver speaks to the browser on an event loop in a thread of its own, so that tests stay plain functions and can
run jobs beside it. A page that is left checks itself: no error in the console, and no request but for its own file.
The tab is kept because a browser that has compiled a page's scripts once is three times as quick the next time.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal
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
_PATIENCE_MS = 20_000


class Page:
    """A page that is open. What it does wrong is in `problems`."""

    def __init__(self, portal: BlockingPortal, driver: Driver, path: Path) -> None:
        self.problems: list[str] = []
        self.url = path.absolute().as_uri()
        self._portal = portal
        self._driver = driver

    def do(self, action: Callable[[Driver], Awaitable[T]]) -> T:
        """Do anything that the driver can."""
        return self._portal.call(action, self._driver)

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

    def download(self, selector: str) -> str:
        """Click, and return the text of the file that the page then gives."""

        async def act(driver: Driver) -> str:
            async with driver.expect_download() as coming:
                await driver.click(selector)
            path = await (await coming.value).path()
            return path.read_bytes().decode()

        return self.do(act)

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
    """The browser of a test session, and its one tab."""

    def __init__(self, portal: BlockingPortal, driver: Driver) -> None:
        self._portal = portal
        self._driver = driver
        self._page: Page | None = None
        portal.call(self._listen)

    async def _listen(self) -> None:
        self._driver.set_default_timeout(_PATIENCE_MS)
        self._driver.on("console", lambda message: self._note(message.type, message.text))
        self._driver.on("pageerror", lambda error: self._note("error", str(error)))
        self._driver.on("request", lambda request: self._note("request", request.url))

    def _note(self, kind: str, text: str) -> None:
        if self._page is None or kind not in {"error", "warning", "request"}:
            return
        if kind == "request" and (text.partition("#")[0] == self._page.url or text.startswith("data:")):
            return
        self._page.problems.append(f"{kind}: {text}")

    @contextmanager
    def open(
        self,
        path: Path,
        *,
        scheme: Literal["light", "dark"] = "light",
        width: int = 1280,
        height: int = 900,
    ) -> Iterator[Page]:
        """Open a file; its problems fail the test when it is left."""

        async def show() -> None:
            await self._driver.set_viewport_size({"width": width, "height": height})
            await self._driver.emulate_media(color_scheme=scheme, media="screen")
            await self._driver.goto(page.url)

        page = self._page = Page(self._portal, self._driver, path)
        try:
            self._portal.call(show)
            yield page
        finally:
            self._page = None
            self._portal.call(self._driver.goto, "about:blank")
        assert not page.problems


@contextmanager
def start_browser() -> Iterator[Browser]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(async_playwright()) as playwright:
        launch = playwright.chromium.launch
        chromium = portal.call(lambda: launch(executable_path=CHROMIUM, args=_ARGUMENTS))
        try:
            yield Browser(portal, portal.call(chromium.new_page))
        finally:
            portal.call(chromium.close)
