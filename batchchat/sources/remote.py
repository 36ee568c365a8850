"""Inputs on object storage: which objects a URL means, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NoReturn

import pyarrow as pa

from batchchat.addresses import Address, is_url
from batchchat.errors import UsageError
from batchchat.objects import RETRIES, open_store, store_error
from batchchat.sources.input_file import FoundFiles, InputFile, Stamp
from batchchat.sources.naming import KNOWN, STATE, format_of, input_kind, other_data, split_name
from batchchat.sources.ranges import RangeFile

_MAGIC = re.compile(r"[*?\[]")
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile(InputFile):
    """One object, read by ranges. Its ETag, which comes with each range, tells if it is still the same.

    `tag` is None for a store that gives none, or whose addresses never change what they hold.
    """

    store: Any = field(repr=False)
    key: str
    tag: str | None
    mtime_ns: int

    @property
    def folder(self) -> None:
        """None: it lies in no folder of this machine."""
        return

    def open(self) -> RangeFile:
        """Open the object to read it from its first byte on; the next ranges are fetched ahead."""
        return RangeFile.stream(self._fetch, self.size)

    @contextmanager
    def for_arrow(self, columns: int = 0) -> Iterator[pa.PythonFile]:
        """Open the object for Arrow: what was fetched for one column serves its neighbours."""
        with closing(RangeFile.random(self._fetch, self.size, columns)) as opened:
            yield pa.PythonFile(opened, mode="r")

    def read_at(self, offset: int, size: int) -> bytes:
        """Return so many bytes from this offset on, or fewer at the end."""
        end = min(self.size, offset + size)
        return self._fetch(offset, end) if offset < end else b""

    def check_unchanged(self) -> None:
        """Do nothing: each range that is read tells, and the list of objects at the end of a pass."""

    def stamp(self) -> Stamp:
        """Return what the object looked like when it was listed."""
        digest = blake2b((self.tag or "").encode(), digest_size=7).digest()
        return Stamp(self.name, self.size, int.from_bytes(digest), self.mtime_ns, 0, self.tag is not None)

    def _fetch(self, start: int, end: int) -> bytes:
        """Return a range. Raises StorageError if the object is another one by now, or cannot be read."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            answer = obstore.get(self.store, self.key, options={"range": (start, end)})
            data = bytes(answer.bytes())
        except FileNotFoundError:
            self._changed()
        except (BaseError, OSError) as error:
            raise store_error(self.address, error) from error
        tag = answer.meta["e_tag"]
        # A shorter range means an object that was replaced by a shorter one, also at a store without ETags.
        if len(data) != end - start or (self.tag is not None and tag is not None and tag != self.tag):
            self._changed()
        return data


def find_objects(url: str, chosen: str | None, output: Address | None = None, *, retries: int = RETRIES) -> FoundFiles:
    """List the objects that a URL means, in the order they are read.

    It names an object, a folder (all objects below it with a known extension), or a glob. The rules for names that
    begin with `.` or `_`, and for outputs of batchchat, are those of a folder of this machine.

    Raises UsageError if there is nothing to read, or the store refuses, and StoreError if it does not answer.
    """
    store, key = open_store(url, retries=retries)
    listing = _Listing(store, url)
    found = listing.glob(key) if _MAGIC.search(key) and not listing.has(key) else listing.named(key)
    files = [listing.file(meta, folder, chosen) for meta, folder in found]
    kinds = {file.format for file in files}
    if len(kinds) > 1:
        raise UsageError(
            f"{url}: the input mixes {' and '.join(sorted(kinds))} files",
            remedy=f"Choose one kind with a glob, for instance input: {url.rstrip('/')}/*.parquet",
        )
    _check_output(url, files, output)
    return FoundFiles(files, listing.left_out + (other_data(listing.unread) if chosen is None else []))


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
    """What a bucket says that is there, of one URL. `left_out` and `unread` are the objects that are no input."""

    def __init__(self, store: Any, url: str) -> None:
        self.left_out: list[str] = []
        self.unread: list[str] = []
        self._store = store
        self._url = url
        scheme, _, rest = url.partition("://")
        self._root = f"{scheme}://{rest.partition('/')[0]}"

    def has(self, key: str) -> bool:
        """Tell whether there is an object of this name."""
        return self._head(key) is not None

    def named(self, key: str) -> list[tuple[Any, str]]:
        """Return the object of this name, or those of the folder, each with the folder that names count from."""
        one = self._head(key) if key and not key.endswith("/") else None
        if one is not None:
            return [(one, key.rpartition("/")[0])]
        folder = key.rstrip("/")
        metas = self._list(folder)
        if not metas:
            self._missing(folder)
        metas = self._without_outputs(metas, folder)
        shown = [meta for meta in metas if not _is_hidden(_inside(meta["path"], folder))]
        self.unread = [meta["path"] for meta in shown]
        found = [(meta, folder) for meta in shown]
        if not any(format_of(meta["path"]) for meta in shown):
            more = f"; {self.left_out[0]}" if self.left_out else ""
            raise UsageError(
                f"{self._url}: the folder holds no input file{more}", remedy=f"Known extensions are {KNOWN}."
            )
        return [(meta, folder) for meta, folder in found if format_of(meta["path"])]

    def glob(self, pattern: str) -> list[tuple[Any, str]]:
        """Return the objects that a pattern names."""
        fixed = pattern[: _MAGIC.search(pattern).start()].rpartition("/")[0] if _MAGIC.search(pattern) else pattern  # type: ignore[union-attr]
        matches = re.compile(_pattern(pattern)).fullmatch
        metas = [meta for meta in self._list(fixed) if matches(meta["path"])]
        if "**" in pattern:
            metas = self._without_outputs(metas, fixed)
        if not metas:
            raise UsageError(f"{self._url}: no object matches", remedy=f"Looked in {self._root}/{fixed}.")
        return [(meta, fixed) for meta in metas]

    def file(self, meta: Any, folder: str, chosen: str | None) -> InputFile:
        """Make an input's file of an object."""
        key = meta["path"]
        address = f"{self._root}/{key}"
        return RemoteFile(
            address=address,
            name=_inside(key, folder),
            format=input_kind(address, key, chosen),
            compression=split_name(key)[1],
            size=meta["size"],
            store=self._store,
            key=key,
            tag=meta["e_tag"],
            mtime_ns=int(meta["last_modified"].timestamp() * 1_000_000) * 1_000,
        )

    def _head(self, key: str) -> Any:
        import obstore

        if not key:
            return None
        with self._asking():
            try:
                return obstore.head(self._store, key)
            except FileNotFoundError:
                return None

    def _list(self, folder: str) -> list[Any]:
        """Return all objects below a folder, by their names; those that stand for folders are none."""
        import obstore

        with self._asking():
            found = [meta for some in obstore.list(self._store, prefix=folder or None) for meta in some]
        return sorted((one for one in found if not one["path"].endswith("/")), key=lambda one: one["path"].split("/"))

    def _without_outputs(self, metas: list[Any], folder: str) -> list[Any]:
        """Leave out the outputs and evaluations of batchchat below a folder, and note it."""
        tops: dict[str, None] = {}
        for meta in metas:
            inside = _inside(meta["path"], folder)
            top, state, _ = f"/{inside}".partition(f"/{STATE}/")
            if state and top:
                tops[top.strip("/").partition("/variants/")[0]] = None
        for top in tops:
            place = "/".join(filter(None, (self._root, folder, top)))
            self.left_out.append(f"{place}: left out, since it is an output of batchchat; name it to read it")
        below = tuple(f"{top}/" for top in tops)
        return [meta for meta in metas if not _inside(meta["path"], folder).startswith(below)] if below else metas

    def _missing(self, folder: str) -> NoReturn:
        """Say that there is nothing of this name, and what there is."""
        import obstore

        parent = folder.rpartition("/")[0]
        with self._asking():
            there = obstore.list_with_delimiter(self._store, prefix=parent or None)
        names = [f"{one}/" for one in there["common_prefixes"]] + [one["path"] for one in there["objects"]]
        names = [_inside(name, parent) for name in names if format_of(name) or name.endswith("/")][:_SHOWN]
        where = "/".join(filter(None, (self._root, parent)))
        remedy = f"In {where} there is {', '.join(names)}." if names else f"{where} holds no input file."
        raise UsageError(f"{self._url}: no such object or folder", remedy=remedy)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Say in words what goes wrong when the store is asked what it has."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            told = store_error(self._url, error)
            if told.lasting:
                raise UsageError(told.message, remedy=told.remedy) from None
            raise told from error


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
