"""Reading a chat request as strictly as Scaleway documents it.

body bytes ─ parse_request ─> ChatRequest, or ApiError with the status and words to answer
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import orjson

from batchchat.dataclass import dataclass
from batchchat.demo.server_options import DemoOptions
from batchchat.demo.tokens import FILE_TOKENS, IMAGE_TOKENS, MESSAGE_TOKENS, SOUND_TOKENS, count_tokens

UNSUPPORTED = ("frequency_penalty", "n", "logit_bias", "user")
MAX_IMAGES = 12
"""Images of one request, so that a job meets a limit of this kind; services have others. Chosen."""
_ROLES = {"system", "developer", "user", "assistant", "tool"}
_RANGES = {"temperature": (0, 2), "top_p": (0, 1), "presence_penalty": (-2, 2)}
"""The ranges of OpenAI's reference."""
_FORMATS = {"text", "json_object", "json_schema"}


class ApiError(Exception):
    """An answer other than a completion. `type` and `code` are words that clients may look at."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, reduced to what the demo model reads: its role and its text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A valid chat request. `max_tokens` is the smaller of what was asked for and what the model can."""

    model: str
    turns: tuple[Turn, ...]
    prompt_tokens: int
    max_tokens: int
    temperature: float = 1.0
    stream: bool = False
    include_usage: bool = False
    format: Literal["text", "json_object", "json_schema"] = "text"
    schema: dict[str, Any] | bool | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str = "auto"
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    reasoning: bool = False
    images: int = 0
    files: int = 0
    sounds: int = 0
    service_tier: str | None = None


def parse_request(body: bytes, options: DemoOptions) -> ChatRequest:
    """Read and check a request body. Raises ApiError (400, 404, 416 or 422)."""
    data = _load(body)
    model = _model(data, options)
    for name in UNSUPPORTED:
        if data.get(name) is not None:
            raise _bad(f"{name} is not supported", name)
    _check_numbers(data)
    turns, media = _turns(data.get("messages"))
    # Their chat templates refuse it, with these words.
    if model.startswith(("mistral", "ministral", "magistral", "pixtral")):
        for before, after in pairwise(turns):
            if before.role == after.role == "user":
                raise _bad("conversation roles must alternate: two user messages follow each other", "messages")
    tools, tool_choice = _tools(data)
    format_, schema = _format(data.get("response_format"))
    prompt_tokens = sum(count_tokens(turn.text) + MESSAGE_TOKENS for turn in turns) + media.tokens
    prompt_tokens += _json_tokens(data.get("tools")) + _json_tokens(schema)
    asked = _max_tokens(data, options)
    if prompt_tokens + (asked or 1) > options.context_tokens:
        raise _bad(
            f"the model's context holds {options.context_tokens} tokens, but {prompt_tokens} in the messages"
            f" and {asked or 1} for the completion were asked for",
            "messages",
            code="context_length_exceeded",
        )
    room = min(options.max_completion_tokens, options.context_tokens - prompt_tokens)
    stream_options = data.get("stream_options")
    return ChatRequest(
        model=model,
        turns=turns,
        prompt_tokens=prompt_tokens,
        max_tokens=asked or room,
        temperature=1.0 if data.get("temperature") is None else float(data["temperature"]),
        stream=data.get("stream") is True,
        include_usage=isinstance(stream_options, dict) and stream_options.get("include_usage") is True,
        format=format_,
        schema=schema,
        tools=tools,
        tool_choice=tool_choice,
        stop=_stop(data.get("stop")),
        logprobs=data.get("logprobs") is True,
        top_logprobs=_top_logprobs(data),
        reasoning=data.get("reasoning_effort") in {"low", "medium", "high"},
        images=media.images,
        files=media.files,
        sounds=media.sounds,
        service_tier=_service_tier(data.get("service_tier")),
    )


def _service_tier(asked: Any) -> str | None:
    """Return the tier that answers a request which asks for one: `auto` is the usual one."""
    if asked is None:
        return None
    if asked not in {"auto", "default", "flex", "priority"}:
        raise _bad("service_tier must be auto, default, flex or priority", "service_tier")
    return "default" if asked == "auto" else str(asked)


def _bad(message: str, param: str | None, *, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def _load(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _bad(f"the body is not valid JSON: {error}", None) from None
    if not isinstance(data, dict):
        raise _bad("the body must be a JSON object", None)
    return data


def _model(data: dict[str, Any], options: DemoOptions) -> str:
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(422, "model is required", param="model")
    if model not in options.models:
        raise ApiError(
            options.unknown_model_status,
            f"the model {model[:200]!r} does not exist",
            param="model",
            code="model_not_found",
        )
    return model


def _check_numbers(data: dict[str, Any]) -> None:
    for name, (low, high) in _RANGES.items():
        value = data.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _bad(f"{name} must be a number from {low} to {high}", name)
    seed = data.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise _bad("seed must be an integer", "seed")


def _top_logprobs(data: dict[str, Any]) -> int:
    value = data.get("top_logprobs")
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 20:
        raise _bad("top_logprobs must be a whole number from 0 to 20", "top_logprobs")
    # OpenAI refuses it too.
    if data.get("logprobs") is not True:
        raise _bad("top_logprobs needs logprobs: true", "top_logprobs")
    return value


def _max_tokens(data: dict[str, Any], options: DemoOptions) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = data.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _bad(f"{name} must be a whole number of at least 1", name)
        if value > options.max_completion_tokens:
            raise ApiError(416, f"{name} is {value}, above this model's {options.max_completion_tokens}", param=name)
        return value
    return None


class _Media(NamedTuple):
    """How many images, files and sounds a message holds. None of them is looked into."""

    images: int = 0
    files: int = 0
    sounds: int = 0

    @property
    def tokens(self) -> int:
        """The tokens that they cost."""
        return self.images * IMAGE_TOKENS + self.files * FILE_TOKENS + self.sounds * SOUND_TOKENS


def _turns(messages: Any) -> tuple[tuple[Turn, ...], _Media]:
    if not isinstance(messages, list) or not messages:
        raise _bad("messages must be a list of at least one message", "messages")
    turns: list[Turn] = []
    media = _Media()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _bad(f"{where}.role must be one of {', '.join(sorted(_ROLES))}", f"{where}.role")
        content = message.get("content")
        if isinstance(content, str):
            turns.append(Turn(message["role"], content))
        # As an assistant's turn that only calls tools has it.
        elif content is None and message["role"] == "assistant":
            turns.append(Turn("assistant", ""))
        elif isinstance(content, list):
            text, count = _parts(content, f"{where}.content")
            media = _Media(*map(sum, zip(media, count, strict=True)))
            turns.append(Turn(message["role"], text))
        else:
            raise _bad(f"{where}.content must be a text or a list of parts", f"{where}.content")
    if media.images > MAX_IMAGES:
        raise _bad(f"{media.images} images were sent, at most {MAX_IMAGES} are allowed", "messages")
    return tuple(turns), media


def _parts(parts: list[Any], where: str) -> tuple[str, _Media]:
    """Return the joined text of a message's parts, and what else it holds."""
    texts: list[str] = []
    images = files = sounds = 0
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            if not isinstance(url, str) or not url.startswith(("https://", "http://", "data:image/")):
                raise _bad(f"{where}[{index}].image_url must be an https or data:image URL", f"{where}[{index}]")
            images += 1
        elif kind == "file":
            file = part.get("file")
            data = file.get("file_data") if isinstance(file, dict) else None
            if not isinstance(data, str) or not data.startswith("data:application/pdf;base64,"):
                raise _bad(f"{where}[{index}].file.file_data must be a PDF as a data URL", f"{where}[{index}]")
            if not isinstance(file.get("filename"), str):
                raise _bad(f"{where}[{index}].file.filename must be a text", f"{where}[{index}]")
            files += 1
        elif kind == "input_audio":
            sound = part.get("input_audio")
            if not isinstance(sound, dict) or not sound.get("data") or sound.get("format") not in {"wav", "mp3"}:
                raise _bad(f"{where}[{index}].input_audio needs data, and the format wav or mp3", f"{where}[{index}]")
            sounds += 1
        else:
            raise _bad(f"{where}[{index}] must be a text, image_url, file or input_audio part", f"{where}[{index}]")
    return "\n".join(texts), _Media(images, files, sounds)


def _format(value: Any) -> tuple[Literal["text", "json_object", "json_schema"], dict[str, Any] | bool | None]:
    if value is None:
        return "text", None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return "text", None
    if kind == "json_object":
        return "json_object", None
    if kind == "json_schema":
        wrapper = value.get("json_schema")
        schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
        if not isinstance(schema, dict | bool) or not isinstance(wrapper.get("name"), str):
            raise _bad("response_format.json_schema needs a name and a schema", "response_format")
        return "json_schema", schema
    raise _bad(f"response_format.type must be one of {', '.join(sorted(_FORMATS))}", "response_format")


def _tools(data: dict[str, Any]) -> tuple[tuple[dict[str, Any], ...], str]:
    """Return the tools' functions and the choice: auto, none, required, or `=NAME` for a named function."""
    tools = data.get("tools")
    if tools is None:
        if isinstance(data.get("tool_choice"), dict):
            raise _bad("tool_choice names a function, but there are no tools", "tool_choice")
        return (), "none"
    if not isinstance(tools, list) or not tools:
        raise _bad("tools must be a list of at least one tool", "tools")
    functions: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _bad(f"tools[{index}] must be a function with a name", f"tools[{index}]")
        if not isinstance(function.get("parameters", {}), dict | bool):
            raise _bad(f"tools[{index}].function.parameters must be a schema", f"tools[{index}]")
        functions.append(function)
    choice = data.get("tool_choice", "auto")
    if isinstance(choice, str) and choice in {"auto", "none", "required"}:
        return tuple(functions), choice
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    if named not in {function["name"] for function in functions}:
        raise _bad("tool_choice must be auto, none, required or a function of tools", "tool_choice")
    return tuple(functions), f"={named}"


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and s for s in stops):
        raise _bad("stop must be a text or a list of at most 4 texts", "stop")
    return tuple(stops)


def _json_tokens(value: Any) -> int:
    return 0 if value is None else count_tokens(orjson.dumps(value).decode())
