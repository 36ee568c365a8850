"""Where a hub of datasets is, and the token for it.

Both come from the environment and from the file that the hub's own tools keep, never from a job.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import httpx

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.transport.choose import is_this_machine

_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Where a hub is, and the token for it, with the name of where it comes from."""

    endpoint: httpx.URL
    token: str | None
    token_from: str

    def __repr__(self) -> str:
        return f"HubAccess({str(self.endpoint)!r})"

    @property
    def address(self) -> str:
        """Return the endpoint as text, without a slash at its end."""
        return str(self.endpoint).rstrip("/")

    def is_own(self, url: httpx.URL) -> bool:
        """Tell whether an address is one of the hub itself, which may see the token."""
        mine = self.endpoint
        return (url.scheme, url.host, url.port) == (mine.scheme, mine.host, mine.port)


def hub_access(url: str, environ: Mapping[str, str] | None = None) -> HubAccess:
    """Read the endpoint and the token, by the names that the hub's own tools use. `url` is what they are wanted for.

    Raises UsageError for an endpoint or a token that cannot be used. Nothing is sent.
    """
    environ = os.environ if environ is None else environ
    given = (environ.get("HF_ENDPOINT") or _ENDPOINT).strip()
    try:
        endpoint = httpx.URL(given)
    except httpx.InvalidURL:
        endpoint = httpx.URL("")
    if endpoint.scheme not in {"http", "https"} or not endpoint.host:
        raise UsageError(f"{url}: HF_ENDPOINT is no address of a hub", remedy=f"Write it as {_ENDPOINT}, or unset it.")
    if endpoint.userinfo:
        raise UsageError(f"{url}: HF_ENDPOINT holds credentials", remedy="Put a token into HF_TOKEN.")
    token, token_from = _token(url, environ)
    if token is not None and endpoint.scheme == "http" and not is_this_machine(endpoint.host):
        raise UsageError(
            f"{url}: the endpoint {given} is not encrypted, and the token of {token_from} would be sent to it",
            remedy="Set HF_ENDPOINT to an address with https://, or read without a token.",
        )
    return HubAccess(endpoint, token, token_from)


def _token(url: str, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the token, if there is one, and where it stands."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environ.get(name, "").strip():
            return _checked(url, environ[name], name), name
    cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME') or '~'}/.cache"
    home = environ.get("HF_HOME") or f"{cache}/huggingface"
    file = Path(os.path.expandvars(environ.get("HF_TOKEN_PATH") or f"{home}/token")).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except (OSError, ValueError):
        raise UsageError(f"{url}: the file of the token {file} cannot be read", remedy="Correct it.") from None
    return (_checked(url, text, str(file)), str(file)) if text.strip() else (None, "")


def _checked(url: str, text: str, where: str) -> str:
    """Return a token without what stands around it. Raises UsageError, which does not show it, if it is none."""
    token = "".join(text.split("\n")).strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise UsageError(f"{url}: {where} holds no token of a hub", remedy="Set it again, or unset it.")
    return token
