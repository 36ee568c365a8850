"""Images of a job's rows: read, known by their first bytes, bounded in size, and written as the API takes them.

A column that a job calls an image holds one of these, or a list of them: a path, bytes, a struct of bytes and path
as Hugging Face datasets have it, an https address, or a data URL. An address is passed on; everything else is sent
as a data URL. In the identity of the request a digest of the image stands for it: a changed picture asks again.

Data never chooses what is read: a path counts from the folder of its input file, or from the one that the job names,
and does not lead out of it. What is read must be an image, so that no other file can be sent by mistake.

Reading blocks: this is work for a thread. `ImageReader.batches` loads a few rows ahead, bounded in bytes.
"""

from __future__ import annotations

import binascii
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from batchchat.records import Loaded, Picture, RowBatch

MAX_BYTES = 10_000_000
"""The largest image that is sent unless the job says otherwise, in bytes before base64."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_OTHERS = {b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"<svg": "SVG", b"<?xml": "XML"}
_BRANDS = {b"avif": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC"}
_DATA_URL = re.compile(r"data:([^,]*),", re.IGNORECASE)
_DATA_URL_HEAD = re.compile(r"data:[a-z0-9.+/-]*(?:;[a-z0-9.+=-]+)*;base64,", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SHOWN = 200
_DIGEST_SIZE = 16
_DATA_URL_SHOWN = 40
_ACCEPTED = "PNG, JPEG, GIF or WebP"


class ImageError(Exception):
    """What a column holds is no image that can be sent; the message says why. It fails its row alone."""


class ImageReader:
    """Reads the images of rows. `folder_of` gives the folder of an input file by the name that its rows bear.

    `root` is the folder that paths are relative to, and do not leave; None takes the folder of the row's file. An image
    of more than `max_bytes` is refused. `ahead_bytes` is how much of loaded images one batch of rows holds, unless a
    single row holds more. `others` are the columns of files and sound, with what loads them.
    """

    def __init__(
        self,
        columns: frozenset[str],
        folder_of: Callable[[str], Path | None],
        *,
        root: Path | None,
        max_bytes: int,
        ahead_bytes: int = 16 * 2**20,
        others: Mapping[str, Callable[[Any, Path | None], tuple[Picture, ...]]] | None = None,
    ) -> None:
        self._columns = columns
        self._folder_of = folder_of
        self._root = root
        self._max_bytes = max_bytes
        self._ahead_bytes = ahead_bytes
        self._others = others or {}

    def load(self, values: Mapping[str, Any], source: str) -> dict[str, Loaded]:
        """Return the images of one row by column, or why there are none."""
        folder = self._folder_of(source)
        root = self._root if self._root is not None else folder
        found: dict[str, Loaded] = {}
        for column in self._columns:
            if column in values:  # else the template says what is missing
                try:
                    found[column] = _pictures(values[column], root, self._max_bytes)
                except ImageError as error:
                    found[column] = str(error)
        for column, load in self._others.items():
            if column in values:
                try:
                    found[column] = load(values[column], folder)
                except ImageError as error:
                    found[column] = str(error)
        return found

    def batches(self, batch: RowBatch, wanted: Callable[[int], bool]) -> Iterator[RowBatch]:
        """Yield a batch with the images of the rows whose index is wanted, in pieces of `ahead_bytes`."""
        images: list[Mapping[str, Loaded] | None] = []
        start, size = 0, 0
        for offset, values in enumerate(batch.values):
            loaded = None
            if values is not None and wanted(batch.first_index + offset):
                loaded = self.load(values, batch.source)
                size += sum(len(each.url) for found in loaded.values() if not isinstance(found, str) for each in found)
            images.append(loaded)
            if size >= self._ahead_bytes:
                yield _piece(batch, start, images)
                start, size, images = offset + 1, 0, []
        if images:
            yield _piece(batch, start, images)


def _piece(batch: RowBatch, start: int, images: list[Mapping[str, Loaded] | None]) -> RowBatch:
    """Rows of a batch with their images. It has no place: rows that stand as before may name pictures that changed."""
    stop = start + len(images)
    if (start, stop) == (0, len(batch.values)):
        return replace(batch, place=None, images=images)
    here = range(start, stop)
    return replace(
        batch,
        first_index=batch.first_index + start,
        columns=batch.columns.slice(start, stop - start),
        values=batch.values[start:stop],
        failures={offset - start: batch.failures[offset] for offset in here if offset in batch.failures},
        raw={offset - start: batch.raw[offset] for offset in here if offset in batch.raw},
        nbytes=batch.nbytes * len(images) // len(batch.values),
        place=None,
        images=images,
    )


# --- what a column may hold


def _pictures(value: Any, root: Path | None, max_bytes: int) -> tuple[Picture, ...]:
    if not isinstance(value, list | tuple):
        return (_picture(value, root, max_bytes),)
    if not value:
        raise ImageError("is an empty list")
    found = []
    for number, item in enumerate(value):
        try:
            found.append(_picture(item, root, max_bytes))
        except ImageError as error:
            raise ImageError(f"item {number} {error}") from None
    return tuple(found)


def _picture(value: Any, root: Path | None, max_bytes: int) -> Picture:
    """Return one image. Raises ImageError."""
    if isinstance(value, Mapping):
        inside = value.get("bytes")
        value = inside if inside is not None else value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return _data_url(bytes(value), max_bytes, "holds")
    if not isinstance(value, str):
        raise ImageError("is null" if value is None else f"is {_kind(value)}, not a path, bytes or an address")
    text = value.strip()
    if not text:
        raise ImageError("is empty")
    given = _DATA_URL.match(text)
    if given is not None:
        return _data_url(_decoded(given, text, max_bytes), max_bytes, "holds")
    scheme = _SCHEME.match(text)
    if scheme is not None:
        return _address(text, scheme[1].lower())
    return _data_url(read_below(root, value, max_bytes), max_bytes, f"names {shown_text(value)}, which holds")


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), type(value).__name__)


def _address(text: str, scheme: str) -> Picture:
    if scheme not in {"https", "http"}:
        raise ImageError(
            f"is an address of the kind {scheme}://, which a provider does not read; give a path or https://"
        )
    if not text.isprintable() or " " in text:
        raise ImageError(f"is no valid address: {shown_text(text)}")
    return _as_it_is(text)


def _as_it_is(text: str) -> Picture:
    url = orjson.dumps(text)
    return Picture(url, url)


def _decoded(given: re.Match[str], text: str, max_bytes: int) -> bytes:
    if not given[1].lower().endswith(";base64"):
        raise ImageError("is a data URL that is not base64")
    if (len(text) - given.end()) * 3 // 4 > max_bytes + 2:
        raise ImageError(_too_large("holds", (len(text) - given.end()) * 3 // 4, max_bytes))
    try:
        return binascii.a2b_base64(text[given.end() :].encode("ascii"), strict_mode=True)
    except ValueError as error:  # binascii.Error, and UnicodeEncodeError
        raise ImageError(f"is a data URL whose base64 is damaged: {error}") from None


def _data_url(data: bytes, max_bytes: int, what: str) -> Picture:
    """Write image bytes as a data URL. Raises ImageError."""
    if len(data) > max_bytes:
        raise ImageError(_too_large(what, len(data), max_bytes))
    kind = image_type(data)
    if kind is None:
        raise ImageError(f"{what} {_what_else(data)}, not an image: {_ACCEPTED} can be sent")
    url = b"".join((b'"data:', kind.encode(), b";base64,", binascii.b2a_base64(data, newline=False), b'"'))
    return Picture(url, b'"image:blake2b:%b"' % blake2b(data, digest_size=_DIGEST_SIZE).hexdigest().encode())


def _too_large(what: str, size: int, max_bytes: int, field: str = "images") -> str:
    return f"{what} {size:,} bytes, and {field}.max_bytes is {max_bytes:,}"


def image_type(data: bytes) -> str | None:
    """Tell the media type of an image by its first bytes: PNG, JPEG, GIF or WebP; None for anything else."""
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _what_else(data: bytes) -> str:
    if not data:
        return "nothing"
    for signature, name in _OTHERS.items():
        if data.startswith(signature):
            return name
    return _BRANDS.get(data[8:12], "something else") if data[4:8] == b"ftyp" else "something else"


# --- files


def read_below(root: Path | None, name: str, max_bytes: int, field: str = "images") -> bytes:
    """Read a file below a folder, one byte more than allowed at most; `field` bounds it. Raises ImageError."""
    if root is None:
        raise ImageError(
            f"names {shown_text(name)}, and the input lies in no folder: {field}.root names the folder of {field}"
        )
    try:
        real_root = os.path.realpath(root)
        path = os.path.realpath(os.path.join(real_root, name))  # noqa: PTH118 - a row's path need not be a valid one
        if os.path.commonpath((real_root, path)) != real_root:
            raise ImageError(f"names {shown_text(name)}, which lies outside {root}: {field}.root names another folder")
        # A pipe or a device must not block the run for ever: it is opened without waiting, and then refused.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise ImageError(f"names {shown_text(name)}, which is no regular file")
            if about.st_size > max_bytes:
                raise ImageError(_too_large(f"names {shown_text(name)}, which holds", about.st_size, max_bytes, field))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ImageError(f"names {shown_text(name)}, which cannot be read in {root}: {error.strerror}") from None
    except ValueError:  # a null byte, a lone surrogate
        raise ImageError(f"names {shown_text(name)}, which is no valid path") from None


def shown_text(text: str) -> str:
    """Return a value for a message, cut if it is long."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


# --- for people


def placeholders(columns: frozenset[str], values: Mapping[str, Any]) -> dict[str, Loaded]:
    """Return what stands for a row's images where they are only shown: nothing is read."""
    return {
        column: tuple(_as_it_is(_placeholder(item)) for item in _items(values[column]))
        for column in columns
        if column in values
    }


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _placeholder(value: Any) -> str:
    if isinstance(value, Mapping):
        path, inside = value.get("path"), value.get("bytes")
        named = f"{path} " if isinstance(path, str) and inside is not None else ""
        return named + _placeholder(inside if inside is not None else path)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value):,} bytes)"
    return shortened(str(value).encode("utf-8", "replace").decode())


def shortened(url: str, *, content: bool = False) -> str:
    """Return an address whole, and of a data URL its beginning and its length; also of `content`, which is base64."""
    if len(url) <= 2 * _DATA_URL_SHOWN or not (content or _DATA_URL_HEAD.match(url)):
        return url
    return f"{url[:_DATA_URL_SHOWN]}… ({len(url):,} characters)"
