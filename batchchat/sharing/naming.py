"""What a shared limit is called, and where the files of limits are."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path


def limits_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of the limit files: the same for all processes of a user, also without a session (cron)."""
    cache = environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "batchchat" / "limits"


def limit_name(address: str | None, model: str, key: str | None, about: str = "") -> str:
    """Return the name of a limit: a one-way digest of who is asked, for what, and with which key."""
    digest = blake2b(digest_size=16, person=b"batchchat limit")
    for part in (address or "", model, key or "", about):
        digest.update(len(part).to_bytes(8, "big") + part.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
