"""The messages of a job as bytes with holes: fixed JSON, and slots that each row fills."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from batchchat.attachments import MARKS, AttachmentKind
from batchchat.errors import JobError
from batchchat.records import ErrorKind, Loaded, Picture
from batchchat.template.leaf import Leaf, RowTemplateError, Values, suggestion
from batchchat.template.plain import to_json
from batchchat.template.sandbox import MAX_TEXT, Environment, listed

_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "refusal")
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SHORT_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
"""Roles of messages that may be whole with a role and a content alone; `function` needs a name."""
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot"), "assistant"),
    **{role: role for role in ("system", "developer")},
}
_MESSAGE_WEIGHT = 4 * 8
_ROLE = re.compile(r"messages\.\d+\.role")
_PART = re.compile(r"messages\.\d+\.content\.\d+")
_MEDIA_WEIGHT = 1_000 * 8
"""A picture, sound or file costs tokens by its own rules, not by the length of its address or its base64 text."""
_MEDIA_PARTS = ("image_url", "input_audio", "file", "video_url", "audio_url")


def weight(text: str) -> int:
    """Guess a text's tokens, in eighths: four characters a token in Latin script, three bytes a token otherwise.

    With b bytes in UTF-8 and c characters this is 3b - c, which gives 2c for ASCII and 8c for three-byte scripts.
    """
    return 2 * len(text) if text.isascii() else 3 * len(text.encode("utf-8", "surrogatepass")) - len(text)


class _Carried(NamedTuple):
    """What a slot takes from the row as it is: not text that a template made, so no template can inflate it.

    `images` counts those in it, `pictures` are those of them for which tokens stand in `data`.
    """

    data: bytes
    weight: int
    images: int
    pictures: tuple[Picture, ...] = ()


class Filled(NamedTuple):
    """One row's messages as a JSON array, with the tokens they may have.

    `brought` counts the bytes of it that the row brought along as they are. In place of its `pictures` there are their
    tokens, in this order; `with_pictures` puts them in.
    """

    data: bytes
    tokens: int
    brought: int
    pictures: tuple[Picture, ...] = ()


def with_pictures(messages: bytes, pictures: tuple[Picture, ...]) -> bytes:
    """Return messages with the URLs of pictures in the place of their tokens."""
    pieces: list[bytes] = []
    rest = messages
    for url, token, mark, _, _ in pictures:
        if url is not token:
            # Quotation marks are escaped inside of texts: only a field of this name looks like this.
            before, place, rest = rest.partition(mark + token)
            if not place:
                raise RowTemplateError("messages: an image has lost its place")
            pieces += (before, mark, url)
    return b"".join((*pieces, rest))


class _TextSlot:
    __slots__ = ("_leaf", "_media")

    def __init__(self, leaf: Leaf, media: bool) -> None:
        self._leaf = leaf
        self._media = media

    def fill(self, values: Values) -> tuple[bytes, int]:
        text = self._leaf.render(values)
        try:
            data = orjson.dumps(text)
        except TypeError:
            raise RowTemplateError(f"{self._leaf.place}: the text is not valid Unicode (a lone surrogate)") from None
        # The text of an image or file is data in base64: it counts flat for its part, not by its letters.
        if self._media:
            return data, 0
        return data, 2 * len(text) if text.isascii() else weight(text)


class _RoleSlot:
    __slots__ = ("_leaf",)

    def __init__(self, leaf: Leaf) -> None:
        self._leaf = leaf

    def fill(self, values: Values) -> tuple[bytes, int]:
        role = self._leaf.render(values)
        if role not in ROLES:
            raise RowTemplateError(f"{self._leaf.place}: {role[:100]!r} is no role; one of {', '.join(ROLES)}")
        return orjson.dumps(role), 0


class _ImageSlot:
    """Parts for the images of a column: one, or as many as the row has there."""

    __slots__ = ("_column", "_end", "_place", "_start")

    def __init__(self, column: str, detail: str | None, place: str) -> None:
        self._column = column
        self._place = f"{place} from {column!r}"
        told = b'"detail":%b,' % orjson.dumps(detail) if detail is not None else b""
        self._start, self._end = b'{"image_url":{%b"url":' % told, b'},"type":"image_url"}'

    def fill(self, values: Values, images: Mapping[str, Loaded] | None) -> _Carried:
        loaded = _loaded(self._column, self._place, values, images)
        data = b",".join([self._start + one.token + self._end for one in loaded])
        return _Carried(data, _MEDIA_WEIGHT * len(loaded), len(loaded), loaded)


class _AttachmentSlot:
    """Parts for the files or the sound of a column: one, or as many as the row has there."""

    __slots__ = ("_column", "_kind", "_place")

    def __init__(self, column: str, kind: str, place: str) -> None:
        self._column = column
        self._kind = kind
        self._place = f"{place} from {column!r}"

    def fill(self, values: Values, images: Mapping[str, Loaded] | None) -> _Carried:
        loaded = _loaded(self._column, self._place, values, images)
        kind, name = self._kind.encode(), b"filename" if self._kind == "file" else b"format"
        data = b",".join(
            [b'{"%b":{%b%b,"%b":%b},"type":"%b"}' % (kind, one.mark, one.token, name, one.told, kind) for one in loaded]
        )
        return _Carried(data, 8 * sum([one.tokens for one in loaded]), 0, loaded)


def _loaded(column: str, place: str, values: Values, images: Mapping[str, Loaded] | None) -> tuple[Picture, ...]:
    """Return what a column of a row holds. Raises RowTemplateError if it cannot be sent."""
    loaded = None if images is None else images.get(column)
    if loaded is None:
        _check_column(column, values, place)
        raise RowTemplateError(f"{place}: the row's images were not read")
    if isinstance(loaded, str):
        raise RowTemplateError(f"{place}: the column {loaded}", ErrorKind.INPUT)
    return loaded


class _ColumnSlot:
    """Messages that the row holds: a list of them, or JSON text of one."""

    __slots__ = ("_column", "_place")

    def __init__(self, column: str, place: str) -> None:
        self._column = column
        self._place = f"{place} from {column!r}"

    def fill(self, values: Values, images: Mapping[str, Loaded] | None) -> _Carried:
        del images  # a column of messages says itself what it shows: data names no file
        _check_column(self._column, values, self._place)
        value = values[self._column]
        # CSV has no lists: a conversation is JSON text in its cell.
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise RowTemplateError(f"{self._place}: the text is not JSON: {error}") from None
        if isinstance(value, Mapping):
            name = next((name for name in ("messages", "conversations") if isinstance(value.get(name), list)), None)
            # Many data sets wrap the list once more.
            value = value[name] if name is not None else value
        if not isinstance(value, list | tuple) or not value:
            raise RowTemplateError(f"{self._place}: needs a list of at least one message")
        total = shown = 0
        messages = []
        for index, item in enumerate(value):
            try:
                message, added, more = measured(item)
            except (TypeError, ValueError) as error:
                raise RowTemplateError(f"{self._place}, message {index}: {error}") from None
            total += added
            shown += more
            messages.append(message)
        try:
            data = to_json(messages, sort=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise RowTemplateError(f"{self._place}: {error}") from None
        return _Carried(data[1:-1], total, shown)


def _check_column(column: str, values: Values, place: str) -> None:
    if column not in values:
        near = suggestion(column, values)
        raise RowTemplateError(f"{place}: there is no column {column!r}{near}; the row has: {listed(values)}")


def measured(item: Any) -> tuple[dict[str, Any], int, int]:
    """Return a message as `check_message` does, its weight and the number of its images. Raises ValueError."""
    if (
        type(item) is dict
        and len(item) == 2
        and type(text := item.get("content")) is str
        and item.get("role") in _SHORT_ROLES
    ):
        return item, _MESSAGE_WEIGHT + weight(text), 0  # as most are, and nothing in it is null
    try:
        message = check_message(item)
        return message, _MESSAGE_WEIGHT + _weigh(message), _count_images(message.get("content"))
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _count_images(content: Any) -> int:
    return sum(part.get("type") == "image_url" for part in content) if isinstance(content, list) else 0


def _without_nulls(value: Any) -> Any:
    """Drop what is null in mappings at every depth: Arrow gives every struct all fields of its type."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value


def check_message(item: Any) -> dict[str, Any]:
    """Return a message without its null fields; ValueError if it is none that a server would take."""
    if not isinstance(item, Mapping):
        raise ValueError(f"is {_kind(item)}, not a message such as {{role: user, content: …}}")
    message: dict[str, Any] = _with_arguments_as_text(_without_nulls(_of_sharegpt(item)))
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(
            f"has the role {str(role)[:100]!r}, not one of {', '.join(ROLES)}" if role is not None else "has no role"
        )
    if role == "function" and not isinstance(message.get("name"), str):
        raise ValueError("has the role 'function' and no name: give the function's name, or use the role tool")
    content = message.get("content")
    # Servers take no content from an assistant alone, whose turn may be a call or a refusal.
    if content is None:
        if role != "assistant" or not (
            message.get("tool_calls") or message.get("function_call") or message.get("refusal")
        ):
            raise ValueError("has no content")
    elif isinstance(content, list):
        if not content or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
            raise ValueError("has content that is not a list of parts, each with a type")
    elif not isinstance(content, str):
        raise ValueError(f"has content that is {_kind(content)}, not text or a list of parts")
    return message


def _of_sharegpt(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message of ShareGPT's form (`from`, `value`) as one of the Chat API; any other as it is.

    Raises ValueError for the turns of tools: they lack the id of their call, which servers ask for.
    """
    # A message with a role is the Chat API's, whatever other fields its dataset has.
    if item.get("role") is not None or "from" not in item or "value" not in item:
        return item
    speaker = item["from"]
    role = _SHAREGPT_ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        known = ", ".join(_SHAREGPT_ROLES)
        raise ValueError(
            f"has from: {str(speaker)[:100]!r}, and from/value messages are read only from {known}: "
            "write it as a message with a role, and a tool's turn with its tool_call_id"
        )
    return {"role": role, "content": item["value"]}


def _with_arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    """Write the arguments of tool calls as JSON text, as the Chat API has them; datasets hold them as objects too."""
    calls = message.get("tool_calls")
    if isinstance(calls, list) and any(map(_has_object, calls)):
        calls = [{**call, "function": _as_text(call["function"])} if _has_object(call) else call for call in calls]
        message = {**message, "tool_calls": calls}
    if _has_object({"function": message.get("function_call")}):
        message = {**message, "function_call": _as_text(message["function_call"])}
    return message


def _has_object(call: Any) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("arguments"), Mapping | list | tuple)


def _as_text(function: Mapping[str, Any]) -> dict[str, Any]:
    return {**function, "arguments": to_json(function["arguments"], sort=True).decode()}


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else type(value).__name__)


def _weigh(value: Any) -> int:
    """Weigh all texts inside a message, in eighths of a token; media count flat."""
    if isinstance(value, str):
        return weight(value)
    if isinstance(value, Mapping):
        return sum(
            _MEDIA_WEIGHT if name in _MEDIA_PARTS else 0 if name in {"role", "type"} else _weigh(item)
            for name, item in value.items()
        )
    if isinstance(value, list | tuple):
        return sum(map(_weigh, value))
    return 0


def _in_content(place: str) -> bool:
    """Return whether a place is that of a part: `messages.0.content.1`."""
    return _PART.fullmatch(place) is not None


def too_many(images: int, limit: int) -> str:
    """Say that a request holds too many images."""
    return f"{images} images, and the provider takes at most {limit} in one request"


class Messages:
    """Compiled messages; `render` gives their JSON array, keys sorted, and a guess of their tokens.

    `names` are the columns that they speak of, `image_columns` those of them that hold images, and
    `attachments` those that hold files or sound. A row with more than `max_images` does
    not render; None takes any number.
    """

    def __init__(self, environment: Environment, messages: Any, *, max_images: int | None = None) -> None:
        self._environment = environment
        self._pieces: list[bytes] = []
        self._slots: list[tuple[int, _TextSlot | _RoleSlot]] = []
        self._carried: list[tuple[int, _ImageSlot | _AttachmentSlot | _ColumnSlot]] = []
        self._last_slot = -1
        self._weight = 0
        self._images = 0
        self._max_images = max_images
        self.names: frozenset[str] = frozenset()
        self.image_columns: frozenset[str] = frozenset()
        self.attachments: dict[str, AttachmentKind] = {}
        items = [messages] if isinstance(messages, Mapping) else messages
        # A text is a sequence too, and would become a message for each letter.
        if not isinstance(items, Sequence) or isinstance(items, str) or not items:
            raise JobError("needs at least one message, or {from: column}", field="messages")
        if isinstance(messages, Mapping) and set(messages) != {"from"}:
            raise JobError("is a list of messages, or {from: column}", field="messages")
        self._fixed(b"[")
        for index, item in enumerate(items):
            place = "messages" if isinstance(messages, Mapping) else f"messages.{index}"
            self._fixed(b"," if index else b"")
            self._add_item(item, place)
        self._fixed(b"]")
        if max_images is not None and self._images > max_images:
            raise JobError(too_many(self._images, max_images), field="messages")

    def render(self, values: Values, images: Mapping[str, Loaded] | None = None) -> Filled:
        """Return the messages of one row. `images` are those of the row, by column."""
        pieces = self._pieces.copy()
        total = self._weight
        for index, slot in self._slots:
            pieces[index], added = slot.fill(values)
            total += added
        brought = 0
        pictures: tuple[Picture, ...] = ()
        if self._carried:
            shown = self._images
            for index, carrying in self._carried:
                pieces[index], added, more, found = carrying.fill(values, images)
                total += added
                shown += more
                brought += len(pieces[index]) + sum([len(picture.url) for picture in found])
                pictures += found
            if self._max_images is not None and shown > self._max_images:
                raise RowTemplateError(f"messages: {too_many(shown, self._max_images)}", ErrorKind.INPUT)
        return Filled(b"".join(pieces), (total + 7) >> 3, brought, pictures)

    def _fixed(self, data: bytes) -> None:
        """Add bytes that no row changes, joined to those before them."""
        if self._pieces and self._last_slot != len(self._pieces) - 1:
            self._pieces[-1] += data
        else:
            self._pieces.append(data)

    def _next_slot(self) -> int:
        self._last_slot = len(self._pieces)
        self._pieces.append(b"")
        return self._last_slot

    def _add_item(self, item: Any, place: str) -> None:
        if isinstance(item, Mapping) and set(item) == {"from"}:
            column = item["from"]
            if not isinstance(column, str) or not column:
                raise JobError("from names a column", field=place)
            self.names |= {column}
            self._carried.append((self._next_slot(), _ColumnSlot(column, place)))
            return
        try:
            message = check_message(self._checkable(item))
        except (TypeError, ValueError) as error:
            raise JobError(str(error), field=place) from None
        written = _with_arguments_as_text(dict(item))
        if written != item and any(mark in str(written) for mark in ("{{", "{%", "{#")):
            raise JobError(
                "the arguments of a tool call are JSON text: write them as a text, each value as {{ column|tojson }}",
                field=place,
            )
        item = written if "role" in item else message
        self._weight += _MESSAGE_WEIGHT
        self._add_value({name: value for name, value in item.items() if value is not None}, place)

    @staticmethod
    def _checkable(item: Any) -> Any:
        """Return a message as it can be checked now: a role that is a template is checked later, for each row."""
        role = item.get("role") if isinstance(item, Mapping) else None
        return {**item, "role": "user"} if isinstance(role, str) and "{" in role else item

    def _add_value(self, value: Any, place: str, *, media: bool = False) -> None:
        if isinstance(value, str):
            self._add_text(value, place, media=media)
        elif isinstance(value, Mapping) and value.get("type") == "image" and _in_content(place):
            self._add_image(value, place)
        elif isinstance(value, Mapping) and "from" in value and value.get("type") in MARKS and _in_content(place):
            self._add_attachment(value, place)
        elif isinstance(value, Mapping):
            self._images += value.get("type") == "image_url" and _in_content(place)
            self._fixed(b"{")
            for number, name in enumerate(sorted(value, key=str)):
                self._fixed((b"," if number else b"") + orjson.dumps(str(name)) + b":")
                inside = name in _MEDIA_PARTS
                self._weight += _MEDIA_WEIGHT if inside else 0
                self._add_value(value[name], f"{place}.{name}", media=media or inside)
            self._fixed(b"}")
        elif isinstance(value, list | tuple):
            self._fixed(b"[")
            for number, item in enumerate(value):
                self._fixed(b"," if number else b"")
                self._add_value(item, f"{place}.{number}", media=media)
            self._fixed(b"]")
        else:
            try:
                self._fixed(to_json(value, sort=True))
            except (TypeError, ValueError) as error:
                raise JobError(str(error), field=place) from None

    def _add_image(self, part: Mapping[str, Any], place: str) -> None:
        """Add the place of the images that a column holds: `{type: image, from: column, detail: low}`."""
        column, detail = part.get("from"), part.get("detail")
        if not isinstance(column, str) or not column or set(part) - {"type", "from", "detail"}:
            raise JobError("is not of the form {type: image, from: column}, with a `detail` if you like", field=place)
        if detail is not None and (not isinstance(detail, str) or "{" in detail):
            raise JobError("must be a plain text, such as low or high", field=f"{place}.detail")
        if column in self.attachments:
            raise JobError(
                f"takes the column {column!r} for an image, and another part takes it otherwise", field=place
            )
        self.names |= {column}
        self.image_columns |= {column}
        self._carried.append((self._next_slot(), _ImageSlot(column, detail, place)))

    def _add_attachment(self, part: Mapping[str, Any], place: str) -> None:
        """Add the place of the files or sound that a column holds: `{type: file, from: column}`."""
        column, kind = part["from"], part["type"]
        if not isinstance(column, str) or not column or set(part) != {"type", "from"}:
            raise JobError(f"is not of the form {{type: {kind}, from: column}}", field=place)
        if column in self.image_columns or self.attachments.get(column, kind) != kind:
            raise JobError(f"takes the column {column!r} for {kind}, and another part takes it otherwise", field=place)
        self.names |= {column}
        self.attachments[column] = kind
        self._carried.append((self._next_slot(), _AttachmentSlot(column, kind, place)))

    def _add_text(self, source: str, place: str, *, media: bool) -> None:
        leaf = Leaf(self._environment, source, place)
        self.names |= leaf.names
        is_role = _ROLE.fullmatch(place) is not None
        if leaf.constant is None:
            self._slots.append((self._next_slot(), _RoleSlot(leaf) if is_role else _TextSlot(leaf, media)))
            return
        if len(leaf.constant) > MAX_TEXT:
            raise JobError(f"is over the limit of {MAX_TEXT:,} characters", field=place)
        if not media and not is_role and not place.endswith(".type"):
            self._weight += weight(leaf.constant)
        self._fixed(orjson.dumps(leaf.constant))
