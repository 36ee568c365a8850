"""The charting library, as it is put into a page: plotly.js out of the `plotly` package (MIT)."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from functools import cache
from importlib import metadata
from importlib.util import find_spec

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError

NAME = "plotly.js"


@dataclass(frozen=True, slots=True)
class Library:
    """A script to embed: `packed` is gzip in base64, `digest` what a Content-Security-Policy knows it by."""

    version: str
    license: str
    packed: str
    digest: str


def require_library() -> None:
    """Raise UsageError where charts cannot be drawn, with the command that mends it."""
    if find_spec("plotly") is None:
        raise UsageError(
            "an HTML report needs the package plotly, which is not installed",
            remedy="Install it with: pip install plotly",
        )


@cache
def charting_library() -> Library:
    """Return the installed library. Raises UsageError where there is none."""
    require_library()
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    found = re.search(r"plotly\.js v([\w.-]+)", source[:500])
    return Library(
        version=found[1] if found else metadata.version("plotly"),
        license=_license(),
        packed=pack(source.encode()),
        digest=digest(source),
    )


def _license() -> str:
    for file in metadata.files("plotly") or ():
        # Its extensions for notebooks have files of this name too, about other packages.
        if file.name.upper().startswith("LICENSE") and ".dist-info" in str(file):
            return file.read_text(encoding="utf-8").strip()
    return "MIT License. Copyright (c) Plotly, Inc."


def pack(data: bytes) -> str:
    """Compress for a page, which undoes it with `DecompressionStream`. Equal data gives equal text."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")


def digest(script: str) -> str:
    """Return the source expression that allows exactly this script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"
