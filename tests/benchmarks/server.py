"""The benchmarks' server: chat completions of a chosen size, as fast as one core of Python can answer.

`python -m tests.benchmarks.server --port 0 --size 200` prints its port and serves until it is ended. It answers every
request but `GET /stats` and `GET /forget` with a completion, after `--delay` seconds, and can enforce a limit of
requests in any minute by a sliding window. It parses no JSON: a slower server would be what is measured.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import time
from collections import deque
from typing import Final, cast

import click
import httptools
import orjson

_BACKLOG: Final = 4096
_WINDOW_S: Final = 60.0
_WORDS: Final = ("the", "ticket", "is", "about", "a", "refund", "for", "an", "order", "that", "arrived", "late", "and")


def completion(size: int) -> bytes:
    """The JSON of a chat completion whose text has `size` characters."""
    words: list[str] = []
    length = 0
    while length <= size:
        words.append(_WORDS[len(words) % len(_WORDS)])
        length += len(words[-1]) + 1
    tokens = max(1, size // 4)
    return orjson.dumps(
        {
            "id": "chatcmpl-7c1f0b6e5d8a4f0c9b3e2a1d",
            "object": "chat.completion",
            "created": 1_760_000_000,
            "model": "llama-3.1-8b-instruct",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": " ".join(words)[:size], "tool_calls": []},
                    "logprobs": None,
                    "finish_reason": "stop",
                    "stop_reason": None,
                }
            ],
            "usage": {"prompt_tokens": 64, "completion_tokens": tokens, "total_tokens": 64 + tokens},
        }
    )


def response(status: str, body: bytes, *fields: str) -> bytes:
    """A whole HTTP response."""
    head = [
        f"HTTP/1.1 {status}",
        "server: bench",
        "content-type: application/json",
        *fields,
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*head, "", ""]).encode("ascii") + body


class SlidingWindow:
    """Counts requests and allows at most `limit` of them in any minute; refused ones do not count against it."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._recent: deque[float] = deque()
        self.forget()

    def forget(self) -> None:
        """Count anew; what the limit remembers stays."""
        self.allowed = self.refused = 0
        self.first = self.last = 0.0

    def stats(self) -> dict[str, float]:
        """What was counted, and when the first request came and the last answer went, on the monotonic clock."""
        return {"allowed": self.allowed, "refused": self.refused, "first": self.first, "last": self.last}

    def allow(self) -> bool:
        """Take one request in, or refuse it."""
        if not self.first:
            self.first = time.monotonic()
        if self._limit is not None:
            now = time.monotonic()
            while self._recent and self._recent[0] <= now - _WINDOW_S:
                self._recent.popleft()
            if len(self._recent) >= self._limit:
                self.refused += 1
                return False
            self._recent.append(now)
        self.allowed += 1
        return True

    def retry_after(self) -> float:
        """Seconds until one more request would be allowed."""
        return max(0.0, self._recent[0] + _WINDOW_S - time.monotonic()) if self._recent else 0.0


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, window: SlidingWindow, answer: bytes, delay: float) -> None:
        self._loop = loop
        self._window = window
        self._answer = answer
        self._delay = delay
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._write(response("400 Bad Request", b"{}"))
            if self._transport is not None:
                self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_message_complete(self) -> None:
        window = self._window
        if self._path in {b"/stats", b"/forget"}:
            self._write(response("200 OK", orjson.dumps(window.stats())))
            if self._path == b"/forget":
                window.forget()
        elif not window.allow():
            body = {"error": {"message": "Rate limit reached: requests per minute", "type": "rate_limit_error"}}
            wait = f"retry-after: {window.retry_after():.3f}"
            self._write(response("429 Too Many Requests", orjson.dumps(body), wait))
        elif self._delay:
            self._loop.call_later(self._delay, self._answer_now)
        else:
            self._answer_now()

    def _answer_now(self) -> None:
        self._window.last = time.monotonic()
        self._write(self._answer)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


async def serve(port: int, size: int, delay: float, rpm: int | None) -> None:
    """Serve on a loopback port until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    sock = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
    make = functools.partial(Connection, loop, SlidingWindow(rpm), response("200 OK", completion(size)), delay)
    server = await loop.create_server(make, sock=sock, backlog=_BACKLOG)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(sock.getsockname()[1], flush=True)
    await stop.wait()
    server.close()


@click.command()
@click.option("--port", default=0, help="0 takes a free one.")
@click.option("--size", default=200, help="Characters in each answer's text.")
@click.option("--delay", default=0.0, help="Seconds before each answer.")
@click.option("--rpm", type=int, help="Enforce at most so many requests in any 60 seconds.")
@click.option("--cpu", type=int, help="Run on this core alone.")
def main(port: int, size: int, delay: float, rpm: int | None, cpu: int | None) -> None:
    """Answer chat completions, for benchmarks."""
    if cpu is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu})
    try:
        import uvloop  # not on every platform
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    run(serve(port, size, delay, rpm))


if __name__ == "__main__":
    main()
