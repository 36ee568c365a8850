"""A bucket: whole objects that are read, created, replaced and listed, and what became of a write that got no answer.

A write whose answer is lost may have happened, may happen later, or never. So no write is simply sent again: the object
is read back. The same bytes are there: it was this write. Nothing has changed: the same bytes are sent again, under the
same condition, so that only one of the two can happen. Anything else: another writer was here.

A store that is away is waited for, for `Patience.seconds` in all. Blocking code.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from datetime import datetime
from threading import Event
from typing import NamedTuple, Protocol, TypeVar

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError

READER_WAIT_S = 15.0
"""Seconds that a command which looks at an output waits for a store that is away: as long as a person would."""
_T = TypeVar("_T")
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
"""Seconds before a request to the store is tried again: from the first of these on, doubled up to the second."""


class Tag(NamedTuple):
    """What tells one content of an object from another: its ETag, and its version if the store goes by that."""

    etag: str
    version: str | None = None

    def same(self, other: Tag | None) -> bool:
        """Tell whether both are of one content; stores differ in whether they quote an ETag."""
        return other is not None and self.etag.strip('"') == other.etag.strip('"')


class FoundObject(NamedTuple):
    """An object as it was read. `written` is when the store took it, by the store's own clock."""

    data: bytes
    tag: Tag
    size: int
    written: datetime


class ListedObject(NamedTuple):
    """An object as a listing tells it; `path` is its whole name."""

    path: str
    size: int
    tag: Tag
    written: datetime


class ConditionFailedError(Exception):
    """The store refused a write because of its condition."""


class UnclearError(Exception):
    """A request got no answer that tells what became of it: the connection broke, or the store is away."""


class RefusedError(StorageError):
    """The store refuses for good: no such bucket, no right to it, no key."""


class OtherContentError(Exception):
    """Another writer's content is there. `found` is it, None if the object is gone."""

    def __init__(self, path: str, found: FoundObject | None) -> None:
        super().__init__(path)
        self.found = found


class Objects(Protocol):
    """The requests that a store answers. Each is sent once, and raises UnclearError if nothing is known of its outcome.

    All raise RefusedError if the store refuses for good. `unquoted`: ETags are sent without their quotes.
    """

    unquoted: bool

    def get(self, path: str, *, span: tuple[int, int] | None = None, tag: Tag | None = None) -> FoundObject | None:
        """Return an object, None if there is none.

        `span` is the part of it from a byte to another; a negative first one counts from the end. With a `tag`, raises
        ConditionFailedError if the object has another.
        """

    def head(self, path: str) -> ListedObject | None:
        """Return what a listing would tell of an object, None if there is none."""

    def put(self, path: str, data: bytes, *, create: bool = False, tag: Tag | None = None) -> Tag:
        """Write an object. With `create` only if there is none, with a `tag` only if it has that one.

        Raises ConditionFailedError if not.
        """

    def list(self, prefix: str) -> Sequence[ListedObject]:
        """Return the objects below a prefix, which ends with a slash."""

    def folders(self, prefix: str) -> Sequence[str]:
        """Return the names directly below a prefix; those that have more below them end with a slash."""

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects; those that are not there are no error."""

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside of the store."""


def _silent(_: str) -> None:
    return None


@dataclass(slots=True)
class StorePatience:
    """How long a store that is away is waited for, and who is told. `hurry` ends every wait at once."""

    seconds: float = READER_WAIT_S
    tell: Callable[[str], None] = _silent
    hurry: Event = field(default_factory=Event)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] | None = None

    def pause(self, seconds: float) -> None:
        """Wait, or return at once if somebody is in a hurry."""
        if self.sleep is not None:
            self.sleep(seconds)
        else:
            self.hurry.wait(seconds)


class _Wait:
    """The wait of one operation for a store that is away."""

    def __init__(self, patience: StorePatience, address: str, seconds: float | None) -> None:
        self._patience = patience
        self._address = address
        self._seconds = patience.seconds if seconds is None else seconds
        self._since: float | None = None
        self._pause = _FIRST_PAUSE_S
        self._told = False

    def again(self, error: Exception) -> None:
        """Wait before another try. Raises StorageError if that has lasted too long."""
        patience = self._patience
        now = patience.clock()
        since = self._since = now if self._since is None else self._since
        if now - since >= self._seconds or patience.hurry.is_set():
            waited = f" for {now - since:.0f} s" if now - since >= 1 else ""
            raise StorageError(
                f"{self._address}: the store did not answer{waited}: {error}",
                remedy="What is counted is kept. Run the same command again when the store answers: it goes on where "
                "it stopped.",
            ) from error
        # A first failure is often alone: it is told if the second try fails, too.
        if self._pause > _FIRST_PAUSE_S and not self._told:
            self._told = True
            patience.tell(f"{self._address}: the store does not answer; waiting up to {self._seconds:.0f} s: {error}")
        # Spread, so that several writers that lost one store do not come back at one moment.
        patience.pause(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        self._pause = min(_LONGEST_PAUSE_S, self._pause * 2)

    def over(self) -> None:
        """Tell that the store answers again, if its absence was told."""
        if self._told:
            self._patience.tell(f"{self._address}: the store answers again")


class ObjectBucket:
    """The objects of one store below a prefix. `address` is the URL of the prefix; `store` tells the store from others.

    Every method raises StorageError if the store stays away, or refuses. `wait` of a method takes the place of the
    bucket's own patience, in seconds.
    """

    def __init__(
        self, objects: Objects, prefix: str, address: str, *, store: str = "", patience: StorePatience | None = None
    ) -> None:
        self.objects = objects
        self.address = address
        self.store = store
        self.patience = patience or StorePatience()
        self._prefix = prefix.strip("/")

    def path(self, name: str) -> str:
        """Return the whole name of an object, by its name below the prefix."""
        return f"{self._prefix}/{name}" if self._prefix else name

    def address_of(self, name: str) -> str:
        """Return by which URL the user finds an object."""
        return f"{self.address.rstrip('/')}/{name}"

    def below(self, folder: str) -> ObjectBucket:
        """Return the bucket below a folder of this one; both wait with one patience."""
        return ObjectBucket(
            self.objects, self.path(folder), self.address_of(folder), store=self.store, patience=self.patience
        )

    def beside(self, name: str) -> ObjectBucket:
        """Return the bucket that has another name in the same place."""
        above, _, _ = self._prefix.rpartition("/")
        address = f"{self.address.rstrip('/').rpartition('/')[0]}/{name}"
        prefix = f"{above}/{name}" if above else name
        return ObjectBucket(self.objects, prefix, address, store=self.store, patience=self.patience)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def get(self, name: str, *, wait: float | None = None) -> FoundObject | None:
        """Return an object, None if there is none."""
        return self.patiently(lambda: self.objects.get(self.path(name)), wait)

    def span(self, name: str, first: int, last: int, tag: Tag | None = None) -> FoundObject | None:
        """Return some bytes of an object, as `Objects.get`. Raises ConditionFailedError if it has another tag."""
        return self.patiently(lambda: self.objects.get(self.path(name), span=(first, last), tag=tag))

    def head(self, name: str) -> ListedObject | None:
        """Return what a listing tells of an object, None if there is none."""
        return self.patiently(lambda: self.objects.head(self.path(name)))

    def listed(self, folder: str = "") -> list[tuple[str, ListedObject]]:
        """Return the objects below a folder by their names in it, sorted."""
        prefix = self.path(f"{folder}/" if folder else "")
        found = self.patiently(lambda: self.objects.list(prefix))
        return sorted((one.path[len(prefix) :], one) for one in found)

    def folders(self) -> list[str]:
        """Return the names directly below the prefix; folders end with a slash."""
        return list(self.patiently(lambda: self.objects.folders(self.path(""))))

    def patiently(self, work: Callable[[], _T], wait: float | None = None) -> _T:
        """Return what some work returns; do it again, after a pause, as long as a request of it has no answer."""
        waiting = _Wait(self.patience, self.address, wait)
        while True:
            try:
                answer = work()
            except UnclearError as error:
                waiting.again(error)
            else:
                waiting.over()
                return answer

    # ---- writing ----------------------------------------------------------------------------------------------------

    def create(self, name: str, data: bytes) -> Tag:
        """Write an object that must not be there yet. Raises OtherContentError if it is, and holds something else."""
        waiting = _Wait(self.patience, self.address, None)
        while True:
            try:
                tag = self.objects.put(self.path(name), data, create=True)
            except (ConditionFailedError, UnclearError) as error:
                _, found = self._look(name)
                if found is not None:
                    if found.data == data:
                        return found.tag
                    raise OtherContentError(name, found) from error
                # Nothing is there, or nobody knows: the condition decides.
                waiting.again(error)
            else:
                waiting.over()
                return tag

    def _look(self, name: str) -> tuple[bool, FoundObject | None]:
        """Look once what is there after a write whose outcome is not known; tell whether the store answered."""
        try:
            return True, self.objects.get(self.path(name))
        except UnclearError:
            return False, None

    def replace(self, name: str, data: bytes, tag: Tag, *, wait: float | None = None) -> Tag:
        """Write over an object that has this tag. Raises OtherContentError if it has another, or is gone."""
        waiting = _Wait(self.patience, self.address, wait)
        while True:
            try:
                new = self.objects.put(self.path(name), data, tag=tag)
            except (ConditionFailedError, UnclearError) as error:
                known, found = self._look(name)
                if found is not None and found.data == data:
                    return found.tag
                if known and (found is None or not found.tag.same(tag)):
                    raise OtherContentError(name, found) from error
                waiting.again(error)
            else:
                waiting.over()
                return new

    def put(self, name: str, data: bytes, *, wait: float | None = None) -> Tag:
        """Write an object, whatever is there. For what nobody else writes, or what may be lost."""
        return self.patiently(lambda: self.objects.put(self.path(name), data), wait)

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that are not there are no error."""
        if names:
            self.patiently(lambda: self.objects.delete([self.path(name) for name in names]))

    def copy_to(self, other: ObjectBucket, name: str) -> None:
        """Copy an object to another bucket of the same store, under the same name."""
        self.patiently(lambda: self.objects.copy(self.path(name), other.path(name)))
