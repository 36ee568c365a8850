"""What the name of an input's file tells: its format, and how it is compressed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath

from batchchat.errors import UsageError

FORMATS = ("jsonl", "csv", "tsv", "parquet")
_EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
KNOWN = f"{', '.join(_EXTENSIONS)}; all but .parquet also with {', '.join(_COMPRESSIONS)}"
STATE = "_batchchat"
"""The folder that each output of batchchat has."""
_OTHER_DATA = frozenset(
    {".xlsx", ".xls", ".ods", ".avro", ".orc", ".arrow", ".feather", ".xml", ".zip", ".tar", ".xz", ".7z", ".lz4"}
    | {".db", ".sqlite", ".duckdb", *_COMPRESSIONS}
)


def split_name(file: PurePath | str) -> tuple[str, str | None]:
    """Return the extension of a file that tells its format, and its compression."""
    path = PurePosixPath(file)
    suffix = path.suffix.lower()
    if suffix in _COMPRESSIONS:
        return PurePosixPath(path.stem).suffix.lower(), _COMPRESSIONS[suffix]
    return suffix, None


def format_of(file: PurePath | str) -> str | None:
    """Return the format that a file's name tells; None if it tells none that is read."""
    suffix, compression = split_name(file)
    found = _EXTENSIONS.get(suffix)
    return None if found == "parquet" and compression else found


def input_kind(address: str, file: PurePath | str, chosen: str | None) -> str:
    """Return the format of a file: the chosen one, or the one that its name tells. Raises UsageError."""
    kind = chosen or format_of(file)
    if kind is None:
        raise UsageError(
            f"{address}: the extension {PurePosixPath(file).suffix or '(none)'} is not known",
            remedy=f"Known are {KNOWN}. If the file is one of these under another name, set input.format.",
        )
    return kind


def other_data(files: Iterable[PurePath | str]) -> list[str]:
    """Say which files of a folder look like data of a kind that is not read."""
    paths = map(PurePosixPath, files)
    names = [path.name for path in paths if format_of(path) is None and path.suffix.lower() in _OTHER_DATA]
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return [f"left out, since files of their kind are not read: {', '.join(names[:3])}{more}"] if names else []
