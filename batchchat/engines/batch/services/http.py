"""HTTP with a Batch API: one call in, its JSON or a streamed file out, and each failure as what it means."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final, cast
from urllib.parse import urlencode

import anyio
import anyio.to_thread
import httpx

from batchchat.client.headers import parse_retry_after
from batchchat.client.masking import KeyMask
from batchchat.credentials import Credential, header_field
from batchchat.dataclass import dataclass
from batchchat.engines.batch.service import OutcomeUnknown, Unavailable
from batchchat.engines.batch.services.lines import load
from batchchat.engines.batch.services.problems import Call, Party, refusal
from batchchat.errors import NeedsHuman
from batchchat.providers import Provider
from batchchat.transport import request_sent
from batchchat.transport.choose import proxy_for
from batchchat.transport.faults import untrusted
from batchchat.transport.tls import tls_context

CONNECT_TIMEOUT_S: Final = 30.0
ANSWER_TIMEOUT_S: Final = 120.0
UPLOAD_TIMEOUT_S: Final = 600.0
"""How long an answer to an upload may take: some providers check every line of the file first."""
_MAX_ANSWER: Final = 64 * 2**20
_PIECE: Final = 2**20
_ROUNDS: Final = 5
"""How often a download goes on after a break without a byte in between. Each wait is twice the last, from 1 s."""
_MOST_HOPS: Final = 5


@dataclass(frozen=True)
class HttpAnswer:
    """An answer of HTTP 2xx."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def data(self) -> Any:
        """The body's JSON, None if it is none."""
        return load(self.body)


class _Page(Exception):
    """A file's content that is a web page: a gateway answered in the provider's place."""


class Http:
    """Calls one provider. Owns its transport: leaving the context closes it.

    `auth` is the header that takes the key: `Authorization` as a bearer token, any other as it is, unless the provider
    names a scheme. If a key is refused and another one can be had, the call is made once more. A connection is not
    kept after its answer: calls are minutes apart, and a kept connection that the server has closed would leave it open
    whether a create was carried out.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        auth: str,
        credential: Credential,
        party: Party,
        user_agent: str,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        base = httpx.URL(provider.base_url or "")
        self._base = base
        self._query = {**dict(base.params.multi_items()), **provider.extra_query}
        self._headers = {"Accept": "application/json", "User-Agent": user_agent, **provider.headers}
        self._auth = auth
        self._credential = credential
        self._generation = -1
        self._transport: httpx.AsyncBaseTransport
        self.party = party
        self.mask = KeyMask()
        self._given = transport
        self._provider = provider
        self._take_key()

    def __repr__(self) -> str:
        return f"Http({self.party.address!r})"

    def _take_key(self) -> None:
        """Send the credential's key from now on."""
        key = self._credential.key
        self._generation = self._credential.generation
        self.mask.add(key)
        if key is not None:
            name, value = header_field(key, self._auth, self._provider.api_key_scheme)
            self._headers[name] = value

    async def _renewed(self, status: int) -> bool:
        """Return true if the key was refused, and there is another one now, which later calls send."""
        if status != 401:
            if status < 400:
                self._credential.accepted = max(self._credential.accepted, self._generation)
            return False
        if not await self._credential.renew(self._generation):
            return False
        self._take_key()
        return True

    async def __aenter__(self) -> Http:
        # Not before: whoever only asks what a service takes needs no certificates.
        self._transport = self._given if self._given is not None else _transport(self._base, self._provider)
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._transport.aclose()

    async def ask(
        self,
        call: Call,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | list[tuple[str, str]] | None = None,
        json: bytes | None = None,
        content: Callable[[], AsyncIterator[bytes]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        """Make one call; it is sent once, and once more with another key if the first one is refused.

        `json` is its body, or what `content` gives at each sending, with the headers of that.

        Raises what a refusal means. If the connection fails, OutcomeUnknown for a create that may have reached the
        server, else Unavailable.
        """
        fields = dict(headers or {})
        if json is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(json))}
        # Some servers answer 411 to a POST that tells no length.
        elif content is None and method == "POST":
            fields["Content-Length"] = "0"
        timeout = UPLOAD_TIMEOUT_S if content is not None else ANSWER_TIMEOUT_S
        url, again = self._url(path, query), True
        while True:
            request = httpx.Request(
                method,
                url,
                headers={"Host": self._base.netloc.decode("ascii"), **self._headers, **fields},
                content=json if json is not None or content is None else content(),
                extensions={"timeout": _timeouts(timeout)},
            )
            response, body = await self._answered(call, request)
            if not (again and await self._renewed(response.status_code)):
                break
            again = False  # a call that was refused for its key has done nothing, so it may be made once more
        if 200 <= response.status_code < 300:
            clean = self.mask.clean(body)
            return HttpAnswer(response.status_code, response.headers, clean)
        raise self._refused(call, response, body)

    async def _answered(self, call: Call, request: httpx.Request) -> tuple[httpx.Response, bytes]:
        """Send a request and return its answer with the whole body. Raises what a failed connection means."""
        try:
            response = await self._transport.handle_async_request(request)
            try:
                return response, await _bounded(response)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise self._failed(call, error) from None

    async def download(self, path: str, target: Path, *, nbytes: int | None = None) -> bool:
        """Stream a file's content to `target`; go on after a break if the server lets us.

        `nbytes` is the size that the provider names. Content of another size is downloaded once more, and believed if
        it is the same again. Returns false if the provider says that the content is not complete yet. Raises Gone,
        Unavailable.
        """
        with await anyio.to_thread.run_sync(target.open, "wb") as file:
            size, whole = await self._fetch(path, file)
            # Some providers count characters, so a size that differs twice is the provider's mistake.
            if nbytes is not None and size != nbytes:
                await anyio.to_thread.run_sync(_empty, file)
                size, whole = await self._fetch(path, file)
        return whole

    async def _fetch(self, path: str, file: IO[bytes]) -> tuple[int, bool]:
        """Download into an empty file. Return its size, and false if the provider says that more will come."""
        breaks, size, tag, whole, plain = 0, 0, "", True, True
        while True:
            before = size
            try:
                async with aclosing(self._content(path, size, tag)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, httpx.Headers):
                            tag, whole = _validator(piece), piece.get("x-incomplete", "").lower() != "true"
                            plain = "content-encoding" not in piece
                            if size and "content-range" not in piece:
                                # The server begins anew: it knows no ranges, or the content has changed.
                                size = before = await anyio.to_thread.run_sync(_empty, file)
                            continue
                        await anyio.to_thread.run_sync(file.write, piece)
                        size += len(piece)
                return size, whole
            except httpx.HTTPError as error:
                breaks = 0 if size > before else breaks + 1
                if breaks >= _ROUNDS:
                    raise self._failed(Call.LOOK, error) from None
                if not plain:
                    # What was decoded cannot be counted in bytes of the server's content.
                    size = await anyio.to_thread.run_sync(_empty, file)
                await anyio.sleep(2.0**breaks)
            except _Page:
                raise Unavailable(f"{self.party.name} answered a download with a web page") from None

    async def _content(self, path: str, start: int, tag: str) -> AsyncGenerator[httpx.Headers | bytes, None]:
        """Yield the headers of a file's content, then its pieces from byte `start` on, or from the first one."""
        url, own = self._url(path, None), True
        for _ in range(_MOST_HOPS):
            # A place of storage that the provider sends us to gets no key of ours.
            headers = dict(self._headers) if own else {"User-Agent": self._headers["User-Agent"]}
            headers |= {"Host": url.netloc.decode("ascii"), "Accept": "*/*", "Accept-Encoding": "identity"}
            if start:
                headers |= {"Range": f"bytes={start}-"} | ({"If-Range": tag} if tag else {})
            request = httpx.Request("GET", url, headers=headers, extensions={"timeout": _timeouts(ANSWER_TIMEOUT_S)})
            response = await self._transport.handle_async_request(request)
            try:
                place = response.headers.get("location")
                # Files often lie in object storage, at an address that is signed for a short time.
                if response.status_code in {301, 302, 303, 307, 308} and place:
                    try:
                        url = url.join(place)
                    except httpx.InvalidURL:
                        raise Unavailable(f"{self.party.name} sends a download to an address that is none") from None
                    own = own and (url.scheme, url.netloc) == (self._base.scheme, self._base.netloc)
                    continue
                if _stale(response, start):
                    start = 0
                    continue
                if own and await self._renewed(response.status_code):
                    continue
                if not 200 <= response.status_code < 300:
                    raise self._refused(Call.LOOK, response, await _bounded(response))
                first = True
                async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as pieces:
                    async for piece in pieces:
                        if first:
                            # Lines of JSON begin with a brace: this is a page of a gateway, with HTTP 200.
                            if not start and piece[:200].lstrip()[:1] == b"<":
                                raise _Page
                            yield response.headers
                            first = False
                        yield piece
                if first:
                    yield response.headers
                return
            finally:
                await response.aclose()
        raise Unavailable(f"{self.party.name} sends a download from one place to the next without an end")

    def _url(self, path: str, query: Mapping[str, str] | list[tuple[str, str]] | None) -> httpx.URL:
        pairs = [*self._query.items(), *(query.items() if isinstance(query, Mapping) else query or ())]
        raw = self._base.path.rstrip("/") + path
        return self._base.copy_with(path=raw, query=urlencode(pairs).encode("ascii") if pairs else None)

    def _refused(self, call: Call, response: httpx.Response, body: bytes) -> Exception:
        headers = {name.lower(): value for name, value in response.headers.raw}
        wait = parse_retry_after(headers, time.time())
        return refusal(call, response.status_code, body, party=self.party, mask=self.mask, retry_after=wait)

    def _failed(self, call: Call, error: httpx.HTTPError) -> Exception:
        """Return what a connection that failed means."""
        text = self.mask(str(error).strip()) or type(error).__name__
        if untrusted(error) or "CERTIFICATE_VERIFY_FAILED" in text.upper():
            return NeedsHuman(
                f"the certificate of {self.party.address} is not trusted: {text}",
                remedy="provider.ca_file names the certificate of your own authority.",
            )
        if call is Call.CREATE and request_sent(error):
            return OutcomeUnknown(f"{self.party.name} did not answer a create: {text}")
        return Unavailable(f"{self.party.name} cannot be reached at {self.party.address}: {text}")


def _transport(base: httpx.URL, provider: Provider) -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(
        verify=tls_context(provider.ca_file) if base.scheme == "https" else False,
        proxy=proxy_for(base),
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


def _timeouts(answer: float) -> dict[str, float]:
    return {"connect": CONNECT_TIMEOUT_S, "read": answer, "write": ANSWER_TIMEOUT_S, "pool": CONNECT_TIMEOUT_S}


async def _bounded(response: httpx.Response) -> bytes:
    """Return the whole body. Raises httpx.RemoteProtocolError if it is far larger than any answer."""
    found, size = [], 0
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as pieces:
        async for piece in pieces:
            size += len(piece)
            if size > _MAX_ANSWER:
                raise httpx.RemoteProtocolError(f"the answer is larger than {_MAX_ANSWER // 2**20} MiB")
            found.append(piece)
    return b"".join(found)


def _validator(headers: httpx.Headers) -> str:
    """Return a strong ETag, which tells that content is the same byte for byte."""
    tag = headers.get("etag", "")
    return "" if tag.startswith("W/") else tag


def _begins_at(headers: httpx.Headers, start: int) -> bool:
    told: str = headers.get("content-range", "")
    return told.lower().replace(" ", "").startswith(f"bytes{start}-")


def _stale(response: httpx.Response, start: int) -> bool:
    """Return true if a download must begin anew: nothing stands behind what we have, or another piece was sent."""
    if response.status_code == 416:
        return start > 0
    return response.status_code == 206 and not _begins_at(response.headers, start)


def _empty(file: IO[bytes]) -> int:
    file.seek(0)
    return file.truncate()


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart form whose last part is a file, streamed from disk."""

    fields: Mapping[str, str]
    name: str
    path: Path
    media_type: str
    boundary: str

    @property
    def headers(self) -> dict[str, str]:
        """The header fields of a request with this body."""
        size = len(self._head) + self.path.stat().st_size + len(self._tail)
        return {
            "Content-Type": f"multipart/form-data; boundary={self.boundary}",
            "Content-Length": str(size),
        }

    @property
    def _head(self) -> bytes:
        parts = [
            f'--{self.boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in self.fields.items()
        ]
        parts.append(
            f'--{self.boundary}\r\nContent-Disposition: form-data; name="file"; filename="{self.name}"\r\n'
            f"Content-Type: {self.media_type}\r\n\r\n"
        )
        return "".join(parts).encode()

    @property
    def _tail(self) -> bytes:
        return f"\r\n--{self.boundary}--\r\n".encode()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body, piece by piece."""
        yield self._head
        async with await anyio.open_file(self.path, "rb") as file:
            while piece := await file.read(_PIECE):
                yield piece
        yield self._tail
