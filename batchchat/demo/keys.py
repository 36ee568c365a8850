"""Keys that the demo provider asks for: one that stays, or one that expires and is replaced in a file."""

from __future__ import annotations

import hmac
import math
import os
import secrets
from collections.abc import Iterable

import anyio

from batchchat.demo.request import ApiError
from batchchat.demo.response import plain_error
from batchchat.demo.server_options import DemoOptions


class KeyFileError(ValueError):
    """The file for keys that expire cannot be written."""


class KeyGate:
    """Lets requests with the valid key in.

    With a lifetime the valid key lies in a file. Once it has expired, the next request puts another one there, and gets
    401 itself if it came with the old one.
    """

    def __init__(self, options: DemoOptions) -> None:
        self._lifetime = options.key_lifetime_s
        self._file = options.key_file
        self._key = None if options.api_key is None else options.api_key.encode()
        self._expires: float | None = None
        if self._lifetime is not None:
            try:
                self._replace()
            except OSError as error:
                raise KeyFileError(error.strerror or str(error)) from None

    def check(self, given: bytes | None) -> None:
        """Raise 401 if a key is needed and none came or it has expired, 403 if it is another one. No key is quoted."""
        if self._key is None:
            return
        if self._lifetime is not None:
            now = anyio.current_time()
            # The time begins with the first request: the client needs no clock of ours.
            if self._expires is None:
                self._expires = now + self._lifetime
            elif now >= self._expires:
                self._replace()
                self._expires = now + self._lifetime
        if given is None:
            raise plain_error(401)
        if not hmac.compare_digest(given.removeprefix(b"Bearer "), self._key):
            # A wrong key is 403 at Scaleway, one that has expired is 401.
            if self._lifetime is None:
                raise plain_error(403)
            raise ApiError(401, "Incorrect API key provided: it has expired.", code="invalid_api_key")

    def expire(self) -> None:
        """Let the valid key expire now. May be called from any thread."""
        self._expires = -math.inf

    def _replace(self) -> None:
        """Make another key the valid one, and put it into the file. Raises OSError."""
        assert self._file is not None  # noqa: S101 - options with a lifetime have a file
        self._key = f"demo-{secrets.token_hex(16)}".encode()
        new = self._file.with_name(f".{self._file.name}.new")
        new.unlink(missing_ok=True)
        number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(number, self._key + b"\n")
        finally:
            os.close(number)
        # In one step, so that nobody reads half a key.
        new.replace(self._file)


def key_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the key of a request: from `Authorization`, or from `api-key`, as Azure's clients send it."""
    found = dict(headers)
    return found.get(b"authorization", found.get(b"api-key"))
