"""The lines of result files: what an answer, an error or a line that never ran looks like, and how faults spoil it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import orjson

from batchchat.dataclass import dataclass
from batchchat.demo.batches.checking import FileProblem
from batchchat.demo.batches.faults import BatchFaults

SEPARATORS = "\u2028\u2029\u0085"
"""What `str.splitlines` takes for the end of a line, and JSON Lines does not."""

REST_CODES = {"cancelled": "batch_cancelled", "expired": "batch_expired"}
_REST_MESSAGES = {
    "cancelled": "This request was not run: the batch was cancelled.",
    "expired": "This request was not run: the batch reached the end of its completion window.",
}


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What the model API says to one line: an HTTP status and a JSON body. Tokens are 0 if it is no completion."""

    status: int
    body: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def ok(self) -> bool:
        """Return true if the line was answered with a completion."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class LineResult:
    """One line of a result file, before a dialect writes it. Without a response, `code` and `message` say why.

    `text_body` asks for the body as a JSON string, `bare` for the completion in the place of the response.
    """

    batch_id: str
    custom_id: str | None
    answer: LineAnswer | None
    code: str | None = None
    message: str | None = None
    text_body: bool = False
    bare: bool = False

    @property
    def request_id(self) -> str:
        """An id that follows from the batch and the line."""
        return blake2b(f"{self.batch_id} {self.custom_id}".encode(), digest_size=12).hexdigest()


WriteLine = Callable[[LineResult], dict[str, Any]]
"""Writes a result as a dialect does."""


def openai_line(result: LineResult) -> dict[str, Any]:
    """Write a result in OpenAI's envelope."""
    line: dict[str, Any] = {"id": f"batch_req_{result.request_id}", "custom_id": result.custom_id}
    answer = result.answer
    if answer is None:
        return {**line, "response": None, "error": {"code": result.code, "message": result.message}}
    return {**line, "response": response_of(result, answer), "error": None}


def response_of(result: LineResult, answer: LineAnswer) -> Any:
    """Return the response of a line that was answered: status, request id and body."""
    # A fragment of JSON as it is: nothing is parsed only to be written again.
    if result.bare:
        return orjson.Fragment(answer.body)
    body: Any = answer.body.decode() if result.text_body else orjson.Fragment(answer.body)
    return {"status_code": answer.status, "request_id": result.request_id, "body": body}


@dataclass(frozen=True, slots=True)
class WrittenLine:
    """What one request adds to the result files, and whether the model ran it."""

    output: bytes = b""
    error: bytes = b""
    ok: bool = False
    ran: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


class LineWriter:
    """Writes the results of one batch, with the faults that befall its lines."""

    def __init__(self, batch_id: str, number: int, faults: BatchFaults, write: WriteLine) -> None:
        self._batch_id = batch_id
        self._number = number
        self._faults = faults
        self._write = write
        self._drawn = faults.of_lines()
        self._all_failed = faults.batch("all_failed", number)
        self._long = int(faults.number("line_long") or 0)
        self._end = b"\r\n" if faults.flag("crlf") else b"\n"

    def answered(self, custom_id: str | None, run: Callable[[], LineAnswer]) -> WrittenLine:
        """Return the lines for one request. `run` asks the model; it is not called for a line that fails before."""
        key = custom_id or ""
        befallen = {name for name in self._drawn if self._faults.line(name, key, self._number)}
        failure = self._failure(custom_id, befallen)
        if failure is not None:
            line = self._encode(failure)
            # Seen at providers: a line of status 0 lies among the answers, and counts as one.
            counted = failure.answer is not None and failure.answer.status == 0
            return WrittenLine(output=line, ok=True) if counted else self._failed(line)
        answer = run()
        if answer.ok:
            answer = self._spoiled(answer, befallen)
        result = LineResult(self._batch_id, custom_id, answer)
        if answer.ok:
            result = replace(result, text_body="line_body_text" in befallen, bare="line_bare" in befallen)
        line = b"".join(self._encode(one) for one in self._around(result, befallen))
        if not answer.ok:
            return self._failed(line, ran=False)
        return WrittenLine(
            output=line,
            ok=True,
            ran=True,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
        )

    def refused(self, custom_id: str | None, problem: FileProblem) -> WrittenLine:
        """Return the line for a request that was found bad before anything ran; none if it has no id."""
        if custom_id is None:
            return WrittenLine()
        return self._failed(self._encode(LineResult(self._batch_id, custom_id, None, problem.code, problem.message)))

    def never_ran(self, custom_id: str | None, status: str) -> bytes:
        """Return the error line for a request that the batch did not come to; `status` is the batch's last one."""
        code = REST_CODES[status]
        return self._encode(LineResult(self._batch_id, custom_id, None, code, _REST_MESSAGES[status]))

    def _failed(self, line: bytes, *, ran: bool = False) -> WrittenLine:
        # Some providers have one file for both.
        if self._faults.flag("error_in_output"):
            return WrittenLine(output=line, ran=ran)
        return WrittenLine(error=line, ran=ran)

    def _failure(self, custom_id: str | None, befallen: set[str]) -> LineResult | None:
        """Return the result of a line that fails before the model sees it."""
        result = LineResult(self._batch_id, custom_id, None)
        if self._all_failed or "line_500" in befallen:
            message = "An error occurred while processing your request."
            return replace(result, answer=LineAnswer(500, _error_body(message, "server_error", None)))
        if "line_429" in befallen:
            message = "Rate limit reached for this model."
            return replace(result, answer=LineAnswer(429, _error_body(message, "tokens", "rate_limit_exceeded")))
        if "line_status_0" in befallen:
            return replace(result, answer=LineAnswer(0, b'""'))
        if "line_timeout" in befallen:
            return replace(result, code="request_timeout", message="The request took too long.")
        return None

    def _spoiled(self, answer: LineAnswer, befallen: set[str]) -> LineAnswer:
        if not self._long and befallen.isdisjoint({"line_no_usage", "line_separators"}):
            return answer
        body = orjson.loads(answer.body)
        if "line_no_usage" in befallen:
            body.pop("usage", None)
        for choice in body.get("choices", ()):
            message = choice["message"]
            if "line_separators" in befallen and isinstance(message.get("content"), str):
                message["content"] += SEPARATORS
            if self._long and isinstance(message.get("content"), str):
                message["content"] = message["content"].ljust(self._long, ".")
        return replace(answer, body=orjson.dumps(body))

    def _around(self, result: LineResult, befallen: set[str]) -> list[LineResult]:
        """Return the line with what stands before it, or twice, or not at all."""
        lines = [] if "line_missing" in befallen else [result]
        if "line_twice" in befallen:
            lines += lines
        if "line_unknown" in befallen:
            lines.insert(0, replace(result, custom_id=f"never-sent-{result.request_id[:8]}"))
        if "line_null" in befallen:
            lines.insert(0, replace(result, custom_id=None))
        return lines

    def _encode(self, result: LineResult) -> bytes:
        return orjson.dumps(self._write(result)) + self._end


def _error_body(message: str, kind: str, code: str | None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
