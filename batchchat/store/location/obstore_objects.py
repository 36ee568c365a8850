"""The requests of a bucket, answered by a store of obstore. The one module of the store that imports it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from batchchat.objects import error_text, store_error
from batchchat.store.location.bucket import (
    ConditionFailedError,
    FoundObject,
    ListedObject,
    RefusedError,
    Tag,
    UnclearError,
)

_BULK = 1000
"""Objects of one request to delete: the most that S3 takes."""
_FOR_GOOD = re.compile(r"status(?: code)?:? 4(?!08|09|12|29)\d\d\b")
"""What a client error says that another try would not change; time-outs, conflicts and too many requests do change."""


class ObstoreObjects:
    """A store of obstore whose own retries are off: it would take a repeated create for somebody else's.

    `unquoted`: the store compares ETags without their quotes only.
    """

    def __init__(self, store: Any, address: str) -> None:
        self.unquoted = False
        self._store = store
        self._address = address

    def get(self, path: str, *, span: tuple[int, int] | None = None, tag: Tag | None = None) -> FoundObject | None:
        """Return an object or a span of it, None if there is none."""
        options: dict[str, Any] = {}
        if span is not None:
            options["range"] = {"suffix": -span[0]} if span[0] < 0 else span
        if tag is not None:
            options["if_match"] = self._told(tag)
        with self._errors():
            try:
                answer = obstore.get(self._store, path, options=options or None)  # type: ignore[arg-type]
                data = bytes(answer.bytes())
            except FileNotFoundError:
                return None
            meta = answer.meta
            return FoundObject(data, _tag_of(meta), meta["size"], meta["last_modified"])

    def head(self, path: str) -> ListedObject | None:
        """Return what is known of an object, None if there is none."""
        with self._errors():
            try:
                return _listed(obstore.head(self._store, path))
            except FileNotFoundError:
                return None

    def put(self, path: str, data: bytes, *, create: bool = False, tag: Tag | None = None) -> Tag:
        """Write an object under a condition; see `Objects.put`."""
        mode: Any = "create" if create else "overwrite"
        if tag is not None:
            # A version that is None must be left out: obstore wants a text.
            mode = {"e_tag": self._told(tag)} | ({"version": tag.version} if tag.version is not None else {})
        with self._errors():
            try:
                return _tag_of(obstore.put(self._store, path, data, mode=mode, use_multipart=False))
            except (AlreadyExistsError, PreconditionError) as error:
                raise ConditionFailedError(error_text(error)) from error
            except FileNotFoundError as error:
                # Of an object that is replaced, or of the bucket itself: the second would be refused before.
                if tag is not None:
                    raise ConditionFailedError(error_text(error)) from error
                raise

    def list(self, prefix: str) -> Sequence[ListedObject]:
        """Return the objects below a prefix."""
        with self._errors():
            return [_listed(one) for some in obstore.list(self._store, prefix=prefix or None) for one in some]

    def folders(self, prefix: str) -> Sequence[str]:
        """Return the names directly below a prefix."""
        with self._errors():
            found = obstore.list_with_delimiter(self._store, prefix=prefix or None)
        names = [one["path"][len(prefix) :] for one in found["objects"]]
        return [*names, *(f"{path[len(prefix) :].strip('/')}/" for path in found["common_prefixes"])]

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects."""
        with self._errors():
            for start in range(0, len(paths), _BULK):
                try:
                    obstore.delete(self._store, list(paths[start : start + _BULK]))
                except FileNotFoundError:
                    # Some stores say so of one that is gone, and may have left out the others.
                    self._delete_one_by_one(paths[start : start + _BULK])

    def _delete_one_by_one(self, paths: Sequence[str]) -> None:
        for path in paths:
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                continue

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside of the store."""
        with self._errors():
            obstore.copy(self._store, source, target)

    def _told(self, tag: Tag) -> str:
        return tag.etag.strip('"') if self.unquoted else tag.etag

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what obstore raises into UnclearError, ConditionFailedError or RefusedError."""
        try:
            yield
        except PreconditionError as error:
            raise ConditionFailedError(error_text(error)) from error
        except (FileNotFoundError, PermissionDeniedError, UnauthenticatedError) as error:
            raise self._refused(error) from error
        except NotSupportedError as error:
            raise RefusedError(f"{self._address}: the store cannot do this: {error_text(error)}") from error
        except (BaseError, OSError) as error:
            if _FOR_GOOD.search(str(error)):
                raise self._refused(error) from error
            raise UnclearError(error_text(error)) from error

    def _refused(self, error: Exception) -> RefusedError:
        told = store_error(self._address, error)
        return RefusedError(told.message, remedy=told.remedy)


def _tag_of(meta: Any) -> Tag:
    version = meta.get("version")
    return Tag(meta.get("e_tag") or "", version)


def _listed(meta: Any) -> ListedObject:
    return ListedObject(meta["path"], meta["size"], _tag_of(meta), meta["last_modified"])
