"""Inputs on object storage: what a bucket lists, and how its objects are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from batchchat.addresses import Address
from batchchat.errors import UsageError
from batchchat.objects import RETRIES, open_store, store_error
from batchchat.sources.input_file import FoundFiles, raise_changed
from batchchat.sources.listing import Entry, find_remote
from batchchat.sources.ranges import Fetch


def find_objects(url: str, chosen: str | None, output: Address | None = None, *, retries: int = RETRIES) -> FoundFiles:
    """List the objects that a URL means, in the order they are read: one, a folder, or a glob.

    Raises UsageError if there is nothing to read, or the store refuses, and StoreError if it does not answer.
    """
    store, key = open_store(url, retries=retries)
    return find_remote(url, key, _Bucket(store, url), chosen, output)


class _Bucket:
    """What a bucket says that is there."""

    thing = "object"
    pinned = False

    def __init__(self, store: Any, url: str) -> None:
        self._store = store
        self._url = url
        scheme, _, rest = url.partition("://")
        self.root = f"{scheme}://{rest.partition('/')[0]}"

    def head(self, path: str) -> Entry | None:
        """Return the object of this name."""
        import obstore

        if not path:
            return None
        with self._asking():
            try:
                return _entry(obstore.head(self._store, path))
            except FileNotFoundError:
                return None

    def below(self, folder: str, *, deep: bool) -> list[Entry]:
        """Return all objects below a folder; those that stand for folders are none. The list is always deep."""
        import obstore

        with self._asking():
            found = [_entry(meta) for some in obstore.list(self._store, prefix=folder or None) for meta in some]
        return sorted((one for one in found if not one.path.endswith("/")), key=lambda one: one.path.split("/"))

    def names(self, folder: str) -> list[str]:
        """Return what a folder holds itself."""
        import obstore

        with self._asking():
            there = obstore.list_with_delimiter(self._store, prefix=folder or None)
        return [f"{one}/" for one in there["common_prefixes"]] + [one["path"] for one in there["objects"]]

    def reader(self, entry: Entry) -> Fetch:
        """Return what reads an object by ranges."""
        return partial(_fetch, self._store, entry, f"{self.root}/{entry.path}")

    def is_data(self, path: str) -> bool:
        """Return true: a store keeps nothing of its own among the objects."""
        return True

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


def _entry(meta: Any) -> Entry:
    modified = int(meta["last_modified"].timestamp() * 1_000_000) * 1_000
    return Entry(meta["path"], meta["size"], meta["e_tag"], modified)


def _fetch(store: Any, entry: Entry, address: str, start: int, end: int) -> bytes:
    """Return a range. Raises StorageError if the object is another one by now, or cannot be read."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        answer = obstore.get(store, entry.path, options={"range": (start, end)})
        data = bytes(answer.bytes())
    except FileNotFoundError:
        raise_changed(address)
    except (BaseError, OSError) as error:
        raise store_error(address, error) from error
    tag = answer.meta["e_tag"]
    # A shorter range means an object that was replaced by a shorter one, also at a store without ETags.
    if len(data) != end - start or (entry.tag is not None and tag is not None and tag != entry.tag):
        raise_changed(address)
    return data
