"""Names that are likely to stand before a secret, and texts that look like a key."""

from __future__ import annotations

import re

_SECRET_NAME = re.compile(
    r"(?:^|[-_])(?:authori[sz]ation|auth|cookie|passw(?:or)?d|secret|token|credentials?|sig|signature"
    r"|(?:api|access|auth|private|subscription)[-_]?key)(?:$|[-_])",
    re.IGNORECASE,
)
LIKE_A_KEY = re.compile(r"(?=.*[a-z])(?=.*\d).{20,}")


def is_secret_name(name: str, *, bare_key: bool = False) -> bool:
    """Return whether a value of this name is likely a secret; with `bare_key` also of a plain `key` or `…-key`."""
    return bool(_SECRET_NAME.search(name)) or (bare_key and bool(re.search(r"(?i)(?:^|[-_])key$", name)))
