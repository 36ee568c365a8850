"""Asking a hub of datasets over HTTP: redirects, ranges, and repeats.

The token goes to the endpoint alone: a hub sends its readers on to storage elsewhere, at addresses that are signed.
"""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import httpx
import orjson
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from batchchat.dataclass import dataclass
from batchchat.errors import StoreError
from batchchat.objects import RETRIES
from batchchat.sources.hub_access import HubAccess
from batchchat.sources.hub_refusals import HubRefusal, lasting, refusal
from batchchat.sources.input_file import raise_changed
from batchchat.transport.choose import proxy_for
from batchchat.transport.faults import untrusted
from batchchat.transport.tls import tls_context

_Answer = TypeVar("_Answer")

_MOST_HOPS = 6
"""Requests that one call may take: the first, and redirects. Hubs redirect once for a renamed dataset and once to
storage; more than five is a loop. Chosen, not measured."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 524})
_TIMEOUTS = {"connect": 5.0, "read": 30.0, "write": 30.0, "pool": 30.0}
"""Seconds, as for object storage. A range of 2 MB takes less at 1 Mbit/s."""
_WHOLE_MOST = 16 * 2**20
"""Bytes of a file that is taken whole from a server that sends no ranges. The hub keeps files of up to 10 MB itself,
and larger ones in storage that always knows ranges."""
_ANSWER_MOST = 64 * 2**20
"""Bytes of an answer that is no range of a file, such as a page of a listing: a bound of memory, if it is no hub.
Chosen, not measured."""
_LONGEST_WAIT = 310.0
"""Seconds that a hub may make us wait. It counts requests in windows of five minutes."""
_BACKOFF = wait_exponential(multiplier=0.5, max=15)
"""0.5, 1, 2, 4, 8, 15 … seconds: eight repeats take about a minute, as with object storage."""
_TEXT_SHOWN = 200
"""Characters of an error page that a message quotes."""


class _PassingError(Exception):
    """A request that failed, and may go well if it is repeated. `wait` is how long the hub asks to wait, in seconds."""

    def __init__(self, words: str, *, wait: float | None = None, busy: bool = False) -> None:
        super().__init__(words)
        self.wait = wait
        self.busy = busy


class HubClient:
    """Asks one hub about one dataset, for several threads at once.

    `dataset` is `OWNER/NAME`. `retries` is how often a request is repeated; `sleep` waits that many seconds.

    Raises StoreError: a lasting one if a person must act, another one if the hub does not answer.
    """

    def __init__(
        self,
        access: HubAccess,
        dataset: str,
        *,
        retries: int = RETRIES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.access = access
        self.dataset = dataset
        self._retries = retries
        self._sleep = sleep
        self._transports: dict[tuple[str, str | None], httpx.HTTPTransport] = {}
        self._lock = threading.Lock()
        # Nobody closes an input: its connections end when nothing reads from it any more.
        weakref.finalize(self, _close, self._transports)

    def __repr__(self) -> str:
        return f"HubClient({self.access.address!r}, {self.dataset!r})"

    @property
    def page(self) -> str:
        """Return the page of the dataset, for people."""
        return f"{self.access.address}/datasets/{self.dataset}"

    def ask(self, path: str, address: str, form: Mapping[str, str] | None = None) -> Any:
        """Return what the hub says of the dataset, as JSON has it. `path` follows the dataset in the URL.

        `address` is what an error names. With a `form`, that is posted.
        """
        return next(self._asked(f"{self.access.address}/api/datasets/{self.dataset}{path}", address, form))

    def pages(self, path: str, address: str) -> Iterator[list[Any]]:
        """Yield the pages of a list, one after the other."""
        for page in self._asked(f"{self.access.address}/api/datasets/{self.dataset}{path}", address, None):
            if not isinstance(page, list):
                raise self.strange(address)
            yield page

    def _asked(self, url: str | None, address: str, form: Mapping[str, str] | None) -> Iterator[Any]:
        seen = set()
        while url is not None:
            if url in seen:  # a list whose last page names an earlier one would never end
                raise self.strange(address)
            seen.add(url)
            call = _Call("GET" if form is None else "POST", httpx.URL(url), address, form=form)
            response, body = self._repeated(call, self._exchange)
            try:
                yield orjson.loads(body)
            except orjson.JSONDecodeError:
                raise self.strange(address) from None
            link = response.links.get("next", {}).get("url")
            url = None if link is None else str(response.request.url.join(link))

    def read(self, path: str, start: int, end: int, *, size: int, commit: str, address: str) -> bytes:
        """Return a range of a file as it is at a commit. `size` is that of the whole file, in bytes.

        Raises StorageError if the server has another commit, or a file of another size.
        """
        url = httpx.URL(f"{self.page}/resolve/{commit}/{quote(path)}")
        call = _Call("GET", url, address, range=(start, end), size=size, commit=commit)
        return self._repeated(call, self._ranged)

    def _ranged(self, call: _Call) -> bytes:
        """Fetch a range once."""
        response, body = self._exchange(call)
        start, end = call.range or (0, 0)
        if response.status_code == 206:
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", "").strip())
            if told is not None and told[2] not in {"*", str(call.size)}:
                raise_changed(call.address)
            if told is None or int(told[1]) != start or len(body) != end - start:
                raise _PassingError("an answer was cut")
            return body
        # A server may know no ranges, and send small files as a whole.
        if len(body) == call.size:
            return body[start:end]
        if call.size <= _WHOLE_MOST:
            raise _PassingError("an answer was cut")
        raise lasting(call.address, "the server sends no ranges of this file", "Look at HF_ENDPOINT.")

    def _repeated(self, call: _Call, once: Callable[[_Call], _Answer]) -> _Answer:
        """Make a call again and again until it goes well, or a person must act."""
        again = Retrying(
            stop=stop_after_attempt(self._retries + 1),
            wait=_wait,
            retry=retry_if_exception_type(_PassingError),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return again(once, call)
        except _PassingError as error:
            told, remedy = f"the hub does not answer as it should: {error}", "Look at the network and at HF_ENDPOINT"
            if error.busy:
                told = f"the hub answers no more requests for now: {error}"
                remedy = "Wait some minutes"
                if self.access.token is None:
                    remedy = "Set HF_TOKEN, which allows more requests, or wait some minutes"
            raise StoreError(f"{call.address}: {told}", remedy=f"{remedy}, then run the same command again.") from None

    def _exchange(self, call: _Call) -> tuple[httpx.Response, bytes]:
        """Make a call once, follow where it is sent, and return the last answer with its body."""
        method, url, content = call.method, call.url, call.content()
        for _ in range(_MOST_HOPS):
            own = self.access.is_own(url)
            fields = call.headers(content)
            if own and self.access.token is not None:
                fields["Authorization"] = f"Bearer {self.access.token}"
            request = httpx.Request(method, url, headers=fields, content=content, extensions={"timeout": _TIMEOUTS})
            response, body = self._answered(request, call)
            commit = response.headers.get("x-repo-commit")
            if own and call.commit is not None and commit is not None and commit != call.commit:
                raise_changed(call.address)
            place = response.headers.get("location")
            if response.status_code not in _REDIRECTS or not place:
                if response.status_code >= 300:
                    self._failed(response, call, own=own)
                return response, body
            url = self._next(url, place, call)
            if method == "POST" and response.status_code in {301, 302, 303}:
                method, content = "GET", None
        raise lasting(call.address, "the hub sends from one address to the next without an end", "Look at HF_ENDPOINT.")

    def _next(self, url: httpx.URL, place: str, call: _Call) -> httpx.URL:
        """Return the address that an answer sends to."""
        try:
            target = url.join(place)
        except httpx.InvalidURL:
            raise self.strange(call.address) from None
        if target.scheme not in {"http", "https"} or (url.scheme == "https" and target.scheme != "https"):
            raise lasting(call.address, f"the hub sends to an address that is not encrypted, on {target.host}")
        return target

    def _answered(self, request: httpx.Request, call: _Call) -> tuple[httpx.Response, bytes]:
        """Send one request, and return its answer with its body, of which no more is read than is of use."""
        most = _ANSWER_MOST if call.range is None else max(_WHOLE_MOST, call.range[1] - call.range[0])
        try:
            response = self._transport(request.url).handle_request(request)
            response.request = request
            try:
                pieces, size = [], 0
                for piece in response.iter_bytes():
                    size += len(piece)
                    pieces.append(piece)
                    if size > most:
                        break
            finally:
                response.close()
        except httpx.DecodingError:
            raise self.strange(call.address) from None
        except httpx.TransportError as error:
            host = request.url.host
            if untrusted(error) or "CERTIFICATE_VERIFY_FAILED" in str(error):
                remedy = "SSL_CERT_FILE names the file with the certificate of your own authority."
                raise lasting(call.address, f"the certificate of {host} is not trusted", remedy) from None
            raise _PassingError(f"{host}: {self._clean(str(error)) or type(error).__name__}") from None
        return response, b"".join(pieces)

    def _transport(self, url: httpx.URL) -> httpx.HTTPTransport:
        """Return what carries requests to an address, made at the first one."""
        proxy = proxy_for(url)
        with self._lock:
            found = self._transports.get((url.scheme, proxy))
            if found is None:
                tls = tls_context() if url.scheme == "https" else False
                found = httpx.HTTPTransport(verify=tls, proxy=proxy, trust_env=False)
                self._transports[url.scheme, proxy] = found
            return found

    def _failed(self, response: httpx.Response, call: _Call, *, own: bool) -> NoReturn:
        """Say what an answer without what was asked for means."""
        status = response.status_code
        told = self._clean(response.headers.get("x-error-message", ""))
        words = f"HTTP {status}{f': {told}' if told else ''}"
        if status in _PASSING:
            raise _PassingError(words, wait=_asked_wait(response.headers), busy=status == 429)
        if not own:
            # The address was signed for a short time: the next try gets another one.
            raise _PassingError(f"{response.request.url.host} answers {words}")
        code = response.headers.get("x-error-code", "")
        raise refusal(call.address, self.access, self.page, HubRefusal(status, code, told))

    def strange(self, address: str) -> StoreError:
        """Return a lasting error: what came is no answer of a hub. `address` is what was asked for."""
        told = f"{self.access.address} does not answer as a hub does"
        return lasting(address, told, "Look at HF_ENDPOINT, and at what stands between this machine and the hub.")

    def _clean(self, text: str) -> str:
        """Return text of a server in one line, without the token, nor addresses that are signed."""
        if self.access.token is not None:
            text = text.replace(self.access.token, "…")
        return re.sub(r"\s+", " ", re.sub(r"\?[^\s\"')]+", "?…", text)).strip()[:_TEXT_SHOWN]


@dataclass(frozen=True, slots=True)
class _Call:
    """One request: what is asked for, and what its answer must be. `address` is what an error names."""

    method: str
    url: httpx.URL
    address: str
    form: Mapping[str, str] | None = None
    range: tuple[int, int] | None = None
    size: int = 0
    commit: str | None = None

    def content(self) -> bytes | None:
        """Return the body."""
        return None if self.form is None else str(httpx.QueryParams(self.form)).encode("ascii")

    def headers(self, content: bytes | None) -> dict[str, str]:
        """Return the fields that go to any server. What comes compressed has no ranges."""
        found = {"User-Agent": "batchchat", "Accept": "*/*", "Accept-Encoding": "identity"}
        if content is not None:
            found["Content-Type"] = "application/x-www-form-urlencoded"
        if self.range is not None:
            found["Range"] = f"bytes={self.range[0]}-{self.range[1] - 1}"
        return found


def _close(transports: dict[tuple[str, str | None], httpx.HTTPTransport]) -> None:
    for transport in transports.values():
        transport.close()


def _wait(state: RetryCallState) -> float:
    """Return the seconds until the next try: those that the hub asks for, or more each time."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.wait if isinstance(error, _PassingError) else None
    # Half a second more: a hub counts whole seconds.
    return min(_LONGEST_WAIT, asked + 0.5) if asked is not None else _BACKOFF(state)


def _asked_wait(headers: httpx.Headers) -> float | None:
    """Return the seconds that an answer asks to wait: by Retry-After, or by when the count of requests begins anew."""
    after = headers.get("retry-after", "").strip()
    if after.isdecimal():
        return float(after)
    if after:
        try:
            return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
        except ValueError:
            return None
    window = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return None if window is None else float(window[1])
