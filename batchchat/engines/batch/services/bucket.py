"""Files in a bucket of the customer: Scaleway reads input objects there and writes its results beside them.

An object's key holds the digest that is in the file's name, and a key whose results exist is never used again: new
results would take the place of old ones. Since results are found by their names, they are there whatever the
provider's list of batches says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

import anyio
import anyio.to_thread
import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from batchchat.client.masking import KeyMask
from batchchat.dataclass import dataclass
from batchchat.engines.batch.service import BatchProblem, BatchStatus, Gone, RemoteBatch, Unavailable
from batchchat.errors import NeedsHuman, UsageError

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import S3Credential

_ERRORS: Final = (BaseError, OSError)
_DEFAULT_REGION: Final = "fr-par"
_DOMAIN: Final = "scw.cloud"
_PROBE: Final = "batchchat-access-check.txt"
_PART: Final = 8 * 2**20
_PARTS_AT_ONCE: Final = 3
"""With parts of 8 MB, an upload holds some 24 MB in memory."""
_ROUNDS: Final = 5
_RETRIES = 3
"""How often one call to the storage is made again; what is written has its name by its content, so that is safe."""
_MOST_NAMES: Final = 1000
_SUFFIXES: Final = ("_output", "_error", "-output", "-error")
"""What stands behind the input's name in the names of results: as documented, and as an earlier draft had it."""

_EXAMPLE: Final = "engine: {kind: batch, bucket: s3://NAME/PREFIX}"
_APPLICATION: Final = "scw-managed-genapi-batch"
_POLICY: Final = (
    f"The service reads and writes the bucket as the IAM application {_APPLICATION}, which the first batch of an "
    "organization creates, even one that fails. If the bucket has a policy, let it allow s3:GetObject and s3:PutObject "
    "to that application (principal application_id:ID), beside a statement of your own, and run the same command "
    "again. The bucket must also lie in the project of the API key."
)
_ACCESS: Final = re.compile(
    r"access|denied|permission|forbidden|\b403\b|bucket|not authori[sz]ed|(?:read|fetch|download|open|get) (?:the )?"
    r"(?:input|file|object)|input_file_id",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """A bucket, and the prefix of our keys in it (without slashes around it)."""

    bucket: str
    prefix: str
    region: str
    endpoint: str
    virtual: bool
    """Whether the bucket's name stands in the host rather than in the path."""

    def url(self, key: str) -> str:
        """Return the address of an object, as the provider wants it named."""
        parts = urlsplit(self.endpoint)
        host = f"{self.bucket}.{parts.netloc}" if self.virtual else f"{parts.netloc}/{self.bucket}"
        return f"{parts.scheme}://{host}/{quote(key)}"

    def key(self, ref: str) -> str | None:
        """Return the key that a reference names: an address, `s3://bucket/key`, or a key. None if it is not ours."""
        if ref.startswith("s3://"):
            bucket, _, key = ref[5:].partition("/")
            return key if bucket == self.bucket else None
        if "://" not in ref:
            return ref if ref.endswith(".jsonl") else None
        parts = urlsplit(ref)
        path = unquote(parts.path.lstrip("/"))
        # The bucket may stand in the host or in the path, whichever we wrote.
        if (parts.hostname or "").startswith(f"{self.bucket}."):
            return path
        bucket, _, key = path.partition("/")
        return key if bucket == self.bucket else None


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """The key of object storage, and the variable that its first half came from."""

    name: str
    access: str
    secret: str
    token: str | None = None


def open_bucket(bucket: str | None, environ: Mapping[str, str]) -> BucketFiles:
    """Return the files of a bucket. Raises UsageError for a missing bucket or key."""
    if bucket is None:
        raise UsageError(
            "engine.bucket is missing: Scaleway reads the requests of a batch from a bucket of yours",
            remedy=f"Create a bucket in the project of your API key and name it: `{_EXAMPLE}`.",
        )
    place = read_place(bucket, environ)
    return BucketFiles(place, _keys(environ))


def read_place(bucket: str, environ: Mapping[str, str]) -> BucketPlace:
    """Return the place that `engine.bucket` and the environment name. Raises UsageError for what is no bucket."""
    region = next(
        (environ[name] for name in ("SCW_DEFAULT_REGION", "AWS_REGION", "AWS_DEFAULT_REGION") if environ.get(name)),
        _DEFAULT_REGION,
    )
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""
    text = bucket.strip()
    if text.startswith(("http://", "https://")):
        parts = urlsplit(text)
        named = re.fullmatch(r"(?:(?P<bucket>.+)\.)?s3\.(?P<region>[a-z0-9-]+)\.scw\.cloud", parts.hostname or "")
        if named is None:
            raise UsageError(
                "engine.bucket: this address is none of a bucket at Scaleway",
                remedy=f"Write it as https://NAME.s3.REGION.{_DOMAIN}/PREFIX, or as s3://NAME/PREFIX.",
            )
        region, endpoint = named["region"], ""
        text = "/".join(part for part in (named["bucket"], parts.path.strip("/")) if part)
    name, _, prefix = text.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name):
        raise UsageError(f"engine.bucket: {name!r} is no name of a bucket", remedy=f"Write it as `{_EXAMPLE}`.")
    prefix = prefix.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9!_.*'() /+=@,:-]*", prefix) or any(
        part in {"", ".", ".."} for part in prefix.split("/") if prefix
    ):
        raise UsageError(
            f"engine.bucket: the prefix {prefix!r} cannot be used",
            remedy="Use letters, digits, - and _, with single slashes between.",
        )
    own = not endpoint or urlsplit(endpoint).netloc.endswith(f".{_DOMAIN}")
    return BucketPlace(
        bucket=name,
        prefix=prefix,
        region=region,
        endpoint=endpoint.rstrip("/") or f"https://s3.{region}.{_DOMAIN}",
        virtual=own,
    )


def _keys(environ: Mapping[str, str]) -> Keys:
    for access, secret, token in (
        ("SCW_ACCESS_KEY", "SCW_SECRET_KEY", None),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ):
        if environ.get(access, "").strip() and environ.get(secret, "").strip():
            found = environ.get(token, "").strip() if token else ""
            return Keys(access, environ[access].strip(), environ[secret].strip(), found or None)
    missing = [name for name in ("SCW_ACCESS_KEY", "SCW_SECRET_KEY") if not environ.get(name, "").strip()]
    raise UsageError(
        f"the bucket needs a key, and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
        remedy="Set SCW_ACCESS_KEY and SCW_SECRET_KEY of one API key (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), "
        "in the environment or in a .env beside the job.",
    )


class BucketFiles:
    """The input and result objects of batches in one bucket."""

    def __init__(self, place: BucketPlace, keys: Keys) -> None:
        self._place = place
        self._mask = KeyMask(keys.secret)
        self._keys = keys
        self._made: S3Store | None = None

    def __repr__(self) -> str:
        return f"BucketFiles({self._place.url(self._place.prefix)!r})"

    async def preflight(self) -> None:
        """Write a small object, read it and delete it.

        That tells whether bucket, region, project, permissions and policy are right for us.
        """
        key = self._key(_PROBE)
        content = b"Written by batchchat to see whether this bucket can be used. It may be deleted.\n"
        try:
            await obstore.put_async(self._store, key, content)
        except _ERRORS as error:
            raise self._failed(error, "write to", before=True) from None
        try:
            found = await (await obstore.get_async(self._store, key)).bytes_async()
        except _ERRORS as error:
            raise self._failed(error, "read from", before=True) from None
        if bytes(found) != content:
            raise Unavailable(f"the bucket {self._place.bucket} gave back something else than was written to it")
        try:
            await obstore.delete_async(self._store, key)
        except _ERRORS:
            return  # a key that may not delete can run batches all the same

    async def upload(self, name: str, path: Path) -> str:
        """Upload a file under a key that has no results yet, and return its address."""
        nbytes = (await anyio.Path(path).stat()).st_size
        for number in range(_MOST_NAMES):
            key = self._key(name, number)
            if await self._results(key):
                continue  # an earlier batch had this name: its results are not to be mixed with ours
            size = await self._size(key)
            # Another file under this name: the digest in it makes that unlikely, a cut upload makes it possible.
            if size is not None and size != nbytes:
                continue
            # An object of our size and name is our file: a run before this one has uploaded it.
            if size is None:
                try:
                    await obstore.put_async(self._store, key, path, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)
                except _ERRORS as error:
                    raise self._failed(error, "write to") from None
            return self._place.url(key)
        raise UsageError(
            f"the bucket {self._place.bucket} holds results of {_MOST_NAMES} batches named {name}",
            remedy="Name another prefix in engine.bucket.",
        )

    async def download(self, ref: str, target: Path) -> bool:
        """Stream an object to `target`, and go on after a break."""
        key = self._place.key(ref)
        if key is None:
            raise Gone(f"the result {ref} does not lie in the bucket {self._place.bucket}")
        size, tag, breaks = 0, None, 0
        with await anyio.to_thread.run_sync(target.open, "wb") as file:
            while True:
                before = size
                options: GetOptions = {"range": {"offset": size}, "if_match": tag} if size else {}
                try:
                    found = await obstore.get_async(self._store, key, options=options)
                    tag, whole = found.meta["e_tag"], found.meta["size"]
                    async for piece in found.stream(min_chunk_size=2**20):
                        await anyio.to_thread.run_sync(file.write, bytes(piece))
                        size += len(piece)
                    if size >= whole:
                        return True
                except _ERRORS as error:
                    meant = self._failed(error, "read from")
                    if size and _changed(error):
                        # Written anew since we began: what we have belongs to the old content.
                        file.seek(0)
                        size = before = file.truncate()
                    elif not isinstance(meant, Unavailable) or (size and _past_the_end(error)):
                        raise meant from None
                    if breaks >= _ROUNDS:
                        raise meant from None
                # Only breaks in a row count: a large file over a bad line may break many times, and gets on each time.
                breaks = 0 if size > before else breaks + 1
                if breaks > _ROUNDS:
                    raise Unavailable(f"the result {ref} cannot be read to its end")
                await anyio.sleep(2.0**breaks)

    async def result_refs(self, batch: RemoteBatch) -> Sequence[str]:
        """Return the result objects of a batch: by their names, and those that the batch names itself."""
        key = self._place.key(batch.input_ref) if batch.input_ref else None
        found = await self._results(key) if key else []
        for ref in batch.result_refs:
            named = self._place.key(ref)
            if named is not None and named not in found and (not found or await self._size(named) is not None):
                found.append(named)
        return [self._place.url(each) for each in found]

    async def finished(self, input_ref: str) -> RemoteBatch | None:
        """Return a batch that ended if results lie beside its input. Its id is the input's address."""
        key = self._place.key(input_ref)
        found = await self._results(key) if key else []
        if not found:
            return None
        refs = tuple(self._place.url(each) for each in found)
        return RemoteBatch(input_ref, BatchStatus.COMPLETED, result_refs=refs, input_ref=input_ref)

    async def delete(self, ref: str) -> None:
        """Delete an object under our prefix. One that is gone already is no error."""
        key = self._place.key(ref)
        # What lies elsewhere is not ours to delete.
        if key is None or not key.startswith(f"{self._place.prefix}/" if self._place.prefix else ""):
            return
        try:
            await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return
        except _ERRORS as error:
            raise self._failed(error, "delete in") from None

    def explained(self, problem: BatchProblem) -> BatchProblem:
        """Return a problem of a batch with what to do, if it may come from the bucket's policy or project."""
        if problem.remedy is None and (not problem.message or _ACCESS.search(problem.message)):
            return BatchProblem(problem.code, problem.message, problem.line, _POLICY)
        return problem

    @property
    def _store(self) -> S3Store:
        if self._made is None:
            place, keys = self._place, self._keys
            # A certificate for *.s3.REGION… is not good for a name with a dot: such a bucket stands in the path.
            virtual = place.virtual and "." not in place.bucket
            parts = urlsplit(place.endpoint)
            endpoint = f"{parts.scheme}://{place.bucket}.{parts.netloc}" if virtual else place.endpoint
            credential: S3Credential = {
                "access_key_id": keys.access,
                "secret_access_key": keys.secret,
                "token": keys.token,
                "expires_at": None,
            }
            self._made = S3Store(
                place.bucket,
                endpoint=endpoint,
                region=place.region,
                virtual_hosted_style_request=virtual,
                retry_config={"max_retries": _RETRIES},
                client_options={"allow_http": parts.scheme == "http", "timeout": "600s", "connect_timeout": "30s"},
                # Given so, nothing is taken from the process's own environment, such as a token of another service.
                credential_provider=lambda: credential,
            )
        return self._made

    def _key(self, name: str, number: int = 0) -> str:
        if number:
            stem, dot, suffix = name.rpartition(".")
            name = f"{stem}-{number + 1}{dot}{suffix}"
        return f"{self._place.prefix}/{name}" if self._place.prefix else name

    async def _size(self, key: str) -> int | None:
        """Return the size of an object, None if there is none."""
        try:
            return int((await obstore.head_async(self._store, key))["size"])
        except FileNotFoundError:
            return None
        except _ERRORS as error:
            raise self._failed(error, "read from") from None

    async def _results(self, key: str) -> list[str]:
        """Return the keys of the results that lie beside an input."""
        stem, dot, suffix = key.rpartition(".")
        names = [f"{stem}{word}{dot}{suffix}" for word in _SUFFIXES]
        return [name for name in names if await self._size(name) is not None]

    def _failed(self, error: Exception, doing: str, *, before: bool = False) -> Exception:
        """Return what an error of object storage means. `before` says that nothing was uploaded yet."""
        text = self._mask(str(error).split("\n\nDebug source:", 1)[0])
        code = _told("Code", text)
        place = self._place
        said = f"{code}: {_told('Message', text)}" if code else " ".join(text.split())[:300]
        where = f"the bucket {place.bucket} in {place.region}"
        if code == "NoSuchBucket":
            return UsageError(
                f"{where} does not exist, or lies in another region or project",
                remedy=f"Create it, or name its region: `bucket: https://{place.bucket}.s3.REGION.{_DOMAIN}`, or "
                "SCW_DEFAULT_REGION. An API key sees the buckets of its own preferred project only.",
            )
        if code in {"PermanentRedirect", "AuthorizationHeaderMalformed"} or "redirect" in text.lower():
            return UsageError(
                f"{where} lies in another region: {said}",
                remedy=f"Name its region: `bucket: https://{place.bucket}.s3.REGION.{_DOMAIN}`, or SCW_DEFAULT_REGION.",
            )
        if isinstance(error, FileNotFoundError):
            return Gone(f"an object is not there: {said}")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return NeedsHuman(
                f"the key in {self._keys.name} may not {doing} {where}: {said}",
                remedy="It needs ObjectStorageObjectsRead and ObjectStorageObjectsWrite in the bucket's project. A "
                "policy of the bucket must allow its user too. The clock of this machine must be right."
                + ("" if before else " Then run the same command again."),
            )
        return Unavailable(f"{where} at {place.endpoint} cannot be reached: {said}")


def _told(tag: str, text: str) -> str:
    found = re.search(rf"<{tag}>([^<]{{1,300}})</{tag}>", text)
    return found[1] if found else ""


def _changed(error: Exception) -> bool:
    return isinstance(error, PreconditionError)


def _past_the_end(error: Exception) -> bool:
    return "InvalidRange" in str(error)
