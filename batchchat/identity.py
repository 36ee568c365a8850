"""The identity of a request: `custom_id`, a digest that resume, dedupe and batch mode share.

What goes in is encoded so that no two different inputs give the same bytes: every part has a fixed size, says its
length first, or stands last behind a tag.

    request     = version tag · provider · 0x01 · digest (16) · sample index (8) · ("k" · key | "o" · occurrence (8))
    answer      = version tag · provider · 0x03 · digest (16) · sample index (8)
    failed row  = version tag · 0x02 · source · sample index (8) · occurrence (8) · bytes of the row

Numbers are little-endian, texts are UTF-8 behind their length (8 bytes) unless they stand last. The digest is
BLAKE2b with 16 bytes, written as 32 hexadecimal digits. A change here would make every user pay for every answer
again: tests hold golden vectors, and a new encoding needs a new version tag.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

_VERSION = b"batchchat custom_id 1\n"
_REQUEST = b"\x01"
_FAILED_ROW = b"\x02"
_ANSWER = b"\x03"
_SHARD = b"batchchat shard"
_number = struct.Struct("<Q").pack
_keyed = struct.Struct("<Qc").pack
_counted = struct.Struct("<QcQ").pack

DIGEST_SIZE = 16
"""Bytes of a request's content digest, and of a `custom_id` before it is written in hexadecimal."""


class Identity:
    """Gives the `custom_id` of every request to one provider."""

    __slots__ = ("_answers", "_prefix")

    def __init__(self, provider_identity: str) -> None:
        name = provider_identity.encode()
        head = _VERSION + _number(len(name)) + name
        self._prefix = blake2b(head + _REQUEST, digest_size=DIGEST_SIZE)
        self._answers = blake2b(head + _ANSWER, digest_size=DIGEST_SIZE)

    def custom_id(self, digest: bytes, *, key: str | None = None, occurrence: int = 0, sample_index: int = 0) -> str:
        """Return the identity of a request, 32 hexadecimal digits.

        `digest` is the content digest of the rendered request (16 bytes). A row is told from others that render to the
        same request by its `key`; if the job names no key, by `occurrence`, its number among them in input
        order. With a key the occurrence does not count.
        """
        hasher = self._prefix.copy()
        if key is None:
            hasher.update(digest + _counted(sample_index, b"o", occurrence))
        else:
            hasher.update(digest + _keyed(sample_index, b"k") + key.encode("utf-8", "surrogatepass"))
        return hasher.hexdigest()

    def answer_id(self, digest: bytes, sample_index: int = 0) -> bytes:
        """Return the identity of the answer to a request (16 bytes): the same for all rows that render to it."""
        hasher = self._answers.copy()
        hasher.update(digest + _number(sample_index))
        return hasher.digest()


def failed_row_id(source: str, raw: bytes, *, occurrence: int = 0, sample_index: int = 0) -> str:
    """Return the identity of a row that cannot be read or rendered, 32 hexadecimal digits.

    `raw` is the row's bytes (`RowBatch.raw`, or `row_bytes` of what was read), `occurrence` its number among equal
    ones of the same source. No provider goes in: such a row was never sent anywhere.
    """
    name = source.encode("utf-8", "surrogatepass")
    head = _VERSION + _FAILED_ROW + _number(len(name)) + name + _number(sample_index) + _number(occurrence)
    return blake2b(head + raw, digest_size=DIGEST_SIZE).hexdigest()


def shard_of(key: str | None, shards: int) -> int:
    """Return in which of so many shards the row with a key is: the same for ever, so that each answer is found again.

    A row without a key, which is never sent, is in shard 0: so it is known where its record is, and where equal ones
    are, without the bytes that it was read from.
    """
    if key is None:
        return 0
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=_SHARD).digest()
    return int.from_bytes(digest, "little") % shards


def row_bytes(values: Mapping[str, Any]) -> bytes:
    """Return bytes that tell a readable row from others, whatever the order of its fields: for `failed_row_id`."""
    option = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS
    try:
        return orjson.dumps(values, default=repr, option=option)
    except TypeError:  # a number beyond 64 bits, a lone surrogate: only the standard library writes them
        return json.dumps(values, default=repr, sort_keys=True).encode()
