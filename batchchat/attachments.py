"""Files and sound of a job's rows, as parts of messages: read, known by their first bytes, and bounded in size.

A column that a job calls a file holds a PDF, one that it calls sound a WAV or an MP3: as a path, bytes, a struct of
bytes and path, base64 text or a data URL, or a list of these. Paths follow the rules of images: they do not lead out of
their folder. In the identity of the request a digest of the content stands for it.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import orjson

from batchchat.images import ImageError, read_below, shown_text
from batchchat.records import Loaded, Picture

AttachmentKind = Literal["file", "input_audio"]
Loader = Callable[[Any, Path | None], tuple[Picture, ...]]
"""Returns what a column holds; paths count from a folder. Raises ImageError."""

MAX_BYTES = 20_000_000
"""The largest file or sound that is sent unless the job says otherwise, in bytes before base64."""

_PAGE_TOKENS = 1_500
"""A guess: a page of text has 500 to 800 tokens, and many models are shown a picture of it as well."""
_PAGE_BYTES = 50_000
"""What a page takes if the file does not tell its pages: some are compressed, too."""
_SECOND_TOKENS = 10
"""A guess: models that hear take 10 to 13 tokens a second."""
_MP3_BYTES = 16_000
"""Bytes of a second of MP3, at the usual 128 kbit/s."""
_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_HEADER_BYTES = 1_024
"""The header of a PDF stands within so many bytes, says the standard's note for readers."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_LONGER_THAN_NAMES = 400
"""A text of base64 letters alone that is longer than this is content, not a path: names end at 255 characters."""
_DATA_URL = re.compile(r"data:([^,]*),", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DIGEST_SIZE = 16


class _Form(NamedTuple):
    """What a kind of attachment is called, which content it may have, and how base64 of it begins."""

    noun: str
    accepted: str
    beginnings: tuple[str, ...]


_FORMS: Mapping[AttachmentKind, _Form] = {
    "file": _Form("a PDF", "a PDF can be sent", ("JVBERi",)),
    "input_audio": _Form("sound", "WAV or MP3 can be sent", ("UklGR", "SUQz")),
}
MARKS: Mapping[AttachmentKind, bytes] = {"file": b'"file_data":', "input_audio": b'"data":'}
"""The field of a part that holds the content, as it stands in a request."""


def attachment_loader(kind: AttachmentKind, *, root: Path | None, max_bytes: int) -> Loader:
    """Return what loads a column of files or sound.

    `root` is the folder that paths are relative to; None takes the folder of the row's input file. Content of more than
    `max_bytes` is refused.
    """

    def load(value: Any, folder: Path | None) -> tuple[Picture, ...]:
        place = root if root is not None else folder
        if not isinstance(value, list | tuple):
            return (_attachment(kind, value, place, max_bytes),)
        if not value:
            raise ImageError("is an empty list")
        found = []
        for number, item in enumerate(value):
            try:
                found.append(_attachment(kind, item, place, max_bytes))
            except ImageError as error:
                raise ImageError(f"item {number} {error}") from None
        return tuple(found)

    return load


def _attachment(kind: AttachmentKind, value: Any, root: Path | None, max_bytes: int) -> Picture:
    """Return one file or sound. Raises ImageError."""
    name, form = "", _FORMS[kind]
    if isinstance(value, Mapping):
        path, inside = value.get("path"), value.get("bytes")
        name = path if isinstance(path, str) else ""
        value = inside if inside is not None else path
    if isinstance(value, bytes | bytearray | memoryview):
        return _checked(kind, bytes(value), name, max_bytes, "holds")
    if not isinstance(value, str):
        told = "null" if value is None else type(value).__name__
        raise ImageError(f"is {told}, not a path, bytes or base64 of {form.noun}")
    text = value.strip()
    if not text:
        raise ImageError("is empty")
    given = _DATA_URL.match(text)
    if given is not None and not given[1].lower().endswith(";base64"):
        raise ImageError("is a data URL that is not base64")
    if given is not None:
        return _checked(kind, _decoded(text[given.end() :], max_bytes), name, max_bytes, "holds")
    if _SCHEME.match(text):
        raise ImageError(f"is an address, which providers do not read here: give a path, or the content of {form.noun}")
    looks = text.startswith(form.beginnings) or len(text) > _LONGER_THAN_NAMES
    if looks and _BASE64.fullmatch(text):
        return _checked(kind, _decoded(text, max_bytes), name, max_bytes, "holds")
    data = read_below(root, value, max_bytes, "files")
    return _checked(kind, data, value, max_bytes, f"names {shown_text(value)}, which holds")


def _decoded(text: str, max_bytes: int) -> bytes:
    if len(text) * 3 // 4 > max_bytes + max_bytes // 16 + 64:  # with room for the ends of lines
        raise ImageError(_too_large("holds", len(text) * 3 // 4, max_bytes))
    try:
        return binascii.a2b_base64("".join(text.split()).encode("ascii"), strict_mode=True)
    except ValueError as error:  # binascii.Error, and UnicodeEncodeError
        raise ImageError(f"holds base64 that is damaged: {error}") from None


def _checked(kind: AttachmentKind, data: bytes, name: str, max_bytes: int, what: str) -> Picture:
    """Check the content by its first bytes, and write it as the API takes it. Raises ImageError."""
    form = _FORMS[kind]
    if not data:
        raise ImageError(f"{what} nothing")
    if len(data) > max_bytes:
        raise ImageError(_too_large(what, len(data), max_bytes))
    content = binascii.b2a_base64(data, newline=False)
    digest = blake2b(data, digest_size=_DIGEST_SIZE).hexdigest().encode()
    if kind == "file":
        if b"%PDF-" not in data[:_HEADER_BYTES]:
            raise ImageError(f"{what} no PDF: {form.accepted}")
        url = b"".join((b'"data:application/pdf;base64,', content, b'"'))
        return Picture(url, b'"file:blake2b:%b"' % digest, MARKS[kind], _file_name(name), _pdf_tokens(data))
    sound = sound_format(data)
    if sound is None:
        raise ImageError(f"{what} no sound that is known: {form.accepted}")
    token = b'"sound:blake2b:%b"' % digest
    return Picture(b"".join((b'"', content, b'"')), token, MARKS[kind], orjson.dumps(sound), _sound_tokens(data, sound))


def _too_large(what: str, size: int, max_bytes: int) -> str:
    return f"{what} {size:,} bytes, and files.max_bytes is {max_bytes:,}"


def _file_name(name: str) -> bytes:
    """Return the name that the provider is told, as JSON: the last part of a path, without its folders."""
    last = PurePosixPath(name.replace("\\", "/")).name if name else ""
    return orjson.dumps(last.encode("utf-8", "replace").decode() or "document.pdf")


def sound_format(data: bytes) -> str | None:
    """Tell sound by its first bytes: `wav` or `mp3`; None for anything else."""
    if data[:4] in {b"RIFF", b"RF64"} and data[8:12] == b"WAVE":
        return "wav"
    # A frame of MPEG audio begins with 11 bits that are set; the next ones say version and layer, of which one is none.
    frame = len(data) > 3 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    if data[:3] == b"ID3" or (frame and data[1] & 0x06 == 0x02 and data[1] & 0x18 != 0x08 and data[2] & 0xF0 != 0xF0):
        return "mp3"
    return None


def _pdf_tokens(data: bytes) -> int:
    """Guess a PDF's tokens by its pages, or by its size if they are compressed."""
    return _PAGE_TOKENS * max(1, len(_PAGE.findall(data)) or len(data) // _PAGE_BYTES)


def _sound_tokens(data: bytes, kind: str) -> int:
    """Guess the tokens of sound by its length."""
    rate = _MP3_BYTES
    if kind == "wav" and data[12:16] == b"fmt ":
        rate = int.from_bytes(data[28:32], "little") or _MP3_BYTES
    return max(1, _SECOND_TOKENS * len(data) // rate)


# --- for people


def attachment_placeholders(kinds: Mapping[str, AttachmentKind], values: Mapping[str, Any]) -> dict[str, Loaded]:
    """Return what stands for a row's files and sound where they are only shown: nothing is read."""
    found: dict[str, Loaded] = {}
    for column, kind in kinds.items():
        if column in values:
            value = values[column]
            items = list(value) if isinstance(value, list | tuple) else [value]
            found[column] = tuple(_placeholder(kind, item) for item in items)
    return found


def _placeholder(kind: AttachmentKind, value: Any) -> Picture:
    name = ""
    if isinstance(value, Mapping):
        path, inside = value.get("path"), value.get("bytes")
        name, value = (path if isinstance(path, str) else ""), (inside if inside is not None else path)
    if isinstance(value, bytes | bytearray | memoryview):
        text = f"({len(value):,} bytes)"
    elif isinstance(value, str) and len(value) > _LONGER_THAN_NAMES:
        text = f"({len(value):,} characters)"
    else:
        text = name = str(value).encode("utf-8", "replace").decode()
    shown = orjson.dumps(text)
    told = _file_name(name) if kind == "file" else orjson.dumps("?")
    return Picture(shown, shown, MARKS[kind], told, 1)
