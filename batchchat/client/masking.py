"""A provider's keys taken out of whatever a server sends back: it may repeat what it was sent.

A server can echo a key as it stands, inside JSON that escapes some of its characters, inside JSON within JSON, or
percent-encoded. Nothing that holds it may come to rest in a record, a log line or an error.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from urllib.parse import quote

from batchchat.records import Completion, Reply

STARS = "***"
_SHORTEST = 8
"""Characters of a key that is masked. Keys of services have 20 and more; `EMPTY` and `none` stand for no key."""
_KEPT = 4
"""Keys that are masked at once. An answer comes within minutes, and a new key comes after many."""


class KeyMask:
    """Replaces a client's keys by `***`: the one in use and the few before it, which late answers may repeat.

    Called with a text, it finds every spelling. A key of fewer than 8 characters is no secret and is left alone:
    masking `EMPTY` or `x` would damage ordinary words.
    """

    def __init__(self, key: str | None = None) -> None:
        self._keys: tuple[str, ...] = ()
        self._forms: list[bytes] = []
        self._pattern: re.Pattern[str] | None = None
        self.add(key)

    def __repr__(self) -> str:
        return "KeyMask(***)" if self._forms else "KeyMask(None)"

    def add(self, key: str | None) -> None:
        """Mask this key too, from now on."""
        # The same key may come again: a command that is asked for a new one may give the old one.
        if key is None or len(key) < _SHORTEST or key in self._keys:
            return
        self._keys = (key, *self._keys)[:_KEPT]
        forms = {form for one in self._keys for form in (one, json.dumps(one)[1:-1], quote(one), quote(one, safe=""))}
        # The longest first: one spelling may be the beginning of another.
        self._forms = [form.encode() for form in sorted(forms, key=lambda form: (-len(form), form))]
        ordered = sorted(self._keys, key=len, reverse=True)
        self._pattern = re.compile("|".join("".join(map(_spellings, one)) for one in ordered))

    def __call__(self, text: str) -> str:
        """Return the text without the keys."""
        return text if self._pattern is None else self._pattern.sub(STARS, text)

    def clean(self, body: bytes) -> bytes:
        """Return the body without the key's usual spellings: a quick search for a few exact byte strings."""
        for form in self._forms:
            if form in body:
                body = body.replace(form, STARS.encode())
        return body

    def may_hide(self, body: bytes) -> bool:
        """Return whether the body holds escapes that could spell the key in a way that `clean` does not know."""
        return bool(self._forms) and (b"\\u00" in body or b"\\/" in body or b"%" in body or b"&#" in body)

    def cover(self, reply: Reply) -> None:
        """Take the key out of what was received, in every spelling."""
        reply.text = self(reply.text) if reply.text is not None else None
        reply.request_id = self(reply.request_id) if reply.request_id is not None else None
        reply.model = self(reply.model) if reply.model is not None else None
        if reply.completion is not None:
            reply.completion = _masked_completion(reply.completion, self)


def _spellings(character: str) -> str:
    """Return a pattern for one character: plain or after backslashes, as \\u0061, %61, &#97; or &#x61;."""
    code = ord(character)
    hexadecimal = f"{code:02x}"
    digits = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in hexadecimal)
    return rf"(?:\\*{re.escape(character)}|\\+u00{digits}|%(?:25)*{digits}|&#0*{code};|&#[xX]0*{digits};)"


def _masked_completion(completion: Completion, mask: KeyMask) -> Completion:
    def masked(text: str | None) -> str | None:
        return mask(text) if text is not None else None

    calls = completion.tool_calls
    # A key is cut into tokens, none of which holds it: the text of all of them shows it.
    tokens = "".join(str(item["token"]) for item in completion.logprobs or ())
    return replace(
        completion,
        text=masked(completion.text),
        finish_reason=masked(completion.finish_reason),
        model=masked(completion.model),
        request_id=masked(completion.request_id),
        refusal=masked(completion.refusal),
        reasoning=masked(completion.reasoning),
        system_fingerprint=masked(completion.system_fingerprint),
        service_tier=masked(completion.service_tier),
        tool_calls=calls and tuple({name: masked(value) for name, value in call.items()} for call in calls),
        logprobs=completion.logprobs if mask(tokens) == tokens else None,
    )
