"""What several test modules share and is dear to make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.browser import CHROMIUM, Browser, start_browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: pages are not tested")
    with start_browser() as running:
        yield running
