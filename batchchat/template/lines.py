"""Requests that the input holds ready-made: the lines of an OpenAI batch file.

    {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": …, "messages": […], …}}

`method` and `url` may be left out, as Mistral's and Together's files do. `url` may be any address of Chat Completions:
Azure's `/chat/completions`, that of a deployment, or a whole one. Nothing is sent to it: the job names the provider.

A line's body is sent as it is, save what the job itself says: its model and its params go over those of the lines, and
a param that it sets to null is left out. A line that no batch API would take is a bad row of the input.

The bodies have the same form as those of templates, so that the same request has the same identity either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from batchchat.attachments import AttachmentKind
from batchchat.records import ErrorKind, Loaded
from batchchat.template.leaf import RowTemplateError, Values
from batchchat.template.messages import Filled, measured, too_many
from batchchat.template.params import LENGTHS, CompiledParams, Written, write
from batchchat.template.plain import to_json

KEY = "custom_id"
COLUMNS = {KEY: "string", "method": "string", "url": "string", "body": "json"}
"""The fields of a line, as types of input columns."""
METHOD = "POST"
URL = "/v1/chat/completions"
_TRAVEL = frozenset({"stream", "stream_options", "n"})


class LineMessages:
    """The messages of lines: takes the place of compiled messages."""

    names: frozenset[str] = frozenset()
    image_columns: frozenset[str] = frozenset()
    attachments: Mapping[str, AttachmentKind] = MappingProxyType({})

    def __init__(self, *, max_images: int | None = None) -> None:
        self._max_images = max_images

    def render(self, values: Values, images: Mapping[str, Loaded] | None = None) -> Filled:
        """Return the messages of one line; it brought all of them along."""
        del images
        messages = _body(values).get("messages")
        if not isinstance(messages, list) or not messages:
            raise _bad("body.messages must be a list of at least one message")
        weight = shown = 0
        for index, message in enumerate(messages):
            try:
                _, added, more = measured(message)
            except ValueError as error:
                raise _bad(f"body.messages.{index} {error}") from None
            weight += added
            shown += more
        if self._max_images is not None and shown > self._max_images:
            raise _bad(f"body.messages: {too_many(shown, self._max_images)}")
        try:
            data = to_json(messages, sort=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise _bad(f"body.messages: {error}") from None
        return Filled(data, (weight + 7) >> 3, len(data))


class LineParams:
    """The other fields of lines, with what the job says over them: takes the place of compiled params.

    `of_job` are the job's own. Where the job names no model (`own_model`) each line has its own, which must be
    `expected`, unless that is empty, too. `removed` are fields that are left out, `unsupported` those that the provider
    of this name does not know.
    """

    varies = True
    head = canonical = b""
    max_tokens: int | None = None
    tokens = 0

    def __init__(
        self,
        of_job: CompiledParams,
        *,
        own_model: bool,
        expected: str,
        removed: frozenset[str],
        unsupported: frozenset[str],
        provider_name: str,
    ) -> None:
        self.names = of_job.names
        self._of_job = of_job
        self._own_model = own_model
        self._expected = expected
        self._removed = removed | _TRAVEL
        self._unsupported = unsupported - _TRAVEL
        self._provider_name = provider_name
        # Most files ask the same in every line, but for the messages: the last line's fields are kept.
        self._told: bytes | None = None
        self._rendered: tuple[bytes, bytes, int | None, int] = (b"", b"", None, 0)

    def render(self, values: Values) -> tuple[bytes, bytes, int | None, int]:
        """Return head, canonical params, max_tokens and prompt tokens for one line."""
        body = _body(values)
        told = None if self._of_job.varies else _told(body)
        if told is None or told != self._told:
            self._told, self._rendered = told, self._render(values, body)
        return self._rendered

    def _render(self, values: Values, body: dict[str, Any]) -> tuple[bytes, bytes, int | None, int]:
        _check_travel(body)
        of_job = dict(self._of_job.fields(values))
        if self._own_model:
            del of_job["model"]
            self._check_model(body.get("model"))
        passed_over = self._removed.union(of_job, LENGTHS if of_job.keys() & LENGTHS else (), ("messages",))
        written: dict[str, Written | None] = {"model": None}
        for name, value in body.items():
            if name in passed_over or value is None:
                continue
            if name in self._unsupported:
                remedy = f"`params: {{{name}: null}}` leaves it out"
                raise _bad(f"body.{name} is not supported by {self._provider_name}; {remedy}")
            try:
                field = write(name, value)
            except RowTemplateError as error:
                raise _bad(str(error).replace("params.", "body.", 1)) from None
            if field is not None and field.sent.endswith(b":null"):
                raise _bad(f"body.{name}: {value} is not a number that JSON can hold")
            written[name] = field
        written.update(of_job)
        return self._of_job.joined(written)

    def constant(self, name: str) -> tuple[bool, Any]:
        """Return whether a field is the same for every line, and then its value: only what the job itself says is."""
        same, value = self._of_job.constant(name)
        return same and (value is not None or name in self._removed), value

    def _check_model(self, model: Any) -> None:
        if not isinstance(model, str) or not model:
            raise _bad("body.model is missing; `model` in the job gives all lines one")
        if self._expected and model != self._expected:
            raise _bad(
                f"body.model is {model[:200]!r}, and that of the first line is {self._expected!r}: a batch file is for "
                "one model; `model` in the job gives all lines one"
            )


def model_of(values: Mapping[str, Any]) -> str | None:
    """Return the model that a line names, None if it names none."""
    body = values.get("body")
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) and model else None


def _is_chat(url: Any) -> bool:
    """Return true if an address, or its path alone, is one of Chat Completions."""
    path = url.strip().partition("?")[0].rstrip("/") if isinstance(url, str) else ""
    return f"/{path}".endswith("/chat/completions")


def _body(values: Values) -> dict[str, Any]:
    """Return a line's body. RowTemplateError if the line is none of a chat completion."""
    method, url, body = values.get("method"), values.get("url"), values.get("body")
    if method is not None and not (isinstance(method, str) and method.strip().upper() == METHOD):
        raise _bad(f"method must be {METHOD}, or left out{_not(method)}")
    if url is not None and not _is_chat(url):
        raise _bad(f"url must be {URL}, or left out{_not(url)}")
    if not isinstance(body, dict):
        raise _bad("body must be an object" + (", and is missing" if body is None else ""))
    return body


def _told(body: dict[str, Any]) -> bytes | None:
    """Return what a body says beside its messages, if equal bytes are sure to mean equal fields; else None."""
    try:
        told = orjson.dumps({name: value for name, value in body.items() if name != "messages"})
    except TypeError:
        return None
    return None if b"null" in told else told  # null may stand for NaN


def _check_travel(body: Mapping[str, Any]) -> None:
    if body.get("stream") not in (None, False):
        raise _bad("body.stream must be false, or left out; `params: {stream: true}` in the job streams all answers")
    if body.get("n") not in (None, 1) or isinstance(body.get("n"), bool):
        raise _bad("body.n must be 1, or left out; `samples: N` in the job asks each line N times")


def _not(value: Any) -> str:
    if value is None:
        return ", and is missing"
    return f", not {value[:100]!r}" if isinstance(value, str) else f", not {type(value).__name__}"


def _bad(message: str) -> RowTemplateError:
    return RowTemplateError(message, ErrorKind.INPUT)
