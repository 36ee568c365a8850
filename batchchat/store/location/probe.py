"""The probe of conditional writes: a store that ignores them does not keep two runs apart, and is refused.

It is made once for an output and a store, on an object of its own. What it found is kept in the record of the hold.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Any

from batchchat.errors import StorageError, UsageError
from batchchat.store.location.bucket import Bucket, ConditionFailedError, Tag, UnclearError

_TRIES = 5
"""A request of the probe without an answer is made again on another object; a store that is away is waited for."""


def check_conditions(bucket: Bucket, output: str, known: Any) -> dict[str, Any]:
    """Return what is known of the store's conditional writes; ask the store if `known` is of another one.

    Raises UsageError if it ignores them, StorageError if it stays away.
    """
    found: dict[str, Any] = known if isinstance(known, dict) else {}
    if found.get("store") != bucket.store:
        found = {"store": bucket.store, "unquoted": _probe(bucket, output)}
    bucket.objects.unquoted = bool(found.get("unquoted"))
    return found


def _probe(bucket: Bucket, output: str) -> bool:
    """Return true if the store compares ETags without their quotes only. Raises UsageError if it compares nothing."""
    for tries_left in reversed(range(_TRIES)):
        # Asked by the bucket, which waits for a store that is away.
        bucket.folders()
        name = f"probe-{secrets.token_hex(8)}"
        try:
            return _probe_one(bucket, output, name)
        except UnclearError as error:
            if not tries_left:
                raise StorageError(
                    f"{output}: the store does not answer: {error}", remedy="Run the same command again."
                ) from error
        finally:
            with suppress(StorageError, UnclearError):
                bucket.objects.delete([bucket.path(name)])
    raise AssertionError("unreachable")


def _probe_one(bucket: Bucket, output: str, name: str) -> bool:
    objects, path = bucket.objects, bucket.path(name)
    objects.unquoted = False
    first = objects.put(path, b"first", create=True)
    if _accepted(bucket, path, b"second", create=True):
        raise _ignores(output, "creates an object that is there already (If-None-Match)")
    wrong = Tag('"00000000000000000000000000000000"', None if first.version is None else "0")
    if _accepted(bucket, path, b"third", tag=wrong):
        raise _ignores(output, "writes over an object that has changed (If-Match)")
    if _accepted(bucket, f"{path}-absent", b"fourth", tag=first):
        objects.delete([f"{path}-absent"])
        raise _ignores(output, "writes over an object that is gone (If-Match)")
    if _accepted(bucket, path, b"fifth", tag=first):
        return False
    objects.unquoted = True
    if _accepted(bucket, path, b"fifth", tag=first):
        return True
    raise _ignores(output, "refuses to write over an object that has not changed (If-Match)")


def _accepted(bucket: Bucket, path: str, data: bytes, *, create: bool = False, tag: Tag | None = None) -> bool:
    try:
        bucket.objects.put(path, data, create=create, tag=tag)
    except ConditionFailedError:
        return False
    return True


def _ignores(output: str, what: str) -> UsageError:
    return UsageError(
        f"{output}: this store cannot keep two runs apart: it {what}",
        remedy="Use a store with conditional writes, such as Amazon S3, Scaleway, R2, Google Cloud Storage, Azure, or "
        "MinIO or Ceph in a version of today. Or name a folder as output, and copy it when the run has ended.",
    )
