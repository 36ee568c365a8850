"""Which files a URL means, of all that a bucket or a dataset of a hub has.

The rules for globs, for names that begin with `.` or `_`, and for outputs of batchchat are those of a folder of this
machine.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn, Protocol

from batchchat.addresses import Address, is_url
from batchchat.errors import UsageError
from batchchat.sources.input_file import FoundFiles, InputFile
from batchchat.sources.naming import KNOWN, STATE, format_of, input_kind, other_data, split_name
from batchchat.sources.ranges import Fetch
from batchchat.sources.remote_file import RemoteFile

_MAGIC = re.compile(r"[*?\[]")
_SHOWN = 5


class Entry(NamedTuple):
    """A file as a catalog lists it. `tag` tells one content of it from another; None if the catalog has no such."""

    path: str
    size: int
    tag: str | None
    mtime_ns: int = 0


class Catalog(Protocol):
    """What is there, in one bucket or one dataset.

    Its methods raise UsageError if a person must act, and StoreError if it does not answer.
    """

    root: str
    """The URL below which all paths lie."""
    thing: str
    """What a file is called there."""
    pinned: bool
    """Whether nothing that is listed here changes any more."""

    def head(self, path: str) -> Entry | None:
        """Return the file of this name; None if there is none."""

    def below(self, folder: str, *, deep: bool) -> list[Entry]:
        """Return the files of a folder, sorted by their paths; `deep`: also those of folders in it."""

    def names(self, folder: str) -> list[str]:
        """Return some paths of what a folder holds itself; those of folders end with a slash."""

    def reader(self, entry: Entry) -> Fetch:
        """Return what reads a file by ranges."""

    def is_data(self, path: str) -> bool:
        """Tell whether a file may hold rows, and is none that the service itself keeps beside them."""


def find_remote(url: str, path: str, catalog: Catalog, chosen: str | None, output: Address | None) -> FoundFiles:
    """List the files that a URL means, in the order they are read. `path` is the URL's part below the catalog's root.

    It names a file, a folder (all files below it with a known extension), or a glob. `chosen` is the format that the
    job names, `output` the place of the records.

    Raises UsageError if there is nothing to read, and what the catalog raises.
    """
    listing = _Listing(catalog, url)
    found = listing.glob(path) if _MAGIC.search(path) and catalog.head(path) is None else listing.named(path)
    files = [listing.file(entry, folder, chosen) for entry, folder in found]
    kinds = {file.format for file in files}
    if len(kinds) > 1:
        raise UsageError(
            f"{url}: the input mixes {' and '.join(sorted(kinds))} files",
            remedy=f"Choose one kind with a glob, for instance input: {url.rstrip('/')}/*.parquet",
        )
    _check_output(url, files, output)
    left_out = listing.left_out + (other_data(listing.unread) if chosen is None else [])
    return FoundFiles(files, left_out, catalog.pinned)


def _check_output(url: str, files: list[InputFile], output: Address | None) -> None:
    """Refuse to read what the job itself writes."""
    if output is None or not is_url(output):
        return
    place = str(output).rstrip("/")
    for file in files:
        if file.address.startswith((f"{place}/data/", f"{place}/{STATE}/")):
            raise UsageError(
                f"{file.address}: this file of the input is part of the output {place}",
                remedy="Choose another place for the output: a job never reads what it writes.",
            )
    inside = place.removeprefix(f"{url.rstrip('/')}/") if not _MAGIC.search(url) else place
    if inside != place and inside[0] not in "._":
        raise UsageError(
            f"the output {place} lies inside the input {url}: its records would be read as rows",
            remedy="Choose an output beside the input's folder, or name the input's files, for instance *.jsonl",
        )


class _Listing:
    """What a catalog has of one URL. `left_out` and `unread` are the files that are no input."""

    def __init__(self, catalog: Catalog, url: str) -> None:
        self.left_out: list[str] = []
        self.unread: list[str] = []
        self._catalog = catalog
        self._url = url

    def named(self, path: str) -> list[tuple[Entry, str]]:
        """Return the file of this name, or those of the folder, each with the folder that names count from."""
        one = self._catalog.head(path) if path and not path.endswith("/") else None
        if one is not None:
            return [(one, path.rpartition("/")[0])]
        folder = path.rstrip("/")
        entries = self._catalog.below(folder, deep=True)
        if not entries:
            self._missing(folder)
        entries = self._without_outputs(entries, folder)
        shown = [entry for entry in entries if not _is_hidden(_inside(entry.path, folder))]
        self.unread = [entry.path for entry in shown]
        data = [entry for entry in shown if format_of(entry.path) and self._catalog.is_data(entry.path)]
        if not data:
            more = f"; {self.left_out[0]}" if self.left_out else ""
            raise UsageError(
                f"{self._url}: the folder holds no input file{more}", remedy=f"Known extensions are {KNOWN}."
            )
        return [(entry, folder) for entry in data]

    def glob(self, pattern: str) -> list[tuple[Entry, str]]:
        """Return the files that a pattern names."""
        magic = _MAGIC.search(pattern)
        fixed = pattern[: magic.start()].rpartition("/")[0] if magic is not None else pattern
        matches = re.compile(_pattern(pattern)).fullmatch
        # A star stays within its folder: what lies deeper need not be listed, and may be much.
        deep = "/" in _inside(pattern, fixed) or "**" in pattern
        entries = [entry for entry in self._catalog.below(fixed, deep=deep) if matches(entry.path)]
        if "**" in pattern:
            entries = self._without_outputs(entries, fixed)
        if not entries:
            where = "/".join(filter(None, (self._catalog.root, fixed)))
            raise UsageError(f"{self._url}: no {self._catalog.thing} matches", remedy=f"Looked in {where}.")
        return [(entry, fixed) for entry in entries]

    def file(self, entry: Entry, folder: str, chosen: str | None) -> InputFile:
        """Make an input's file of an entry."""
        address = f"{self._catalog.root}/{entry.path}"
        return RemoteFile(
            address=address,
            name=_inside(entry.path, folder),
            format=input_kind(address, entry.path, chosen),
            compression=split_name(entry.path)[1],
            size=entry.size,
            fetch=self._catalog.reader(entry),
            tag=entry.tag,
            mtime_ns=entry.mtime_ns,
        )

    def _without_outputs(self, entries: list[Entry], folder: str) -> list[Entry]:
        """Leave out the outputs and evaluations of batchchat below a folder, and note it."""
        tops: dict[str, None] = {}
        for entry in entries:
            inside = _inside(entry.path, folder)
            top, state, _ = f"/{inside}".partition(f"/{STATE}/")
            if state and top:
                tops[top.strip("/").partition("/variants/")[0]] = None
        for top in tops:
            place = "/".join(filter(None, (self._catalog.root, folder, top)))
            self.left_out.append(f"{place}: left out, since it is an output of batchchat; name it to read it")
        below = tuple(f"{top}/" for top in tops)
        return [entry for entry in entries if not _inside(entry.path, folder).startswith(below)] if below else entries

    def _missing(self, folder: str) -> NoReturn:
        """Say that there is nothing of this name, and what there is."""
        parent = folder.rpartition("/")[0]
        there = self._catalog.names(parent)
        names = [_inside(name, parent) for name in there if format_of(name) or name.endswith("/")][:_SHOWN]
        where = "/".join(filter(None, (self._catalog.root, parent)))
        remedy = f"In {where} there is {', '.join(names)}." if names else f"{where} holds no input file."
        raise UsageError(f"{self._url}: no such {self._catalog.thing} or folder", remedy=remedy)


def _inside(key: str, folder: str) -> str:
    return key[len(folder) :].lstrip("/") if folder and key.startswith(folder) else key


def _is_hidden(name: str) -> bool:
    return any(part[:1] in {".", "_"} for part in name.split("/"))


def _pattern(glob: str) -> str:
    """Return a glob of keys as a regular expression: a star stays within a folder, `**` means any number of them."""
    pieces: list[str] = []
    place = 0
    while place < len(glob):
        rest = glob[place:]
        if rest.startswith("**/"):
            pieces.append("(?:[^/.][^/]*/)*")
            place += 3
        elif rest.startswith("**"):
            pieces.append("(?:[^/.][^/]*/)*[^/.][^/]*")
            place += 2
        elif rest[0] in "*?":
            # As in a folder of this machine, a star at the beginning of a name does not mean a dot.
            first = r"(?!\.)" if place == 0 or glob[place - 1] == "/" else ""
            pieces.append(first + ("[^/]*" if rest[0] == "*" else "[^/]"))
            place += 1
        elif rest[0] == "[" and (end := rest.find("]", 2)) > 0:
            inside = rest[1:end].replace("\\", r"\\")
            pieces.append(f"[{'^/' + inside[1:] if inside[0] == '!' else inside}]")
            place += end + 1
        else:
            pieces.append(re.escape(rest[0]))
            place += 1
    return "".join(pieces)
