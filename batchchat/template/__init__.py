"""From rows to request bodies: a job's messages and params, compiled once and rendered for each row.

A body is `{"model": …, <params in the author's order>, "messages": […]}`. All that no row changes is serialized
when the job is compiled; a row only adds its own texts. The keys of a message are sorted, so that equal content gives
equal bytes, and the digest is taken over those very bytes and over the params in canonical form (sorted at every
depth, whole floats as integers): the order of keys in a job or a row changes nothing, while the wire keeps the
author's order of params, which matters in a JSON schema. Fields that say how an answer travels (`stream`) stand after
the params and in no digest. An image from a column has a digest of its own there in its place.

Data is never template text: a row's values go in as values, and `{from: column}` passes messages on as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple

from batchchat.errors import JobError
from batchchat.records import Loaded
from batchchat.template.bound import PromptBound, render_within
from batchchat.template.condition import Condition
from batchchat.template.instructions import Instructions
from batchchat.template.leaf import RowTemplateError
from batchchat.template.lines import LineMessages, LineParams
from batchchat.template.messages import Messages, with_pictures
from batchchat.template.params import CompiledParams
from batchchat.template.plain import canonical, to_json
from batchchat.template.sandbox import MAX_TEXT, Environment

__all__ = ["PromptBound", "Rendered", "RowTemplateError", "Template", "compile_lines", "compile_template"]

_DIGEST_VERSION = b"batchchat request 1\n"
_SAMPLE = "sample_index"
_ROW = "row"
MAX_BODY = 64 * 1024 * 1024
"""Bytes of one request with all that its row brings along: images, and messages from a column."""


class Rendered(NamedTuple):
    """One row as a request. `digest` (16 bytes) tells its content, `prompt_tokens` is a rough size of the prompt."""

    body: bytes
    digest: bytes
    prompt_tokens: int
    max_tokens: int | None


class Template:
    """A job's compiled messages and params.

    `text_digest` tells the job's own text that shapes requests (messages, params, model) as 32 hexadecimal digits.
    `names` are the columns that the templates speak of, also if they ask whether one is there. `uses_row` tells
    whether they speak of `row`: the whole row, or the column of that name. `sampled` tells
    whether they speak of `sample_index`, so that the samples of a row may be different requests; a column of that name
    goes before it. `image_columns` are those that the job calls images, `attachments` those
    that it calls files or sound. `skip` is true of rows that are not sent, None
    if all are: it changes no request, so that it is in no digest.
    """

    __slots__ = (
        *("_bound", "_instructions", "_messages", "_messages_sampled", "_params", "_prefix"),
        *("attachments", "image_columns", "names", "sampled", "skip", "text_digest", "uses_row"),
    )

    def __init__(
        self,
        messages: Messages | LineMessages,
        params: CompiledParams | LineParams,
        *,
        text_digest: str,
        instructions: Instructions | None = None,
        skip: Condition | None = None,
        bound: PromptBound | None = None,
    ) -> None:
        self.skip = skip
        self._bound = bound
        self._messages = messages
        self._params = params
        self._instructions = instructions
        names = messages.names | params.names
        self.names = names - {_ROW}
        self.uses_row = _ROW in names
        self.image_columns = messages.image_columns
        self.attachments = messages.attachments
        self.sampled = _SAMPLE in self.names
        self._messages_sampled = _SAMPLE in messages.names
        self.text_digest = text_digest
        self._prefix = None if params.varies else _hash_params(params.canonical)

    def render(
        self, values: Mapping[str, Any], sample_index: int = 0, images: Mapping[str, Loaded] | None = None
    ) -> Rendered:
        """Render one row, given by column name, with its images by column if the job sends images.

        RowTemplateError if that is not possible; nothing else is raised.
        """
        if self._bound is None:
            return self._render(values, sample_index, images)
        return render_within(self._bound, values, lambda shorter: self._render(shorter, sample_index, images))

    def _render(self, values: Mapping[str, Any], sample_index: int, images: Mapping[str, Loaded] | None) -> Rendered:
        sampled = {_SAMPLE: sample_index, **values} if self.sampled else values
        # Messages that do not speak of it have no sample_index in their `row` either: samples differ if asked to.
        filled = self._messages.render(sampled if self._messages_sampled else values, images)
        messages, tokens, brought, pictures = filled
        if self._instructions is not None:
            messages, tokens = self._instructions.put_into(messages, tokens)
        if self._prefix is not None:
            hasher = self._prefix.copy()
            head, max_tokens, extra = self._params.head, self._params.max_tokens, self._params.tokens
        else:
            head, canonical_params, max_tokens, extra = self._params.render(sampled)
            hasher = _hash_params(canonical_params)
        hasher.update(messages)
        if pictures:
            messages = with_pictures(messages, pictures)
        body = b"".join((head, messages, b"}"))
        if len(body) > MAX_TEXT and (len(body) - brought > MAX_TEXT or len(body) > MAX_BODY):
            limit = MAX_BODY if len(body) > MAX_BODY else MAX_TEXT
            raise RowTemplateError(f"a request of {len(body):,} bytes is over the limit of {limit:,}")
        return Rendered(body, hasher.digest(), tokens + extra, max_tokens)

    def skips(self, values: Mapping[str, Any]) -> bool:
        """Return whether a row is not to be sent. Raises RowTemplateError if the job's `skip` cannot tell."""
        return self.skip is not None and self.skip.holds(values)

    def uses(self, columns: Iterable[str]) -> bool:
        """Return whether any of these columns can change a request."""
        return self.uses_row or not self.names.isdisjoint(columns)

    def constant(self, name: str) -> tuple[bool, Any]:
        """Return whether a param is the same for every row, and then its value (None if it is not sent)."""
        return self._params.constant(name)


def compile_template(
    messages: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    model: str,
    fixed: Mapping[str, Any] | None = None,
    instructions: str | None = None,
    max_images: int | None = None,
    transfer: Mapping[str, Any] = MappingProxyType({}),
    skip: str | None = None,
    bound: PromptBound | None = None,
) -> Template:
    """Compile a job's messages and params.

    `messages` is a list whose items are messages, with templates in any text at any depth, or `{"from": column}` if
    the row holds messages; or one such `{"from": column}` alone. A part `{"type": "image", "from": column}` stands for
    the images of a column; a row with more than `max_images` does not render. `params` are the body's other fields in
    the author's order; the mapping `extra_body` among them is put beside them. A param that is exactly one
    `{{ expression }}` takes its value's own type, and one that is None is left out. `fixed` are further fields of the
    body, and `instructions` a text for the model; both go in as they are, whatever braces they hold. `transfer`
    are fields that say how the answer travels: they change no digest. `skip` is a template that is true of rows which
    are not sent; `bound` is the longest prompt.

    Raises JobError that names the message and the line in its text, without file and line of the job.
    """
    environment = Environment()
    try:
        text = {"model": model, "messages": messages, "params": canonical(params)}
        if fixed or instructions is not None:
            text |= {"fixed": canonical(fixed or {}), "instructions": instructions}
        return Template(
            Messages(environment, messages, max_images=max_images),
            CompiledParams(environment, model, params, fixed or {}, transfer),
            text_digest=blake2b(to_json(text, sort=True), digest_size=16).hexdigest(),
            instructions=None if instructions is None else Instructions(instructions),
            skip=None if skip is None else Condition(skip, "skip"),
            bound=bound,
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(f"messages or params hold what has no JSON form: {error}") from None


def compile_lines(
    params: Mapping[str, Any],
    *,
    model: str,
    expected: str = "",
    removed: frozenset[str] = frozenset(),
    unsupported: frozenset[str] = frozenset(),
    provider_name: str = "",
    fixed: Mapping[str, Any] | None = None,
    instructions: str | None = None,
    max_images: int | None = None,
    transfer: Mapping[str, Any] = MappingProxyType({}),
    skip: str | None = None,
    bound: PromptBound | None = None,
) -> Template:
    """Compile a job over the lines of an OpenAI batch file, which hold their requests.

    `params` and `model` go over those of the lines; an empty model leaves each line its own, which must then be
    `expected`, where that is not empty. The fields `removed` are left out; a line with one that is `unsupported` by the
    provider of this name does not render. The rest is as in `compile_template`. Raises JobError.
    """
    try:
        text = {"model": model, "params": canonical(params), "removed": sorted(removed)}
        text |= {"fixed": canonical(fixed or {}), "instructions": instructions}
        compiled = CompiledParams(Environment(), model, params, fixed or {}, transfer)
        return Template(
            LineMessages(max_images=max_images),
            LineParams(
                compiled,
                own_model=not model,
                expected=expected,
                removed=removed,
                unsupported=unsupported,
                provider_name=provider_name,
            ),
            text_digest=blake2b(to_json(text, sort=True), digest_size=16).hexdigest(),
            instructions=None if instructions is None else Instructions(instructions),
            skip=None if skip is None else Condition(skip, "skip"),
            bound=bound,
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(f"params hold what has no JSON form: {error}") from None


def _hash_params(params: bytes) -> blake2b:
    return blake2b(_DIGEST_VERSION + len(params).to_bytes(8, "little") + params, digest_size=16)
