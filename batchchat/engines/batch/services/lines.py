"""Lines of batch files: how a request is written as one, and how one of a result file is read.

All dialects are read in this one place, since servers mix them: an envelope with a status, a body that is JSON text in
a string, a completion without an envelope, an error without a response.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import IO, Any, Final

import anyio.to_thread
import orjson

from batchchat.engines.batch.service import ResultLine, TornLine

_BREAKS: Final = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))
"""Characters that some readers of JSON Lines take for the end of a line. In JSON they stand in strings only."""
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_BREAK: Final = re.compile(rb"[\r\n]")
_SUSPECTS: Final = (b"\n", b"\r", b"\\u", b'"stream')
_STREAM: Final = re.compile(rb'"stream(?:_options)?"\s*:')

ERROR_STATUS: Final = {
    "batch_client_error": 400,
    "batch_server_error": 500,
    "invalid_request": 400,
    "invalid_request_error": 400,
    "bad_request": 400,
    "parse_error": 400,
    "content_filter": 400,
    "model_not_found": 404,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "internal_error": 500,
}
"""Codes of an error without a response, and the HTTP status that says the same. Others say that nothing was run."""


class NoResult(ValueError):
    """A line of a result file that tells the result of no request."""


def encode_line(custom_id: str, body: bytes, *, url: str | None) -> bytes:
    """Return a request as one line of an input file, its LF included.

    `url` is what each line names, None for a dialect whose lines hold `custom_id` and `body` alone. The body goes in as
    it is, unless it holds what no line may: `stream`, line breaks, halves of surrogate pairs.
    """
    # Most bodies hold nothing of the kind, which a plain search tells far sooner than a pattern.
    suspect = any(each in body for each in _SUSPECTS)
    if suspect and (_BREAK.search(body) or _SURROGATE.search(body) or _STREAM.search(body)):
        body = _rewritten(body)
    head = b'{"custom_id":' + orjson.dumps(custom_id)
    if url is not None:
        head += b',"method":"POST","url":' + orjson.dumps(url)
    line = head + b',"body":' + body + b"}\n"
    for raw, escaped in _BREAKS:
        if raw in line:
            line = line.replace(raw, escaped)
    return line


def _rewritten(body: bytes) -> bytes:
    """Return the same request without `stream`, on one line, as valid UTF-8."""
    fields = json.loads(body)
    fields.pop("stream", None)
    fields.pop("stream_options", None)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def read_result(line: bytes) -> ResultLine:
    """Read one line of a result file. Raises NoResult if it is none: no JSON object, or one that names no request."""
    data = load(line)
    if not isinstance(data, dict) or not ("custom_id" in data or "response" in data):
        raise NoResult("the line is no result")
    custom_id = data.get("custom_id")
    # A number is what a tool between us and the model made of the id's text.
    custom_id = custom_id if isinstance(custom_id, str) else None if custom_id is None else str(custom_id)
    response, error = data.get("response"), data.get("error")
    # Some write the response as JSON text within the line.
    if isinstance(response, str):
        response = load(response.encode())
    if isinstance(response, dict) and response:
        return _answered(custom_id, response, error)
    return _unanswered(custom_id, error, None)


_READ: Final = 2**20
"""Bytes of a result file that are read and parsed in one go, off the event loop."""


async def read_results(path: Path, clean: Callable[[bytes], bytes] = bytes) -> AsyncGenerator[ResultLine, None]:
    """Iterate over the lines of a result file; `clean` takes secrets out of each part of it.

    Lines end with LF and nothing else. A last line without one counts if it is whole. Raises TornLine after all lines
    that could be read.
    """
    damaged, number = 0, 0
    first: int | None = None
    with await anyio.to_thread.run_sync(path.open, "rb") as file:
        while lines := await anyio.to_thread.run_sync(_read_some, file, clean):
            for each in lines:
                number += 1
                if isinstance(each, ResultLine):
                    yield each
                elif not each:
                    damaged += 1
                    first = first or number
    if damaged:
        raise TornLine(
            f"{damaged} of {number} lines of a result file cannot be read, the first of them is line {first}"
        )


def _read_some(file: IO[bytes], clean: Callable[[bytes], bytes]) -> list[ResultLine | bool]:
    """Return the next lines of a file: each as it was read, true for a blank one, false for one that is damaged."""
    found: list[ResultLine | bool] = []
    for line in file.readlines(_READ):
        text = clean(line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n"))
        try:
            found.append(read_result(text) if text else True)
        except NoResult:
            found.append(False)
    return found


def _answered(custom_id: str | None, response: dict[str, Any], error: Any) -> ResultLine:
    request_id = response.get("request_id")
    request_id = request_id if isinstance(request_id, str) else None
    if "body" not in response and "status_code" not in response:
        # The completion itself, without an envelope.
        return ResultLine(custom_id, 200, _dump(response), request_id=request_id)
    status, body = _status(response.get("status_code", 200)), response.get("body")
    if body is None or body == "":
        # vLLM gives a status, and puts the error beside the response.
        if status is not None and error is not None:
            return ResultLine(custom_id, status, _dump({"error": error}), request_id=request_id)
        # A success without an answer is none: the request is asked again.
        if status is None or 200 <= status < 300:
            return _unanswered(custom_id, error, request_id)
        return ResultLine(custom_id, status, b"", request_id=request_id)
    raw = body.encode("utf-8", "replace") if isinstance(body, str) else _dump(body)
    if status is None:
        # A status such as 0 is no answer of the model API, whatever stands beside it.
        inner = body.get("error") if isinstance(body, dict) else None
        return _unanswered(custom_id, error or inner, request_id, code="no_status", text=raw)
    return ResultLine(custom_id, status, raw, request_id=request_id)


def _unanswered(
    custom_id: str | None, error: Any, request_id: str | None, *, code: str | None = None, text: bytes = b""
) -> ResultLine:
    """Return a line without an answer of the model API: `error` says why, if anything does."""
    message: str | None = text[:1000].decode("utf-8", "replace") or None
    if isinstance(error, str):
        message = error
    elif isinstance(error, dict):
        told, said = error.get("code") or error.get("type"), error.get("message")
        code = str(told) if told is not None else code
        message = said if isinstance(said, str) else _dump(error).decode("utf-8", "replace")
    # A list or a number: shown as it is.
    elif error is not None:
        message = _dump(error).decode("utf-8", "replace")
    status = ERROR_STATUS.get(code) or _status(code) if code is not None else None
    if status is None or status < 400:
        return ResultLine(custom_id, None, b"", code, message, request_id)
    body = _dump({"error": {"message": message or "", "code": code}})
    return ResultLine(custom_id, status, body, code, message, request_id)


def _status(value: Any) -> int | None:
    """Return an HTTP status, None for what is none."""
    if isinstance(value, str) and re.fullmatch(r"\d{3}", value):
        value = int(value)
    return value if type(value) is int and 100 <= value < 600 else None


def load(text: bytes) -> Any:
    """Parse JSON; None if it is none. Halves of surrogate pairs and NaN cost nothing but themselves."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        pass
    try:
        # Half a surrogate pair, a number beyond 64 bits, or deeper nested than orjson writes.
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    except RecursionError:
        raise NoResult("the line is nested without end") from None
