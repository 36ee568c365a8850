"""Chunks of a streamed answer, put together to the answer that the same request would have brought whole.

A `chat.completion.chunk` brings pieces (`delta`) of one message. What comes out is a `chat.completion` object, so that
one reader judges both: a streamed answer can mean nothing that a whole one could not. Servers differ in the details:
usage comes in a chunk of its own, in the last one or in each; reasoning comes under two names or as parts of the
content; a tool call's pieces may lack their index or repeat its name. Nothing here waits, and nothing here raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import orjson

from batchchat.client.finish import read_finish
from batchchat.client.problems import blocked_prompt, error_in_choice, is_error
from batchchat.client.sse import ServerEvent
from batchchat.client.usage import find_usage

_DONE: Final = b"[DONE]"
_TEXTS: Final = ("content", "refusal", "reasoning_content", "reasoning")


class ChunkAssembler:
    """Takes the events of one stream.

    `done` is set by `[DONE]`, by an error object, and by an event that is none of Chat Completions': nothing after it
    counts. `error` holds an error object, `problem` what is wrong with `evidence`, an event that cannot be read.
    """

    __slots__ = (
        "_blocked",
        "_call",
        "_calls",
        "_fields",
        "_finish",
        "_function",
        "_indexed",
        "_logprobs",
        "_message",
        "_older_logprobs",
        "_pieces",
        "_seen",
        "_usage",
        "done",
        "error",
        "evidence",
        "problem",
    )

    def __init__(self) -> None:
        self.done = False
        self.error: dict[str, Any] | None = None
        self.problem: str | None = None
        self.evidence = b""
        self._seen = False
        self._blocked: str | None = None
        self._fields: dict[str, str] = {}
        self._pieces: dict[str, list[str]] = {}
        self._message: dict[str, Any] | None = None
        self._calls: list[_Call] = []
        self._call: _Call | None = None
        self._indexed: dict[int, _Call] = {}
        self._function: _Call | None = None
        self._logprobs: list[Any] = []
        self._older_logprobs: dict[str, list[Any]] = {}
        self._finish: str | None = None
        self._usage: dict[str, Any] | None = None

    @property
    def complete(self) -> bool:
        """Whether the answer is whole. `[DONE]` alone does not tell: a server may say it after it broke off."""
        return self.problem is None and (self.error is not None or (self.done and (not self._seen or self._ended)))

    @property
    def _ended(self) -> bool:
        return self._finish is not None or self._message is not None

    def take(self, event: ServerEvent) -> bool:
        """Take the next event. True if it brought something that the model wrote."""
        if self.done:
            return False
        data = event.data
        # Nearly all events begin with a brace. Only another one can be `[DONE]`, or empty to keep the connection open.
        if data[:1] != b"{":
            data = data.strip()
            if data == _DONE:
                self.done = True
                return False
            if not data:
                return False
        chunk = _load(data)
        # The event's name says it, whatever form the data has.
        if event.type == b"error":
            self._fail(chunk, data)
        elif not isinstance(chunk, dict):
            self._refuse("with an event that is no JSON object", event.data)
        elif (
            is_error(chunk.get("error"))
            or chunk.get("object") == "error"
            or (chunk.get("errors") and not chunk.get("choices"))
        ):
            self._fail(chunk, data)
        else:
            try:
                return self._take_chunk(chunk)
            except _UnknownForm as error:
                self._refuse(str(error), event.data)
        return False

    def end(self, unfinished: Iterable[ServerEvent] = ()) -> None:
        """Note that the body has ended. Without `[DONE]` it is whole only if usage is there, which is sent last.

        `unfinished` are events that lack their end: what is whole of them counts, half an object is passed over.
        """
        for event in unfinished:
            # Some servers leave out the blank line behind the last event.
            if event.data.strip() == _DONE or isinstance(_load(event.data), dict):
                self.take(event)
        # Some servers end without `[DONE]`. A finish reason alone can come before a cut, usage is sent last.
        if not self.done and self._ended and self._usage is not None:
            self.done = True

    def body(self) -> bytes:
        """Return the whole answer as a `chat.completion` object, or the error object with the usage before it."""
        return self.partial() if self.error is None else _dump({**self._head(), **self.error})

    def partial(self) -> bytes:
        """Return what has come so far as a `chat.completion` object."""
        body: dict[str, Any] = {**self._head(), "choices": []}
        if self._seen:
            choice = {"index": 0, "message": self._whole_message(), "finish_reason": self._finish}
            if self._logprobs or self._older_logprobs:
                choice["logprobs"] = {"content": self._logprobs} if self._logprobs else self._older_logprobs
            body["choices"] = [choice]
        return _dump(body)

    # Inside

    def _head(self) -> dict[str, Any]:
        head: dict[str, Any] = dict(self._fields)
        if self._usage is not None:
            head["usage"] = self._usage
        if self._blocked is not None:
            head["prompt_feedback"] = {"block_reason": self._blocked}
        return head

    def _fail(self, chunk: Any, data: bytes) -> None:
        """Note an error: an object as it came, anything else as the message that it is."""
        if not isinstance(chunk, dict):
            chunk = {"error": {"message": data.decode("utf-8", "replace")}}
        # An event named `error` whose object is the error itself, without a field around it.
        elif not is_error(chunk.get("error")) and not chunk.get("errors") and chunk.get("object") != "error":
            chunk = {"error": chunk}
        self.error = chunk
        self._take_usage(chunk)
        self.done = True

    def _refuse(self, problem: str, evidence: bytes) -> None:
        self.problem, self.evidence = problem, evidence
        self.done = True

    def _take_chunk(self, chunk: dict[str, Any]) -> bool:
        self._take_usage(chunk)
        for name in ("id", "model", "system_fingerprint", "service_tier"):
            if name not in self._fields and isinstance(chunk.get(name), str) and chunk[name]:
                self._fields[name] = chunk[name]
        choices = chunk.get("choices")
        # Azure tells in a chunk without choices that the prompt was blocked.
        if not choices:
            self._blocked = self._blocked or blocked_prompt(chunk)
        if choices is None:
            return False
        if not isinstance(choices, list):
            raise _UnknownForm("with choices that are no list")
        wrote = False
        for choice in choices:
            if not isinstance(choice, dict):
                raise _UnknownForm("with a choice that is no object")
            # One answer was asked for. A server that sends further ones cannot mix them into it.
            if choice.get("index") in (0, None):
                wrote = self._take_choice(choice) or wrote
                if error := error_in_choice(choice):
                    self._fail({"error": error}, b"")
        return wrote

    def _take_usage(self, chunk: dict[str, Any]) -> None:
        usage = find_usage(chunk)
        if usage is not None:
            self._usage = usage

    def _take_choice(self, choice: dict[str, Any]) -> bool:
        self._seen = True
        if (reason := read_finish(choice)) is not None:
            self._finish = reason
        if isinstance(logprobs := choice.get("logprobs"), dict):
            self._take_logprobs(logprobs)
        delta = choice.get("delta")
        # Some gateways put the whole message into one chunk, as an answer that is not streamed has it.
        if delta is None:
            message = choice.get("message")
            if isinstance(message, dict):
                self._message = message
                return True
            return False
        if not isinstance(delta, dict):
            raise _UnknownForm("with a delta that is no object")
        wrote = False
        for name in _TEXTS:
            piece = delta.get(name)
            if piece is not None:
                wrote = self._take_piece(name, piece) or wrote
        if calls := delta.get("tool_calls"):
            if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
                raise _UnknownForm("with tool calls of unknown form")
            for call in calls:
                self._called(call).take(call)
            wrote = True
        # The older form, of one call without an id.
        if isinstance(function := delta.get("function_call"), dict):
            self._function = self._function or _Call()
            self._function.take({"function": function})
            wrote = True
        return wrote

    def _take_piece(self, name: str, piece: Any) -> bool:
        """Add a piece of text; one of `content` may be a list of parts, which count as text or as reasoning."""
        if isinstance(piece, str):
            self._pieces.setdefault(name, []).append(piece)
            return bool(piece)
        # Reasoning in parts is known only inside `content`.
        if name != "content":
            return False
        if not isinstance(piece, list):
            raise _UnknownForm("with content that is neither a text nor a list")
        wrote = False
        for part in piece:
            if not isinstance(part, dict):
                continue
            # A tuple and no set: the type may be a list or an object.
            thought = part.get("type") in ("thinking", "reasoning")
            inside = part.get("thinking", part.get("reasoning", part.get("text"))) if thought else part.get("text")
            inner = [item.get("text") for item in inside if isinstance(item, dict)] if isinstance(inside, list) else []
            for text in (inside, *inner):
                if isinstance(text, str):
                    wrote = self._take_piece("reasoning_content" if thought else "content", text) or wrote
        return wrote

    def _called(self, piece: dict[str, Any]) -> _Call:
        """Return the call that a piece belongs to, by its index. Without one, a new id or a name begins another call.

        So does another id with a name under an index that is taken: some servers number every call 0.
        """
        index, named = piece.get("index"), _named(piece)
        # Not `isinstance`, for which True is an int.
        if type(index) is int:
            call = self._indexed.get(index)
            begins = call is None or (named and call.differs(piece))
        else:
            call = self._call
            begins = call is None or call.differs(piece) or (named and call.begun and not call.is_named_by(piece))
        if begins or call is None:
            call = _Call()
            self._calls.append(call)
            if type(index) is int:
                self._indexed[index] = call
        self._call = call
        return call

    def _take_logprobs(self, logprobs: dict[str, Any]) -> None:
        content = logprobs.get("content")
        if isinstance(content, list):
            self._logprobs += content
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            if isinstance(values := logprobs.get(name), list):
                self._older_logprobs.setdefault(name, []).extend(values)

    def _whole_message(self) -> dict[str, Any]:
        if self._message is not None:
            return self._message
        message: dict[str, Any] = {"role": "assistant", "content": None}
        message.update((name, "".join(pieces)) for name, pieces in self._pieces.items())
        if self._calls:
            message["tool_calls"] = [call.whole() for call in self._calls]
        if self._function is not None:
            message["function_call"] = self._function.whole()["function"]
        return message


class _UnknownForm(ValueError):
    """A chunk is not made as Chat Completions' are."""


class _Call:
    """One tool call, as far as its pieces have come."""

    __slots__ = ("_arguments", "_fields", "_name")

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}
        self._name = ""
        self._arguments: list[str] = []

    @property
    def begun(self) -> bool:
        return bool(self._name)

    def is_named_by(self, piece: dict[str, Any]) -> bool:
        """Return whether a piece has this call's id."""
        return bool(piece.get("id")) and piece.get("id") == self._fields.get("id")

    def differs(self, piece: dict[str, Any]) -> bool:
        """Return whether a piece has another id than this call has."""
        return bool(piece.get("id")) and "id" in self._fields and not self.is_named_by(piece)

    def take(self, piece: dict[str, Any]) -> None:
        for name in ("id", "type"):
            if name not in self._fields and isinstance(piece.get(name), str) and piece[name]:
                self._fields[name] = piece[name]
        function = piece.get("function")
        if not isinstance(function, dict):
            return
        called = function.get("name")
        # Most servers send the name once, some in pieces, some the whole name again with each piece.
        if isinstance(called, str) and called != self._name:
            self._name += called
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            self._arguments.append(arguments)
        # The object itself in place of its text.
        elif arguments is not None:
            self._arguments.append(_dump(arguments).decode())

    def whole(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self._name or None}
        if self._arguments:
            function["arguments"] = "".join(self._arguments)
        return {**self._fields, "function": function}


def _named(piece: dict[str, Any]) -> bool:
    function = piece.get("function")
    return isinstance(function, dict) and bool(function.get("name"))


def _load(data: bytes) -> Any:
    """Parse JSON; None if it is none. Half of an emoji stays a half: the next chunk may bring the other."""
    try:
        return orjson.loads(data)
    # orjson refuses halves of emoji and NaN, which Python's reader takes.
    except orjson.JSONDecodeError:
        pass
    if data[:1] != b"{":
        return None
    try:
        return json.loads(data, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate, a number beyond 64 bits: written as escapes and digits
        try:
            return json.dumps(value).encode()
        except RecursionError:
            return b"{}"
