"""Inputs on a hub of datasets, by URLs `hf://datasets/OWNER/NAME[@REVISION]/PATH`.

When an input is opened, its revision is looked up once. All that follows is read at that commit: a dataset that gets a
new one meanwhile is read as it was, and never in a mix.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from batchchat.addresses import Address
from batchchat.errors import StoreError, UsageError
from batchchat.objects import RETRIES
from batchchat.sources.hub_access import hub_access
from batchchat.sources.hub_client import HubClient
from batchchat.sources.hub_refusals import MissingOnHubError
from batchchat.sources.input_file import FoundFiles
from batchchat.sources.listing import Entry, find_remote
from batchchat.sources.ranges import Fetch

_SHAPE = "hf://datasets/OWNER/NAME/PATH"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_SLASHED = re.compile(r"refs/(?:convert/\w+|pr/\d+)(?=/|$)")
"""Revisions with slashes in them, which the hub's own tools also read without quoting."""
_CONVERTED = {"~parquet": "refs/convert/parquet"}
"""The short name by which some databases read the Parquet files that the hub makes of a dataset."""
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_OWN_FILES = frozenset({"dataset_infos.json"})
"""Files beside the rows that the hub's own tools write. They are JSON, and hold no rows."""


class HubAddress(NamedTuple):
    """What a URL of a hub names: a dataset, a revision of it (None: the newest one of its main branch), and a path.

    `root` is the URL of the dataset as it was written.
    """

    dataset: str
    revision: str | None
    path: str
    root: str


def parse_hub_url(url: str) -> HubAddress:
    """Take a URL of a hub apart. Raises UsageError for one that names no dataset."""
    rest = url.partition("://")[2]
    kind, _, rest = rest.partition("/")
    if kind != "datasets":
        what = {"spaces": "a space", "buckets": "a bucket of the hub"}.get(kind, "a model")
        told = f"names {what}, and rows come from datasets" if kind else "names no dataset"
        raise UsageError(f"{url}: {told}", remedy=f"Write {_SHAPE}.")
    owner, _, rest = rest.partition("/")
    name, at, tail = _cut(rest)
    if not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        raise UsageError(f"{url}: names no dataset", remedy=f"Write {_SHAPE}.")
    root = f"hf://datasets/{owner}/{name}"
    if not at:
        return HubAddress(f"{owner}/{name}", None, tail, root)
    slashed = _SLASHED.match(tail)
    written = slashed[0] if slashed is not None else tail.partition("/")[0]
    revision = unquote(_CONVERTED.get(written, written))
    if not revision:
        raise UsageError(f"{url}: names no revision after the @", remedy="Write a branch, a tag or a commit there.")
    path = tail[len(written) :].removeprefix("/")
    return HubAddress(f"{owner}/{name}", revision, path, f"{root}@{written}")


def _cut(rest: str) -> tuple[str, bool, str]:
    """Return the name of a dataset, whether a revision follows, and all that follows."""
    name, slash, tail = rest.partition("/")
    if "@" in name:
        name, _, revision = name.partition("@")
        return name, True, f"{revision}{slash}{tail}"
    return name, False, tail


def find_hub_files(
    url: str,
    chosen: str | None,
    output: Address | None = None,
    *,
    retries: int = RETRIES,
    sleep: Callable[[float], None] = time.sleep,
    environ: Mapping[str, str] | None = None,
) -> FoundFiles:
    """List the files of a dataset that a URL means, in the order they are read: one, a folder, or a glob.

    `retries` is how often a request is repeated, `sleep` what waits before that. `environ` takes the place of the
    environment.

    Raises UsageError if there is nothing to read, or the hub refuses, and StoreError if it does not answer.
    """
    address = parse_hub_url(url)
    client = HubClient(hub_access(url, environ), address.dataset, retries=retries, sleep=sleep)
    with _opening():
        return find_remote(url, address.path, _Dataset(client, address, url), chosen, output)


@contextmanager
def _opening() -> Iterator[None]:
    """Turn what a person must mend into bad usage: nothing is sent yet."""
    try:
        yield
    except StoreError as error:
        if error.lasting:
            raise UsageError(error.message, remedy=error.remedy) from None
        raise


class _Dataset:
    """What a dataset has at the commit that its revision names now."""

    thing = "file"
    pinned = True

    def __init__(self, client: HubClient, address: HubAddress, url: str) -> None:
        self.root = address.root
        self._client = client
        self._url = url
        about = client.ask(f"/revision/{quote(address.revision or 'main', safe='')}?expand=sha", url)
        commit = about.get("sha") if isinstance(about, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise client.strange(url)
        self._commit = commit

    def head(self, path: str) -> Entry | None:
        """Return the file of this name."""
        if not path.strip("/"):
            return None
        found = self._client.ask(f"/paths-info/{self._commit}", self._url, {"paths": path, "expand": "false"})
        entries = self._entries(found)
        return entries[0] if len(entries) == 1 and entries[0].path == path else None

    def below(self, folder: str, *, deep: bool) -> list[Entry]:
        """Return the files of a folder."""
        found = [entry for page in self._tree(folder, deep=deep) for entry in self._entries(page)]
        return sorted(found, key=lambda entry: entry.path.split("/"))

    def names(self, folder: str) -> list[str]:
        """Return what the first page of a folder's list names."""
        page = next(self._tree(folder, deep=False), [])
        with self._listed():
            return [one["path"] + "/" * (one["type"] == "directory") for one in page]

    def reader(self, entry: Entry) -> Fetch:
        """Return what reads a file by ranges."""
        address = f"{self.root}/{entry.path}"
        return partial(self._client.read, entry.path, size=entry.size, commit=self._commit, address=address)

    def is_data(self, path: str) -> bool:
        """Tell whether a file is none of those that the hub's tools keep beside the rows."""
        return path not in _OWN_FILES

    def _tree(self, folder: str, *, deep: bool) -> Iterator[list[Any]]:
        """Yield the pages of a folder's list; none if there is no such folder."""
        inside = f"/{quote(folder, safe='')}" if folder else ""
        path = f"/tree/{self._commit}{inside}?recursive={'true' if deep else 'false'}&expand=false"
        try:
            yield from self._client.pages(path, self._url)
        except MissingOnHubError:
            return

    def _entries(self, page: Any) -> list[Entry]:
        """Return the files among what the hub lists."""
        with self._listed():
            files = [one for one in page if one["type"] == "file"]
            # A large file lies elsewhere, and what git has is a note that names its digest, which stands beside it.
            return [Entry(one["path"], int(one["size"]), str((one.get("lfs") or one)["oid"])) for one in files]

    @contextmanager
    def _listed(self) -> Generator[None, None, None]:
        """Say in words that a list is none of a hub."""
        try:
            yield
        except (TypeError, KeyError, ValueError, AttributeError):
            raise self._client.strange(self._url) from None
