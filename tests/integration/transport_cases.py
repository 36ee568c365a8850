"""Ways to ask a transport, shared by its tests."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx

from batchchat.transport import Answer, LeanTransport

BACKENDS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
}
"""The event loops that the fast transport runs on, as anyio's pytest plugin takes them."""


async def ask(transport: LeanTransport, url: str, body: bytes = b"{}", *, timeout: float = 5.0) -> Answer:
    return await transport.exchange(transport.route("POST", url + "/v1/x", {"Accept": "*/*"}), body, timeout)


async def ask_seam(
    transport: httpx.AsyncBaseTransport, url: str, body: bytes = b"{}", *, timeout: float = 5.0
) -> Answer:
    """The same through httpx's objects."""
    extensions = {"timeout": {"connect": 5.0, "read": timeout, "write": timeout, "pool": timeout}}
    request = httpx.Request("POST", url + "/v1/x", content=body, extensions=extensions)
    answer = await transport.handle_async_request(request)
    try:
        content = await answer.aread()
    finally:
        await answer.aclose()
    return Answer(answer.status_code, {name.lower(): value for name, value in answer.headers.raw}, content)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in another thread
            await anyio.sleep(0.005)


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that refuses connections. It is held meanwhile, so that no other test comes to listen on it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


class Names:
    """A resolver of the test's own, that counts. The last answer is given again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Any:
        self.asked.append((host, port))
        await anyio.lowlevel.checkpoint()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer
