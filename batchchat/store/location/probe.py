"""The probe of conditional writes: a store that ignores them does not keep two runs apart, and is refused.

It is made once for an output and a store, on an object of its own. What it found is kept in the record of the hold.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Any

from batchchat.errors import StorageError, UsageError
from batchchat.store.location.bucket import ConditionFailedError, ObjectBucket, Objects, Tag, UnclearError


def check_conditions(bucket: ObjectBucket, output: str, known: Any) -> dict[str, Any]:
    """Return what is known of the store's conditional writes; ask the store if `known` is of another one.

    Raises UsageError if it ignores them, StorageError if it stays away.
    """
    found: dict[str, Any] = known if isinstance(known, dict) else {}
    if found.get("store") != bucket.store:
        found = {"store": bucket.store, "unquoted": _probe(bucket, output)}
    bucket.objects.unquoted = bool(found.get("unquoted"))
    return found


def _probe(bucket: ObjectBucket, output: str) -> bool:
    """Return true if the store compares ETags without their quotes only. Raises UsageError if it compares nothing."""
    # A request without an answer is no proof of anything: all is asked again, of another object.
    return bucket.patiently(lambda: _probe_one(bucket, output, f"probe-{secrets.token_hex(8)}"))


def _probe_one(bucket: ObjectBucket, output: str, name: str) -> bool:
    try:
        return _compares(bucket.objects, bucket.path(name), output)
    finally:
        with suppress(StorageError, UnclearError):
            bucket.objects.delete([bucket.path(name), bucket.path(f"{name}-absent")])


def _compares(objects: Objects, path: str, output: str) -> bool:
    objects.unquoted = False
    first = objects.put(path, b"first", create=True)
    if _accepted(objects, path, b"second", create=True):
        raise _ignores(output, "creates an object that is there already (If-None-Match)")
    wrong = Tag('"00000000000000000000000000000000"', None if first.version is None else "0")
    if _accepted(objects, path, b"third", tag=wrong):
        raise _ignores(output, "writes over an object that has changed (If-Match)")
    if _accepted(objects, f"{path}-absent", b"fourth", tag=first):
        raise _ignores(output, "writes over an object that is gone (If-Match)")
    if _accepted(objects, path, b"fifth", tag=first):
        return False
    # Some stores compare an ETag only if it stands without quotes: this is tried before the store is refused.
    objects.unquoted = True
    if _accepted(objects, path, b"fifth", tag=first):
        return True
    raise _ignores(output, "refuses to write over an object that has not changed (If-Match)")


def _accepted(objects: Objects, path: str, data: bytes, *, create: bool = False, tag: Tag | None = None) -> bool:
    try:
        objects.put(path, data, create=create, tag=tag)
    except ConditionFailedError:
        return False
    return True


def _ignores(output: str, what: str) -> UsageError:
    return UsageError(
        f"{output}: this store cannot keep two runs apart: it {what}",
        remedy="Use a store with conditional writes, such as Amazon S3, Scaleway, R2, Google Cloud Storage, Azure, or "
        "MinIO or Ceph in a version of today. Or name a folder as output, and copy it when the run has ended.",
    )
