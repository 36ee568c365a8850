"""The shell of every page: one HTML file that needs no other, and can ask nothing of the network.

A policy in the page allows the scripts written here, known by their digests, and nothing else: no request of any kind
leaves it. Data goes in as text that Jinja2 escapes, as JSON that cannot end its element, or as compressed blocks; the
scripts put it on the page as text, never as markup.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import orjson
from markupsafe import Markup

import batchchat
from batchchat import format as wording
from batchchat.errors import StorageError, UsageError
from batchchat.report.charting import NAME, charting_library, digest, require_library

_GENERATOR = '<meta name="generator" content="batchchat'
_SUFFIXES = {".html", ".htm"}


def check_page(target: Path) -> None:
    """Find out before a run whether its page can be written after it.

    Raises UsageError: no charting library, a folder that cannot be written to, or a file there that is no page of
    batchchat, which is never written over.
    """
    require_library()
    if target.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{target}: a report is an .html file", remedy=f"Call it {target.with_suffix('.html')}.")
    # Folders that are missing are made with the page: the nearest one that exists must allow it.
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "is no folder" if not folder.is_dir() else "cannot be written to"
        raise UsageError(f"{target}: {folder} {what}", remedy="Choose another place for the report.")
    if target.is_dir():
        raise UsageError(f"{target} is a folder", remedy="Give the name of a file.")
    try:
        if target.exists() and target.stat().st_size and not _is_page(target):
            raise UsageError(
                f"{target} exists, and is no report of batchchat",
                remedy="Choose another name: only a report is written over.",
            )
    except OSError as error:
        raise UsageError(f"{target} cannot be read: {error.strerror}", remedy="Choose another name.") from error


def _is_page(target: Path) -> bool:
    with target.open("rb") as file:
        return _GENERATOR.encode() in file.read(4_096)


def write_page(target: Path, template: str, *, scripts: Iterable[str] = (), **values: Any) -> None:
    """Fill a template and write the page, whole or not at all.

    `scripts` are added to those that every page has. Values that are iterators are read as they are written, so that
    a large page need not be in memory. Raises UsageError where `check_page` would, StorageError where the disk fails.
    """
    check_page(target)
    library = charting_library()
    script = "\n".join(_asset(name) for name in ("page.js", "charts.js", *scripts))
    stream = (
        _environment()
        .get_template(template)
        .stream(
            generator=f"batchchat {batchchat.__version__}",
            written=datetime.now(UTC),
            policy=_policy(digest(script), library.digest),
            style=Markup(_asset("style.css")),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704 - our own files
            library=library,
            library_name=NAME,
            **values,
        )
    )
    stream.enable_buffering(64)
    # In the same folder, since only there is the rename at the end one step.
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            for text in stream:
                file.write(text)
        draft.replace(target)
    except OSError as error:
        raise StorageError(
            f"{target}: {error.strerror or error}", remedy="Choose another place for the report."
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def _policy(*digests: str) -> str:
    scripts = " ".join(f"'{text}'" for text in digests)
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _asset(name: str) -> str:
    return (resources.files("batchchat.report") / "assets" / name).read_text(encoding="utf-8").strip()


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("batchchat.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "about": wording.about,
        "amount": wording.count,
        "duration": wording.duration,
        "embedded": embedded,
        "money": wording.money,
        "moment": moment,
        "one_line": wording.one_line,
        "percent": wording.share,
        "rate": wording.rate,
        "share": share,
        "short": wording.short,
        "visible": wording.visible,
        "written": written,
    }
    environment.globals |= {"plural": wording.plural, "UNKNOWN": wording.UNKNOWN}
    return environment


def embedded(value: object) -> Markup:
    """Return JSON for a script element: nothing in it can end the element or open a comment."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # an integer beyond 64 bits
        text = json.dumps(value, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - made safe above


def written(value: object) -> str:
    """Write a value of a job as JSON does, a text as it is."""
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return wording.visible(text)


def moment(time: datetime | None) -> str:
    """Write a time as `24 Nov 2026, 10:41 UTC`."""
    return f"{time:%d %b %Y, %H:%M} UTC".lstrip("0") if time is not None else wording.UNKNOWN


def share(part: float, whole: float) -> str:
    """Write a share as a CSS length: a bar's width."""
    return f"{100 * part / whole:.2f}%" if whole else "0%"
