"""Object storage for tests: moto's server, behind a proxy that loses answers, cuts, delays, and says 503."""

from __future__ import annotations

import functools
import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import boto3
import httpx
import pytest

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "us-east-1"}


@dataclass
class Fault:
    """What goes wrong with the next requests that `chosen` takes: `kind` is `lost`, `cut`, `503` or `delay`."""

    kind: str
    count: int
    chosen: Callable[[str], bool]
    seconds: float = 0.0


@dataclass
class ProxyState:
    """Requests by method, and what goes wrong."""

    methods: Counter[str] = field(default_factory=Counter)
    puts: list[float] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    away: bool = False
    rng: random.Random = field(default_factory=lambda: random.Random(1))


class FaultProxy:
    """A proxy for HTTP/1.1 before a server, on a port of its own."""

    def __init__(self, port: int) -> None:
        self.state = ProxyState()
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def fail(self, kind: str, count: int = 1, *, chosen: Callable[[str], bool], seconds: float = 0.0) -> None:
        """Let the next requests of some kind go wrong."""
        self.state.faults.append(Fault(kind, count, chosen, seconds))

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with suppress(OSError, ValueError), client, client.makefile("rb") as source:
            while (request := _message(source)) is not None:
                line = request.partition(b"\r\n")[0].decode()
                method = line.partition(" ")[0]
                self.state.methods[method] += 1
                if method == "PUT":
                    self.state.puts.append(time.monotonic())
                fault = self._fault(line)
                if fault == "cut" or self.state.away:
                    return
                if fault == "503":
                    client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
                    continue
                with socket.create_connection(("127.0.0.1", self._server)) as server:
                    server.sendall(request)
                    with server.makefile("rb") as answers:
                        answer = _message(answers, body=method != "HEAD")
                if answer is None or fault == "lost":
                    return
                client.sendall(answer)

    def _fault(self, line: str) -> str | None:
        state = self.state
        for fault in state.faults:
            if fault.count > 0 and fault.chosen(line):
                fault.count -= 1
                if fault.kind == "delay":
                    time.sleep(fault.seconds)
                    return None
                return fault.kind
        draw = state.rng.random()
        for kind, share in state.shares.items():
            if draw < share:
                if kind == "delay":
                    time.sleep(0.05)
                    return None
                return kind
            draw -= share
        return None


def _message(source: BinaryIO, *, body: bool = True) -> bytes | None:
    """Read a request or an answer, with a body of a told length or in chunks."""
    read = source.readline
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = read()
        if not line:
            return None
        head += line
    low = head.lower()
    if not body:
        return head
    if b"transfer-encoding: chunked" in low:
        while True:
            size = read()
            head += size + source.read(int(size.split(b";")[0], 16) + 2)
            if int(size.split(b";")[0], 16) == 0:
                return head
    length = next((int(one.split(b":")[1]) for one in low.split(b"\r\n") if one.startswith(b"content-length:")), 0)
    return head + source.read(length)


@dataclass
class Store:
    """A store with one bucket. `env` leads to it, through the proxy."""

    proxy: FaultProxy
    direct: str

    @property
    def env(self) -> dict[str, str]:
        """Return the variables by which a process finds the store."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.proxy.url}

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects below a prefix, asked without the proxy."""
        pages = client_of(self.direct).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def read(self, name: str) -> bytes:
        """Return an object, asked without the proxy."""
        found: bytes = client_of(self.direct).get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return found


@functools.cache  # to make one takes 30 ms
def client_of(url: str, *, access_key: str = "", secret_key: str = "", region: str = KEYS["AWS_REGION"]) -> Any:
    """Return a client of a server, with the tests' own key if no other is given."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=access_key or KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret_key or KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=region,
    )


@contextmanager
def moto_server() -> Iterator[str]:
    """Start moto's server, and yield its URL."""
    moto = pytest.importorskip("moto.server", reason="moto[s3] and flask play the object storage")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # Head and body are sent apart: otherwise the body waits until the head has been acknowledged.
    pytest.importorskip("werkzeug.serving").WSGIRequestHandler.disable_nagle_algorithm = True
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        yield url
    finally:
        # Rights and objects are those of the process, not of the server: later tests begin anew.
        httpx.post(f"{url}/moto-api/reset-auth", content=b"inf")
        httpx.post(f"{url}/moto-api/reset")
        server.stop()


@contextmanager
def open_bucket() -> Iterator[Store]:
    """Start a server with an empty bucket, and a proxy before it."""
    with moto_server() as url:
        client_of(url).create_bucket(Bucket=BUCKET)
        proxy = FaultProxy(int(url.rpartition(":")[2]))
        try:
            yield Store(proxy, url)
        finally:
            proxy.close()
