"""Where the input and the results of batches lie: in the provider's own store of files, or in a customer's bucket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from batchchat.demo.batches.checking import FileProblem
from batchchat.demo.batches.files import FileStore

if TYPE_CHECKING:
    from obstore.store import S3Store


class FilePlace(Protocol):
    """Gives the input of a batch, and takes its results. Its methods block."""

    def fetch(self, ref: str, target: Path, now: float) -> Path | FileProblem:
        """Return where the input lies now, or what is wrong. `target` is a path that may be written to."""

    def publish(self, path: Path, input_ref: str, name: str, *, now: float, kept_s: float) -> str:
        """Store a result file, whose name ends in `_output.jsonl` or `_error.jsonl`, and return its reference."""


class OwnFiles:
    """The provider's store of files."""

    def __init__(self, files: FileStore, id_prefix: str) -> None:
        self._files = files
        self._id_prefix = id_prefix

    def fetch(self, ref: str, target: Path, now: float) -> Path | FileProblem:
        """Return the path of an uploaded file."""
        record = self._files.find(ref, now)
        # Providers take no result of a batch as the input of another one.
        if record is None or record.purpose == "batch_output":
            message = f"The file {ref[:100]!r} does not exist, or has another purpose."
            return FileProblem("invalid_request", message, "file_id")
        return self._files.path(record.id)

    def publish(self, path: Path, input_ref: str, name: str, *, now: float, kept_s: float) -> str:
        """Add a file."""
        file_id = self._files.new_id(self._id_prefix)
        self._files.add(file_id, path, filename=name, purpose="batch_output", now=now, kept_s=kept_s)
        return file_id


class DemoBucket:
    """The objects of a customer. Keys and endpoint come from the environment, as a client's do.

    SCW_ACCESS_KEY and SCW_SECRET_KEY, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL_S3 or
    AWS_ENDPOINT_URL, else the host of the object's own address.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ

    def fetch(self, ref: str, target: Path, now: float) -> Path | FileProblem:
        """Download an object."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            store, key = self._open(ref)
            with target.open("wb") as file:
                for piece in obstore.get(store, key).stream(min_chunk_size=1 << 20):
                    file.write(piece)
        except (BaseError, OSError, ValueError) as error:
            said = str(error).split("\n", 1)[0][:300]
            return FileProblem("invalid_request", f"The object {ref[:300]!r} cannot be read: {said}", "input_file_id")
        return target

    def publish(self, path: Path, input_ref: str, name: str, *, now: float, kept_s: float) -> str:
        """Upload an object beside the input, named like it."""
        import obstore

        store, key = self._open(input_ref)
        suffix = "_error.jsonl" if name.endswith("_error.jsonl") else "_output.jsonl"
        obstore.put(store, key.removesuffix(".jsonl") + suffix, path)
        return input_ref.removesuffix(".jsonl") + suffix

    def _open(self, ref: str) -> tuple[S3Store, str]:
        """Return the bucket and the key that an address names. Raises ValueError if it is no address of an object."""
        from obstore.store import S3Store

        environ = self._environ
        parts = urlsplit(ref)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise ValueError("it is no address of an object")
        name, _, rest = parts.hostname.partition(".s3.")
        path = unquote(parts.path.lstrip("/"))
        # The bucket is a part of the host, or else the first part of the path.
        if rest:
            bucket, key, host = name, path, f"s3.{rest}"
        else:
            bucket, _, key = path.partition("/")
            host = parts.netloc
        endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or f"{parts.scheme}://{host}"
        access = environ.get("SCW_ACCESS_KEY") or environ.get("AWS_ACCESS_KEY_ID")
        secret = environ.get("SCW_SECRET_KEY") or environ.get("AWS_SECRET_ACCESS_KEY")
        if not access or not secret:
            raise ValueError("the server has no key of object storage: set SCW_ACCESS_KEY and SCW_SECRET_KEY")
        store = S3Store(
            bucket,
            endpoint=endpoint,
            region=environ.get("SCW_DEFAULT_REGION") or environ.get("AWS_REGION") or "fr-par",
            access_key_id=access,
            secret_access_key=secret,
            virtual_hosted_style_request=False,
            client_options={"allow_http": endpoint.startswith("http://")},
        )
        return store, key
