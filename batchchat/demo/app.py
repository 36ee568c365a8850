"""The demo provider as an ASGI application, and what it counts.

    POST /v1/chat/completions (also under /{project_id})    GET /v1/models    GET /health
    GET  /demo/stats     counts, as JSON                     GET /demo/bodies  {digest: [received, answered]}
    /v1/files, /v1/batches: the Batch API (`batches/`)       GET /demo/lines   {custom_id: how often a batch ran it}

One request's way: outage ─> key ─> JSON, model, params ─> limits ─> fault ─> wait ─> answer. Time is read and waited
for through anyio alone, so the application also runs in memory on a virtual clock (`httpx.ASGITransport`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from hashlib import blake2b
from typing import Any

import anyio
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from batchchat.dataclass import dataclass
from batchchat.demo.batches.results import LineAnswer
from batchchat.demo.batches.routes import BatchApi, BatchStats
from batchchat.demo.draws import FaultPlan, draw, pick
from batchchat.demo.keys import KeyGate, key_in
from batchchat.demo.limits import RateGate
from batchchat.demo.model.answering import answer, corrects
from batchchat.demo.request import ApiError, ChatRequest, parse_request
from batchchat.demo.response import (
    ERROR_SHAPES,
    FINGERPRINT,
    HTML_PAGE,
    WireCompletion,
    complete,
    completion_body,
    completion_events,
    error_body,
    error_event,
    fault_error,
    plain_error,
)
from batchchat.demo.server_options import DemoOptions
from batchchat.records import Axis

ABORT_EXTENSION = "batchchat.demo.abort"
"""Key of the ASGI scope's extensions under which a server offers `{"abort": callable}`: cut the connection now."""

_JSON = (b"content-type", b"application/json")
_HANG_S = 600.0
"""Seconds that a request hangs before it gets a 504. The request timeout of a job, 310 s by default, ends it before."""
_ERROR_SHARE = 0.2
"""The part of an answer's time that an error takes: services refuse sooner than they answer."""
_SLOW = 20
"""How many times longer a slow answer takes."""
_FIRST_TOKEN_SHARE = 0.4
"""The part of an answer's time before its first token. These four are chosen, not measured at a service."""
_OF_CONNECTIONS = frozenset({"html", "error_200", "truncated_json", "drop", "drop_body", "slow", "hang"})
"""Faults of an exchange, which a line of a batch has none of. An error in mid-stream does not concern it either."""


class Disconnected(Exception):
    """The client left before its answer was complete."""


@dataclass(frozen=True, slots=True)
class DemoStats:
    """Counts since the start. Tokens and `answered` count 200s with a completion that were sent to their end.

    `by_status` counts responses that were begun, by HTTP status; `faults` what befell requests, by name. `in_flight`
    counts requests that were admitted under the limits and are not answered yet. `disconnected` counts requests whose
    client left first, `dropped` those that the server cut. The three counts of bodies are None if bodies are not
    tracked; `repeated_bodies` counts requests whose body had come before, and `answered_again` completions for a body
    that already had one: what a client pays twice. `batch` counts what the Batch API did, which the others leave out.
    """

    requests: int
    by_status: Mapping[str, int]
    answered: int
    prompt_tokens: int
    completion_tokens: int
    in_flight: int
    max_in_flight: int
    disconnected: int
    dropped: int
    faults: Mapping[str, int]
    distinct_bodies: int | None
    repeated_bodies: int | None
    answered_again: int | None
    batch: BatchStats


@dataclass(slots=True)
class _Body:
    received: int = 0
    answered: int = 0


@dataclass(slots=True)
class _Exchange:
    """One chat request and the connection that it came on."""

    scope: Scope
    receive: Receive
    send: Send
    body: bytes = b""
    digest: bytes = b""
    attempt: int = 1
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Demo:
    """The demo provider itself: an ASGI endpoint for chat completions, and its counts."""

    def __init__(self, options: DemoOptions) -> None:
        self.options = options
        self._gate = RateGate(options)
        self._faults = FaultPlan(options)
        self._failures: Counter[bytes] = Counter()
        self._bodies: dict[bytes, _Body] = {}
        self._by_status: Counter[int] = Counter()
        self._befallen: Counter[str] = Counter()
        self._requests = self._answered = self._prompt_tokens = self._completion_tokens = 0
        self._disconnected = self._dropped = self._answered_again = 0
        self._first_at: float | None = None
        self.keys = KeyGate(options)
        self.batches = BatchApi(options, self._answer_line, self.keys.check, _abort)

    def stats(self) -> DemoStats:
        """Return the counts so far. May be called from any thread."""
        tracked = self.options.track_bodies
        distinct = len(self._bodies)
        return DemoStats(
            requests=self._requests,
            by_status={str(status): count for status, count in sorted(self._by_status.copy().items())},
            answered=self._answered,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            in_flight=self._gate.in_flight,
            max_in_flight=self._gate.max_in_flight,
            disconnected=self._disconnected,
            dropped=self._dropped,
            faults=dict(sorted(self._befallen.copy().items())),
            distinct_bodies=distinct if tracked else None,
            repeated_bodies=sum(body.received - 1 for body in self._bodies.copy().values()) if tracked else None,
            answered_again=self._answered_again if tracked else None,
            batch=self.batches.stats(),
        )

    def bodies(self) -> dict[str, tuple[int, int]]:
        """Return how often each body was received and answered, by the digest of its bytes."""
        return {digest.hex(): (body.received, body.answered) for digest, body in self._bodies.copy().items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one chat request (the ASGI interface)."""
        exchange = _Exchange(scope, receive, send)
        try:
            exchange.body = await _read_body(receive)
            await self._answer(exchange)
        except ApiError as error:
            await self._send_error(exchange, error)
        except Disconnected:
            self._disconnected += 1

    async def _answer(self, exchange: _Exchange) -> None:
        now = anyio.current_time()
        # Outages are counted from here: a test does not know how long the server takes to start.
        if self._first_at is None:
            self._first_at = now
        self._requests += 1
        number = self._requests
        exchange.digest = blake2b(exchange.body, digest_size=16).digest()
        # The fault of an attempt follows from its number, so a retry meets another fate than the first try.
        exchange.attempt = self._failures[exchange.digest] + 1 if self._failures else 1
        if self.options.track_bodies:
            self._bodies.setdefault(exchange.digest, _Body()).received += 1
        self._check_outage(now - self._first_at)
        self.keys.check(key_in(exchange.scope["headers"]))
        request = parse_request(exchange.body, self.options)
        fault = self._faults.befalls(exchange.digest, exchange.attempt, number)
        # A correction is another body, which would draw its own fault: here it is to succeed.
        if fault == "misfit_once" and corrects(request):
            fault = None
        completion = self._completion(request, exchange.digest, exchange.attempt, fault)
        refused = self._gate.admit(completion.total_tokens, now)
        if self.options.rate_headers:
            exchange.headers = self._gate.headers(now)
        # Behind the fault: a refused request must not use up the fault of its attempt.
        if refused is not None:
            raise self._too_many(*refused)
        try:
            if fault is not None:
                self._befallen[fault] += 1
                self._failures[exchange.digest] += 1
            await self._respond(exchange, request, completion, fault)
            # An equal request later begins with its first attempt again.
            if fault is None and self._failures:
                self._failures.pop(exchange.digest, None)
        finally:
            self._gate.leave()

    def _check_outage(self, since_first: float) -> None:
        if self.options.outage is not None:
            start, length = self.options.outage
            if start <= since_first < start + length:
                raise plain_error(503)

    def _completion(self, request: ChatRequest, digest: bytes, attempt: int, fault: str | None) -> WireCompletion:
        seed = self.options.seed
        said = answer(request, seed, digest, wrong=fault == "wrong_label")
        named = blake2b(b"%d:%d:" % (seed, attempt) + digest, digest_size=12).hexdigest()
        completion = complete(request, said, self.options, answer_id=f"chatcmpl-{named}", fault=fault)
        other_after = self.options.faults.get("other_after")
        if other_after is not None and self._requests > other_after:
            completion = replace(completion, model=f"{completion.model}-2", fingerprint=f"{FINGERPRINT}_2")
        return completion

    def _too_many(self, axis: Axis, wait: float) -> ApiError:
        options = self.options
        if axis is Axis.CONCURRENCY:
            message = f"too many concurrent requests: at most {options.concurrency} at a time"
        # Each message names its limit, as clients tell the axis by the words.
        elif axis is Axis.REQUESTS:
            message = f"too many requests: at most {options.requests_per_minute} requests per minute"
        # It would not fit into any window.
        elif math.isinf(wait):
            message = f"this request alone has more tokens than the {options.tokens_per_minute} tokens per minute"
        else:
            message = f"too many tokens: at most {options.tokens_per_minute} tokens per minute"
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if options.retry_after:
            headers = ((b"retry-after", b"%d" % max(1, math.ceil(min(wait, options.window_s)))),)
        return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)

    def _answer_line(self, body: bytes) -> LineAnswer:
        """Answer the body of a batch's line as the online request would be answered. Called from another thread."""
        digest = blake2b(body, digest_size=16).digest()
        attempt = self._failures[digest] + 1
        try:
            request = parse_request(body, self.options)
            fault = self._faults.befalls(digest, attempt, self._requests)
            # A batch has neither connection nor stream.
            if fault in _OF_CONNECTIONS or (fault is not None and fault.startswith("stream_")):
                fault = None
            if fault is not None:
                self._failures[digest] += 1
                if error := self._fault_error(digest, attempt, request, fault):
                    raise error
            completion = self._completion(request, digest, attempt, fault)
        except ApiError as error:
            return LineAnswer(error.status, error_body(error, "nested"))
        return LineAnswer(
            200,
            completion_body(completion, fault=fault),
            completion.prompt_tokens,
            completion.completion_tokens,
        )

    def _latency(self, exchange: _Exchange, completion: WireCompletion, fault: str | None) -> float:
        """Return the seconds from request to whole answer: median, jitter of the body, more for a longer answer."""
        if self.options.latency_s == 0:
            return 0.0
        return self.options.latency_s * self._jitter(exchange, fault) * (1 + completion.completion_tokens / 100)

    def _jitter(self, exchange: _Exchange, fault: str | None) -> float:
        jitter: float = 2 ** (1.2 * (draw(self.options.seed, "latency", exchange.digest) - 0.5))
        return jitter * _SLOW if fault == "slow" else jitter

    def _stream_times(
        self, exchange: _Exchange, completion: WireCompletion, fault: str | None, latency: float
    ) -> tuple[float, float]:
        """Return the seconds to the first token of a streamed answer, and from there to its end."""
        first, rest = latency * _FIRST_TOKEN_SHARE, latency * (1 - _FIRST_TOKEN_SHARE)
        if self.options.ttft_s is not None:
            first = self.options.ttft_s * self._jitter(exchange, fault)
        if self.options.tokens_per_s is not None:
            rest = completion.completion_tokens / self.options.tokens_per_s
        return first, rest

    async def _respond(
        self, exchange: _Exchange, request: ChatRequest, completion: WireCompletion, fault: str | None
    ) -> None:
        if fault == "hang":
            await _wait(exchange, _HANG_S)
            raise plain_error(504)
        latency = self._latency(exchange, completion, fault)
        if error := self._fault_error(exchange.digest, exchange.attempt, request, fault):
            await _wait(exchange, latency * (1 if error.status == 504 else _ERROR_SHARE))
            raise error
        if fault == "drop":
            await _wait(exchange, latency * _ERROR_SHARE)
            await self._abort(exchange)
        elif fault == "html":
            await _wait(exchange, latency * _ERROR_SHARE)
            await self._send(exchange, 200, HTML_PAGE, content_type=b"text/html; charset=utf-8")
        elif fault == "error_200":
            await _wait(exchange, latency * _ERROR_SHARE)
            await self._send(exchange, 200, error_body(plain_error(500), "nested"))
        elif request.stream:
            await self._stream(exchange, request, completion, fault, latency)
        else:
            await _wait(exchange, latency)
            await self._whole(exchange, completion, fault)

    def _fault_error(self, digest: bytes, attempt: int, request: ChatRequest, fault: str | None) -> ApiError | None:
        if fault is None:
            return None
        if fault == "error_429":
            axes = (Axis.REQUESTS, Axis.TOKENS, Axis.CONCURRENCY)
            axis = pick(axes, self.options.seed, "axis", digest, attempt)
            return _overrun(axis)
        # Without a stream the same trouble comes as a plain error.
        if fault == "stream_error" and not request.stream:
            return plain_error(500)
        return fault_error(fault)

    async def _whole(self, exchange: _Exchange, completion: WireCompletion, fault: str | None) -> None:
        body = completion_body(completion, fault=fault)
        if fault == "truncated_json":
            await self._send(exchange, 200, body[: len(body) // 2])
        elif fault in {"drop_body", "stream_cut"}:
            await self._begin(exchange, 200, [_JSON, (b"content-length", b"%d" % len(body))])
            await exchange.send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            await self._abort(exchange)
        else:
            await self._send(exchange, 200, body)
            # Such an answer has nothing that a client could count.
            if fault != "no_choices":
                self._count_answer(exchange, completion)

    async def _stream(
        self, exchange: _Exchange, request: ChatRequest, completion: WireCompletion, fault: str | None, latency: float
    ) -> None:
        events = list(
            completion_events(
                completion,
                chunk_chars=self.options.chunk_chars,
                include_usage=request.include_usage,
                fault=fault,
            )
        )
        first, rest = self._stream_times(exchange, completion, fault, latency)
        await _wait(exchange, first)
        content_type = (b"content-type", b"text/event-stream; charset=utf-8")
        await self._begin(exchange, 200, [content_type, (b"cache-control", b"no-cache")])
        cut_at = _cut_at(fault, len(events), include_usage=request.include_usage)
        # The role goes before the first piece of the text, and the end follows the last one, without a pause.
        began_at, pieces = anyio.current_time(), len(events) - 3 - request.include_usage
        for number, event in enumerate(events[:cut_at]):
            await exchange.send({"type": "http.response.body", "body": event, "more_body": True})
            if rest and 0 < number <= pieces:
                await _wait(exchange, began_at + number * rest / pieces - anyio.current_time())
        if fault in {"drop_body", "stream_cut"}:
            await self._abort(exchange)
            return
        last = error_event(plain_error(500)) if fault == "stream_error" else b""
        await exchange.send({"type": "http.response.body", "body": last, "more_body": False})
        if cut_at == len(events) and fault != "no_choices":
            self._count_answer(exchange, completion)

    def _count_answer(self, exchange: _Exchange, completion: WireCompletion) -> None:
        self._answered += 1
        self._prompt_tokens += completion.prompt_tokens
        self._completion_tokens += completion.completion_tokens
        if self.options.track_bodies:
            body = self._bodies[exchange.digest]
            self._answered_again += body.answered > 0
            body.answered += 1

    async def _send_error(self, exchange: _Exchange, error: ApiError) -> None:
        about = ("shape", exchange.digest, exchange.attempt, error.status)
        # The gateway's shape has no code, and without the code it would be a rate limit like any other.
        shapes = ERROR_SHAPES[1:] if error.code == "insufficient_quota" else ERROR_SHAPES
        shape = pick(shapes, self.options.seed, *about)
        exchange.headers += error.headers
        await self._send(exchange, error.status, error_body(error, shape))

    async def _send(
        self, exchange: _Exchange, status: int, body: bytes, *, content_type: bytes = b"application/json"
    ) -> None:
        headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
        await self._begin(exchange, status, headers)
        await exchange.send({"type": "http.response.body", "body": body})

    async def _begin(self, exchange: _Exchange, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._by_status[status] += 1
        request_id = f"req-{exchange.digest[:8].hex()}-{exchange.attempt}".encode()
        headers = [*headers, *exchange.headers, (b"x-request-id", request_id)]
        await exchange.send({"type": "http.response.start", "status": status, "headers": headers})

    async def _abort(self, exchange: _Exchange) -> None:
        """Cut the connection. Raises ConnectionResetError if the ASGI server offers no way to do so."""
        self._dropped += 1
        await _abort(exchange.scope, exchange.receive)


async def _abort(scope: Scope, receive: Receive) -> None:
    """Cut a connection. Raises ConnectionResetError if the ASGI server offers no way to do so."""
    abort: Callable[[], None] | None = scope.get("extensions", {}).get(ABORT_EXTENSION, {}).get("abort")
    # In memory (ASGI without a server) there is no connection to cut.
    if abort is None:
        raise ConnectionResetError("the demo provider cut this connection")
    abort()
    while (await receive())["type"] != "http.disconnect":
        pass


def _cut_at(fault: str | None, events: int, *, include_usage: bool) -> int:
    """Return how many events of a stream are sent: half of them, all but usage and `[DONE]`, or all."""
    if fault in {"truncated_json", "drop_body", "stream_error"}:
        return events // 2
    return events - 1 - include_usage if fault == "stream_cut" else events


def _overrun(axis: Axis) -> ApiError:
    what = {Axis.REQUESTS: "requests per minute", Axis.TOKENS: "tokens per minute"}
    message = f"rate limit exceeded: too many {what.get(axis, 'concurrent requests')}"
    return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded")


async def _read_body(receive: Receive) -> bytes:
    """Read a whole request body. Raises Disconnected if the client leaves first."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _wait(exchange: _Exchange, seconds: float) -> None:
    """Wait, watching the connection. Raises Disconnected if the client leaves first."""
    if seconds <= 0:
        return
    with anyio.move_on_after(seconds):
        while (await exchange.receive())["type"] != "http.disconnect":
            pass
        raise Disconnected


def create_app(options: DemoOptions | None = None, demo: Demo | None = None) -> Starlette:
    """Build the application. Pass `demo` to keep hold of its counts."""
    demo = demo or Demo(options or DemoOptions())

    async def models(_: Request) -> Response:
        cards = [
            {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "demo"}
            for name in demo.options.models
        ]
        return _json_response({"object": "list", "data": cards})

    async def health(_: Request) -> Response:
        return _json_response({"status": "ok"})

    async def stats(_: Request) -> Response:
        return _json_response(await anyio.to_thread.run_sync(demo.stats))

    async def bodies(_: Request) -> Response:
        return _json_response(demo.bodies())

    async def lines(_: Request) -> Response:
        return _json_response(await anyio.to_thread.run_sync(demo.batches.lines))

    async def http_error(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = {404: "there is no such route", 405: "this route has no such method"}.get(status, "not possible")
        return Response(error_body(ApiError(status, message), "gateway"), status, media_type="application/json")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", demo, methods=["POST"]),
            Route("/{project_id}/v1/chat/completions", demo, methods=["POST"]),
            Route("/v1/models", models),
            Route("/{project_id}/v1/models", models),
            Route("/health", health),
            Route("/demo/stats", stats),
            Route("/demo/bodies", bodies),
            Route("/demo/lines", lines),
            *demo.batches.routes(),
        ],
        exception_handlers={HTTPException: http_error},
    )


def _json_response(data: Any) -> Response:
    return Response(orjson.dumps(data), media_type="application/json")
