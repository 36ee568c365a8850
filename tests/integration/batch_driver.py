"""Driving the demo provider's Batch API with OpenAI's own client."""

from __future__ import annotations

import io
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx
import openai

from batchchat.demo import BatchOptions, DemoOptions, DemoServer

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
MODEL = "llama-3.1-8b-instruct"
CHAT: Final = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


def request_line(number: int, **fields: Any) -> dict[str, Any]:
    content = f"Labels: billing, bug, other\nI was charged {number} times."
    body = {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": content}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": CHAT, "body": body, **fields}


def input_file(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


class Driver:
    """OpenAI's client of one demo server, with retries off, as one creates what costs money."""

    def __init__(self, server: DemoServer, client: openai.OpenAI) -> None:
        self.server = server
        self.client = client
        # OpenAI's client takes this one, whichever it is built on.
        self.http: Any = client._client

    def upload(self, content: bytes, name: str = "chunk.jsonl") -> Any:
        return self.client.files.create(file=(name, io.BytesIO(content)), purpose="batch")

    def create(self, lines: int | list[dict[str, Any]] | bytes = 8, **fields: Any) -> Any:
        if isinstance(lines, int):
            lines = [request_line(number) for number in range(lines)]
        content = lines if isinstance(lines, bytes) else input_file(lines)
        return self.create_of(self.upload(content).id, **fields)

    def create_of(self, file_id: str, **fields: Any) -> Any:
        return self.client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h", **fields)

    def look(self, batch: Any) -> Any:
        return self.client.batches.retrieve(batch.id)

    def ended(self, batch: Any, patience: float = 10.0) -> Any:
        until = time.monotonic() + patience
        while batch.status not in ENDED:
            assert time.monotonic() < until, batch
            time.sleep(0.005)
            batch = self.look(batch)
        return batch

    def run(self, lines: int | list[dict[str, Any]] | bytes = 8, **fields: Any) -> Any:
        return self.ended(self.create(lines, **fields))

    def content(self, file_id: str | None) -> bytes:
        return b"" if not file_id else self.client.files.content(file_id).read()

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.content(file_id).split(b"\n") if line.strip()]

    def results(self, batch: Any) -> list[dict[str, Any]]:
        return self.lines(batch.output_file_id) + self.lines(batch.error_file_id)


@contextmanager
def driving(*, seconds: float = 0.0, folder: Any = None, **faults: Any) -> Iterator[Driver]:
    """A demo server with these faults and a client of it."""
    options = DemoOptions(latency_s=0, batch=BatchOptions(seconds=seconds, faults=faults, folder=folder))
    with (
        DemoServer(options) as demo,
        httpx.Client(verify=NO_TLS) as http,
        client_of(demo.base_url, http) as client,
    ):
        yield Driver(demo, client)


def client_of(base_url: str, http: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=10, http_client=http)
