"""One attempt: a request body in, a `Reply` out, over any `httpx.AsyncBaseTransport`.

The client steps past `httpx.AsyncClient`: a transport is called directly, since redirects, cookies and auth flows are
not wanted here and cost more than the exchange itself. Every foreign exception becomes a failure at this border; above
it nobody meets an httpx type.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from urllib.parse import urlencode

import anyio
import httpx

from batchchat.client.masking import KeyMask
from batchchat.client.streaming import StreamReader, holds_events, is_event_stream, read_whole_stream
from batchchat.client.wire import read_reply
from batchchat.clock import running_clock
from batchchat.credentials import Credential
from batchchat.money import Tariff
from batchchat.providers import Provider
from batchchat.records import Answerer, ErrorKind, Failure, Reply, Verdict
from batchchat.transport import Exchange, UntrustedServer, request_sent
from batchchat.transport.decoding import decoder_for
from batchchat.transport.incoming import TAIL_BYTES, TAIL_S
from batchchat.transport.lean import CONNECT_TIMEOUT_S, MAX_RESPONSE_BYTES

_ENDPOINT = "/chat/completions"
_WRONG_ADDRESS = frozenset({404, 405})
_VERSION = re.compile(r"/v\d[\w.]*(?=/|\Z)|/openai\b|/api/paas\b|/compatible-mode\b")
"""What the paths of known services hold, whose base URLs need no `/v1` more."""
_ENDED_EARLY = re.compile(r"(?i)disconnect|peer closed connection")
_OK = 200
_MODELS_S = 4.0
"""Seconds for a server to list its models, which it has at hand. Chosen, not measured."""
_KEYS_TRIED = 3
"""Keys that one attempt is made with after its first. A second one is needed if a new key expires on the way."""


class _TooLarge(Exception):
    """An answer's body passed the bound: it is dropped rather than held in memory."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class ChatClient:
    """Sends chat completion requests to one provider.

    The transport is owned: leaving the client's context closes it. The provider's headers go with every request; the
    key goes into its own header alone, and is masked in everything that comes back. If a key is refused and its
    credential can give another one, the same attempt is made once more with that. With `stream`, bodies ask for
    streamed answers, which are read as they come. `by` is what replies name as who answered. Raises ValueError for a
    provider without an address, and for a header or a key that no request can carry.
    """

    def __init__(
        self,
        provider: Provider,
        transport: httpx.AsyncBaseTransport,
        *,
        api_key: str | Credential | None,
        request_timeout: float,
        tariff: Tariff | None = None,
        stream: bool = False,
        by: Answerer | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = _address(provider)
        self._asked = str(self._url.copy_with(query=None))
        self._credential = Credential.of(api_key)
        self._common = _header_fields(provider, self._url, stream=stream)
        self._name = provider.name
        self._by = by
        self._tariff = tariff
        self._tiers = {} if tariff is None else {tier: tariff.times(part) for tier, part in provider.tiers.items()}
        self._mask = KeyMask()
        self._transport = transport
        self._timeout = request_timeout
        self._extensions: Mapping[str, object] = {
            "timeout": {"connect": min(CONNECT_TIMEOUT_S, request_timeout), "read": request_timeout}
            | {"write": request_timeout, "pool": request_timeout}
        }
        self._stream = stream
        self._clock: Callable[[], float] = anyio.current_time
        self._wall_clock = wall_clock
        self._exchange = transport if isinstance(transport, Exchange) else None
        self._take_key()

    def __repr__(self) -> str:
        return f"ChatClient({self._name!r}, {self._asked!r})"

    def _take_key(self) -> None:
        """Send the credential's key from now on. The mask keeps the earlier ones, which answers may still repeat."""
        carried = self._credential.header_field()
        self._generation = self._credential.generation
        self._mask.add(self._credential.key)
        self._headers = _checked({**self._common, carried[0].lower(): carried} if carried else self._common)
        self._route = self._exchange.route("POST", self._url, self._headers.raw) if self._exchange else None

    async def __aenter__(self) -> ChatClient:
        self._clock = running_clock()
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, traceback)

    async def send(self, body: bytes, *, timeout: float | None = None, started: float | None = None) -> Reply:
        """Make one attempt. Ends within the request timeout, or `timeout` if sooner.

        Whatever the server or the network does becomes a reply. Raises nothing but cancellation, and StorageError if
        this process may open no further file. `started` is `anyio.current_time()`, where the caller has just read it.
        """
        if started is None:
            started = anyio.current_time()
        limit = self._timeout if timeout is None else min(timeout, self._timeout)
        credential = self._credential
        # Another client with the same credential has renewed it meanwhile.
        if credential.generation != self._generation:
            self._take_key()
        # Which key this attempt carries. Of many that are refused together, only the first reads the key again.
        generation = self._generation
        if self._exchange is not None:
            reply = await self._attempt(body, limit, StreamReader(started) if self._stream else None)
        else:
            reply = await self._timed_attempt(body, limit, started)
        # Either says that the key was taken. `renew` asks later whether this generation of the key ever was.
        if reply.completion is not None or reply.verdict is Verdict.RATE_LIMIT:
            credential.accepted = max(credential.accepted, generation)
        elif _key_refused(reply) and credential.renewable:
            reply = await self._with_another_key(body, limit, generation, reply)
        reply.latency_s = self._clock() - started
        reply.by = self._by
        if self._tariff is not None and reply.usage is not None:
            completion = reply.completion
            # Some providers answer in a cheaper or dearer tier than was asked for, and bill that one.
            tier = completion.service_tier if completion is not None else None
            reply.cost = (self._tariff if tier is None else self._tiers.get(tier, self._tariff)).cost(reply.usage)
        return reply

    async def models(self) -> frozenset[str] | None:
        """Return the names of the models that the server lists; None if it does not tell."""
        url = self._url.copy_with(path=self._url.path.removesuffix(_ENDPOINT) + "/models")
        # A GET has no body. Some gateways refuse one that names the type of a body.
        headers = [(name, value) for name, value in self._headers.raw if name.lower() != b"content-type"]
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), _MODELS_S)
        request = httpx.Request("GET", url, headers=headers, extensions={"timeout": timeout})
        try:
            response = await self._transport.handle_async_request(request)
            try:
                content = await _read_bounded(response)
            finally:
                await response.aclose()
            listed = json.loads(content)["data"] if response.status_code == _OK else None
            return None if listed is None else frozenset(str(one["id"]) for one in listed)
        except (httpx.HTTPError, _TooLarge, ValueError, KeyError, TypeError):
            return None  # whatever it says is no list of models

    async def _with_another_key(self, body: bytes, limit: float, generation: int, refused: Reply) -> Reply:
        """Make an attempt whose key was refused once more, if there is another key; else say why there is none."""
        credential = self._credential
        reply = refused
        for _ in range(_KEYS_TRIED):
            if not await credential.renew(generation):
                break
            self._take_key()
            generation = self._generation
            reply = await self._timed_attempt(body, limit, self._clock())
            if not _key_refused(reply):
                if reply.completion is not None or reply.verdict is Verdict.RATE_LIMIT:
                    credential.accepted = max(credential.accepted, generation)
                return reply
        failure, source = reply.failure, credential.source
        assert failure is not None and source is not None  # noqa: S101, PT018 - it was refused, and could be renewed
        why = credential.problem or f"{source.place} has given another key, which is refused too"
        reply.failure = Failure(failure.kind, f"{failure.message} ({self._mask(why)})", failure.http_status)
        return reply

    async def _timed_attempt(self, body: bytes, limit: float, started: float) -> Reply:
        """Make one attempt that ends within `limit` over any transport: only an `Exchange` keeps the time itself."""
        reader = StreamReader(started) if self._stream else None
        if self._exchange is not None:
            return await self._attempt(body, limit, reader)
        with anyio.move_on_after(limit):
            return await self._attempt(body, limit, reader)
        reply = Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.TIMEOUT, f"no whole answer within {limit:g} s"))
        return reply if reader is None else reader.cut_off(reply, now=self._wall_clock(), mask=self._mask)

    async def _attempt(self, body: bytes, limit: float, reader: StreamReader | None) -> Reply:
        try:
            if self._exchange is not None and self._route is not None:
                status, headers, content = await self._exchange.exchange(
                    self._route, body, self._timeout, limit, reader
                )
            else:
                status, headers, content = await self._answer(body, reader)
        except httpx.HTTPError as error:
            reply = _failed(error, self._mask)
            return reply if reader is None else reader.cut_off(reply, now=self._wall_clock(), mask=self._mask)
        except _TooLarge as error:
            message = f"the answer is larger than {MAX_RESPONSE_BYTES // 2**20} MiB"
            reply = Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.PROTOCOL, message, error.status))
            return reply if reader is None else reader.cut_off(reply, now=self._wall_clock(), mask=self._mask)
        mask = self._mask
        # It came as a stream: the body is in the reader, and the content here is empty.
        if reader is not None and reader.began:
            return reader.reply(now=self._wall_clock(), mask=mask)
        clean = mask.clean(content)
        reply = read_reply(status, headers, clean, now=self._wall_clock(), mask=mask)
        # Masking every text of every answer would cost more than reading it. It is needed if the server repeats what it
        # got.
        if clean is not content or mask.may_hide(clean):
            mask.cover(reply)
        # What was read whole is never read a second time.
        if reply.completion is not None:
            return reply
        # Some servers stream though nobody asked, or behind a gateway that changes the type.
        if 200 <= status < 300 and holds_events(headers, content):
            reply = read_whole_stream(status, headers, content, now=self._wall_clock(), mask=mask)
        # A web page with HTTP 200 is the sign of an address that lacks its path.
        if status in _WRONG_ADDRESS or (200 <= status < 300 and content[:32].lstrip()[:1] == b"<"):
            _name_address(reply, self._url, self._asked)
        return reply

    async def _answer(self, body: bytes, reader: StreamReader | None) -> tuple[int, dict[bytes, bytes], bytes]:
        """Make one exchange over a transport that knows httpx's own seam only."""
        extensions = dict(self._extensions)
        if reader is not None:
            extensions["trace"] = partial(_tell_sent, reader)
        request = httpx.Request(
            "POST",
            self._url,
            headers=[*self._headers.raw, (b"Content-Length", b"%d" % len(body))],
            content=body,
            extensions=extensions,
        )
        response = await self._transport.handle_async_request(request)
        status, headers = response.status_code, {name.lower(): value for name, value in response.headers.raw}
        try:
            if reader is not None and 200 <= status < 300 and is_event_stream(headers):
                reader.begin(status, headers)
                return status, headers, await _read_bounded(response, reader)
            return status, headers, await _read_bounded(response)
        finally:
            await response.aclose()


def _name_address(reply: Reply, url: httpx.URL, asked: str) -> None:
    """Tell in a failure which address was asked, and what is probably wrong with it."""
    failure = reply.failure
    # These come from a model, so the address was right.
    if failure is None or failure.kind in {ErrorKind.CONTENT_FILTER, ErrorKind.INVALID_OUTPUT}:
        return
    told = f"{failure.message} (asked: {asked}"
    base = url.path.removesuffix(_ENDPOINT)
    if not _VERSION.search(base):
        told += "; provider.base_url has no /v1 at its end, which most servers want"
    reply.failure = Failure(failure.kind, f"{told})", failure.http_status)


async def _tell_sent(reader: StreamReader, event: str, _details: object) -> None:
    """Note when a request went out: httpcore tells this of each step of an exchange (its `trace` extension)."""
    if event.endswith(".send_request_headers.started"):
        reader.sent(anyio.current_time())


def _address(provider: Provider) -> httpx.URL:
    """Return the address of the provider's chat completions: `extra_query` goes over a query that the base URL has."""
    if provider.base_url is None:
        raise ValueError(f"{provider.name} has no base_url")
    base = httpx.URL(provider.base_url)
    query = {**dict(base.params.multi_items()), **provider.extra_query}
    url = base.copy_with(path=base.path.rstrip("/") + _ENDPOINT, query=None)
    return url.copy_with(query=urlencode(query).encode("ascii")) if query else url


def _header_fields(provider: Provider, url: httpx.URL, *, stream: bool) -> dict[str, tuple[str, str]]:
    """Return what is the same in all requests, but for the key: header fields by their names in lower case."""
    fields = {
        "host": ("Host", url.netloc.decode("ascii")),
        "accept": ("Accept", "text/event-stream, application/json" if stream else "application/json"),
        "content-type": ("Content-Type", "application/json"),
        "user-agent": ("User-Agent", "batchchat"),
    }
    for name, value in provider.headers.items():
        fields[name.lower()] = (name, value)
    return fields


def _checked(fields: Mapping[str, tuple[str, str]]) -> httpx.Headers:
    """Return header fields for the wire. An `httpx.Headers` never shows a key in `Authorization` when it is printed.

    Raises ValueError for what no request can carry. The message never holds a value, which may be the key.
    """
    for name, value in fields.values():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[\t\x20-\x7e]*", value):
            what = "the key" if name == "Authorization" else f"the header {name!r}"
            raise ValueError(f"{what} holds characters that cannot be sent")
    return httpx.Headers(list(fields.values()))


def _key_refused(reply: Reply) -> bool:
    """Return true if the answer says that the key is not, or no longer, taken."""
    return reply.failure is not None and reply.failure.http_status == 401


async def _read_bounded(response: httpx.Response, reader: StreamReader | None = None) -> bytes:
    """Return the whole body, decoded. Bounded while it is decoded, so that little data cannot unpack to much.

    With a `reader` it goes there, and ends once the reader is done.
    """
    decoder = decoder_for(response.headers.get("content-encoding", "").encode("latin-1"))
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - what every async transport gives
    chunks, size = [], 0
    pieces = aiter(stream)
    try:
        async for raw in pieces:
            chunk = raw if decoder is None else decoder.feed(raw, MAX_RESPONSE_BYTES - size)
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                raise _TooLarge(response.status_code)
            if reader is None:
                chunks.append(chunk)
                continue
            reader.feed(chunk, anyio.current_time())
            if reader.done:
                await _read_away(pieces)
                return b""
    finally:
        # Left to the garbage collector, it would close its connection at some later time, and warn.
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
    # A body that ended inside its compression is cut off, though HTTP saw its end.
    if decoder is not None:
        decoder.finish()
    return b"".join(chunks) if len(chunks) != 1 else chunks[0]


async def _read_away(pieces: AsyncIterator[bytes]) -> None:
    """Read the end of a body whose content is complete: only then can its connection carry another request."""
    size = 0
    with anyio.move_on_after(TAIL_S), suppress(httpx.HTTPError):
        async for piece in pieces:
            size += len(piece)
            if size > TAIL_BYTES:
                return


def _failed(error: httpx.HTTPError, mask: KeyMask) -> Reply:
    """Map the transport's exceptions to failures."""
    text = mask(str(error).strip()) or type(error).__name__
    kind, verdict = ErrorKind.CONNECTION, Verdict.TRANSIENT
    if isinstance(error, httpx.ConnectTimeout):
        text = f"no connection in time: {text}"
    elif isinstance(error, httpx.PoolTimeout):
        text = f"no free connection in time: {text}"
    elif isinstance(error, httpx.TimeoutException):
        kind = ErrorKind.TIMEOUT
        text = f"no answer in time: {text}"
    elif isinstance(error, httpx.ConnectError):
        if isinstance(error, UntrustedServer) or "CERTIFICATE_VERIFY_FAILED" in text.upper():
            # The next row meets the same certificate, and so does the next minute.
            verdict = Verdict.FATAL
            text += " (the server's certificate is not trusted; provider.ca_file names your own authority's)"
    elif isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        # What this side cannot say will not be sayable at the next row either.
        kind, verdict = ErrorKind.INVALID_REQUEST, Verdict.FATAL
        text = f"the request cannot be sent: {text}"
    # A server that ended the connection is a network fault. One that sent something else than HTTP is not.
    elif isinstance(error, httpx.DecodingError) or (
        isinstance(error, httpx.RemoteProtocolError) and not _ENDED_EARLY.search(text)
    ):
        kind = ErrorKind.PROTOCOL
    return Reply(verdict, failure=Failure(kind, text), sent=request_sent(error))
