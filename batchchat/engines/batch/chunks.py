"""Chunks on disk: the requests of one batch, in two private files that outlive the process.

`NAME.jsonl` holds the lines as the provider gets them. `NAME.rows` holds, in the same order, what the answers need:
the input's columns, the body, and how far each request is. So no request stays in memory while its batch is under way,
and a later run, on another machine too, can take the answers without a look at the input.

A chunk counts from the moment on that the ledger knows it (`ledger.py`); files without an entry are leftovers.
"""

from __future__ import annotations

import base64
import mmap
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.records import Completion, Request, RowBatch, Steps, Usage
from batchchat.store.json_files import json_bytes
from batchchat.store.location.disk import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    open_private,
    storage_errors,
    synchronize,
    synchronize_folder,
)
from batchchat.store.schema import kept_columns, kept_type

LINES = ".jsonl"
ROWS = ".rows"
_GROUP_ROWS = 1024
"""Rows that are written to the rows file together: as many as the store puts into one piece of a part."""
_GROUP_BYTES = 8 * 2**20
"""Bytes of bodies that are held until their rows are written. Two images of the largest size fit."""
_GETS_BETWEEN = 1024
"""Requests that are read between two returns of mapped pages. One costs less than a millisecond, and more seldom would
only let the pages of a large chunk, 20 MB, pile up."""
_NO_USAGE = Usage()
_FIXED = pa.schema(
    [
        ("custom_id", pa.binary(16)),
        ("body", pa.large_binary()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("row_index", pa.int64()),
        ("sample_index", pa.int32()),
        ("row_bytes", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("max_tokens", pa.int64()),
        ("attempts", pa.int32()),
        ("counted", pa.int32()),
        ("batches", pa.int32()),
        ("answer_id", pa.binary()),
        ("further", pa.binary()),
    ]
)
"""`further` is JSON: what a request has behind it; null for one that was never answered."""


@dataclass(frozen=True, slots=True)
class ChunkFacts:
    """What is known of a chunk that is written. `prompt_tokens` and `max_tokens` are sums of what was reserved."""

    name: str
    digest: str
    lines: int
    nbytes: int
    prompt_tokens: int
    max_tokens: int


class ChunkWriter:
    """Writes the two files of one chunk. Blocking code. Raises StorageError.

    `stem` begins the name of the chunk; the digest of its lines ends it.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.lines = 0
        self.nbytes = 0
        self.prompt_tokens = 0
        self.max_tokens = 0
        self.round = 1
        self._folder = folder
        self._stem = stem
        self._hash = blake2b(digest_size=8)
        self._waiting: list[Request] = []
        self._batches: list[int] = []
        self._waiting_bytes = 0
        self._rows: pa.ipc.RecordBatchFileWriter | None = None
        self._rows_file: BinaryIO | None = None
        with storage_errors(folder):
            folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            self._file = open_private(folder / f"draft-{stem}{LINES}", "wb", PRIVATE_FILE)

    def add(self, request: Request, line: bytes, *, reserved: tuple[int, int], batches: int = 0) -> None:
        """Append a request. `line` is its line, `reserved` its tokens; it was in so many `batches` before."""
        with storage_errors(self._folder):
            self._file.write(line)
        self._hash.update(line)
        self.lines += 1
        self.nbytes += len(line)
        self.prompt_tokens += reserved[0]
        self.max_tokens += reserved[1]
        self._waiting.append(request)
        self._batches.append(batches)
        self.round = max(self.round, batches + 1)
        self._waiting_bytes += len(request.body)
        # Images make bodies of megabytes, of which a thousand would not fit into memory.
        if len(self._waiting) >= _GROUP_ROWS or self._waiting_bytes >= _GROUP_BYTES:
            self._write_rows()

    def finish(self) -> ChunkFacts:
        """Return when both files are on the disk under their names."""
        self._write_rows()
        name = f"{self._stem}-{self._hash.hexdigest()}"
        with storage_errors(self._folder):
            if self._rows is not None:
                self._rows.close()
            for file, suffix in ((self._file, LINES), (self._rows_file, ROWS)):
                assert file is not None  # noqa: S101 - a chunk has at least one row
                file.flush()
                # The ledger names these files next. After a power cut they must be there.
                synchronize(file.fileno())
                file.close()
                (self._folder / f"draft-{self._stem}{suffix}").replace(self._folder / f"{name}{suffix}")
            synchronize_folder(self._folder)
        return ChunkFacts(name, self._hash.hexdigest(), self.lines, self.nbytes, self.prompt_tokens, self.max_tokens)

    def discard(self) -> None:
        """Remove what was written."""
        self._waiting.clear()
        for file in (self._file, self._rows_file):
            if file is not None:
                file.close()
        for suffix in (LINES, ROWS):
            (self._folder / f"draft-{self._stem}{suffix}").unlink(missing_ok=True)

    def _write_rows(self) -> None:
        if not self._waiting:
            return
        batch = _rows_of(self._waiting, self._batches)
        self._waiting, self._batches, self._waiting_bytes = [], [], 0
        with storage_errors(self._folder):
            if self._rows is None:
                self._rows_file = open_private(self._folder / f"draft-{self._stem}{ROWS}", "wb", PRIVATE_FILE)
                self._rows = pa.ipc.new_file(self._rows_file, batch.schema)
            self._rows.write_batch(batch)


def _rows_of(requests: Sequence[Request], batches: Sequence[int]) -> pa.RecordBatch:
    """Return requests as rows: the input's columns in one struct, so that their names meet no others."""
    first = requests[0].batch.columns.schema
    kept = pa.schema([(column.name, kept_type(column.type)) for column in first])
    pieces: list[pa.RecordBatch] = []
    start = 0
    for end in range(1, len(requests) + 1):
        # Requests of one batch of rows stand together mostly, and `take` of many is as quick as of one.
        if end == len(requests) or requests[end].batch is not requests[start].batch:
            offsets = pa.array([request.offset for request in requests[start:end]], pa.int64())
            pieces.append(kept_columns(requests[start].batch.columns.take(offsets), kept))
            start = end
    columns = [pa.concat_arrays([piece.column(place) for piece in pieces]) for place in range(len(first))]
    struct = pa.StructArray.from_arrays(columns, fields=list(kept))
    own: dict[str, list[Any]] = {
        "custom_id": [bytes.fromhex(request.custom_id) for request in requests],
        "body": [request.body for request in requests],
        "key": [request.key for request in requests],
        "source": [request.batch.source for request in requests],
        "row_index": [request.row_index for request in requests],
        "sample_index": [request.sample_index for request in requests],
        "row_bytes": [request.batch.nbytes // (len(request.batch.values) or 1) for request in requests],
        "prompt_tokens": [request.prompt_tokens for request in requests],
        "max_tokens": [request.max_tokens for request in requests],
        "attempts": [request.attempts for request in requests],
        "counted": [request.counted for request in requests],
        "batches": list(batches),
        "answer_id": [request.answer_id for request in requests],
        "further": [_further(request) for request in requests],
    }
    arrays = [pa.array(own[each.name], each.type) for each in _FIXED]
    schema = pa.schema(
        [*_FIXED, pa.field("input", struct.type)],
        metadata={"input": base64.b64encode(first.serialize()).decode("ascii")},
    )
    return pa.RecordBatch.from_arrays([*arrays, struct], schema=schema)


def _further(request: Request) -> bytes | None:
    """Return what a request has behind it, as JSON; None if it has nothing."""
    steps = request.steps
    if steps is None and request.usage == _NO_USAGE and not request.started_at:
        return None
    told: dict[str, Any] = {
        "usage": list(request.usage),
        "cost": request.cost,
        "started_at": request.started_at,
        "active_s": request.active_s,
    }
    if steps is not None:
        told["steps"] = {
            each.name: getattr(steps, each.name) for each in fields(Steps) if each.name not in {"body", "last"}
        }
        told["steps"]["body"] = steps.body.decode()
        if steps.last is not None:
            told["last"] = {**asdict(replace(steps.last, logprobs=None)), "usage": list(steps.last.usage)}
    return json_bytes(told)


class ChunkReader:
    """The rows of a chunk that is on the disk, read as they are wanted. Blocking code. Raises StorageError.

    A request has a `place`: the number of its line, counted from 0.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}{LINES}"
        with storage_errors(folder / f"{name}{ROWS}"):
            with (folder / f"{name}{ROWS}").open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        metadata = self._file.schema.metadata or {}
        self._schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(metadata[b"input"])))
        self._groups = [_Group(self._file.get_batch(number)) for number in range(self._file.num_record_batches)]
        self._starts: list[int] = []
        self._places: dict[str, int] = {}
        self._gets = 0
        for group in self._groups:
            self._starts.append(len(self._places))
            for identity in group.rows.column(0).to_pylist():
                self._places[identity.hex()] = len(self._places)
        self.rows = len(self._places)
        self._shed()

    def __contains__(self, custom_id: object) -> bool:
        return custom_id in self._places

    def place(self, custom_id: str) -> int | None:
        """Return where a request stands in the chunk; None if it is not in it."""
        return self._places.get(custom_id)

    def custom_ids(self) -> Iterator[str]:
        """Iterate over the identities of all requests, in the order of their lines."""
        return iter(self._places)

    def at_line(self, line: int) -> str | None:
        """Return the identity of the request in a line, counted from 1; None if there is no such line."""
        for group in self._groups:
            if 1 <= line <= group.rows.num_rows:
                identity: bytes = group.rows.column(0)[line - 1].as_py()
                return identity.hex()
            line -= group.rows.num_rows
        return None

    def get(self, custom_id: str, *, with_body: bool = True) -> tuple[Request, int] | None:
        """Return a request and how many batches it was in before this one; None if it is not in this chunk.

        Without its body, which most answers need not, most of the file is never read.
        """
        place = self._places.get(custom_id)
        if place is None:
            return None
        self._gets += 1
        if not self._gets % _GETS_BETWEEN:
            self._shed()
        number = bisect_right(self._starts, place) - 1
        offset = place - self._starts[number]
        return self._groups[number].request(custom_id, offset, self._schema, with_body=with_body)

    def _shed(self) -> None:
        """Give the pages back that were read: mapped, they count as memory of this process until they are needed."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on every system
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file. What was read of it stays readable as long as it is used."""
        self._shed()
        self._groups = []


class _Group:
    """Rows that were written together. Their input columns are one object, as the journal likes it.

    Requests are made of single values when they are wanted. As lists, the rows of a chunk would take 20 MB: answers
    come in any order, so that no group could let go of its own before the end.
    """

    def __init__(self, rows: pa.RecordBatch) -> None:
        self.rows = rows
        self._columns: pa.RecordBatch | None = None
        self._values: list[dict[str, Any] | None] = [None] * rows.num_rows
        self._batches: dict[tuple[str, int], RowBatch] = {}
        self._own: list[pa.Array | None] = []

    def request(self, custom_id: str, offset: int, schema: pa.Schema, *, with_body: bool) -> tuple[Request, int]:
        """Return the request of a row, and how many batches it was in before."""
        if self._columns is None:
            struct = self.rows.column("input")
            columns = struct.flatten()
            self._columns = pa.RecordBatch.from_arrays(
                [column.cast(each.type) for column, each in zip(columns, schema, strict=True)], schema=schema
            )
            # A column of nulls alone, such as `further` in the first batch of a job, need not be asked for each row.
            own = [self.rows.column(name) for name in _LISTED]
            self._own = [None if column.null_count == len(column) else column for column in own]
        told: list[Any] = [None if column is None else column[offset].as_py() for column in self._own]
        key, source, row_index, sample_index, row_bytes, prompt_tokens, max_tokens, *rest = told
        attempts, counted, batches, answer_id, further = rest
        # A batch of rows knows where it begins, and these may stand anywhere in the input.
        begins = row_index - offset
        batch = self._batches.get((source, begins))
        if batch is None:
            nbytes = row_bytes * self.rows.num_rows
            batch = RowBatch(source, begins, self._columns, self._values, nbytes=nbytes)
            self._batches[(source, begins)] = batch
        body: bytes = self.rows.column("body")[offset].as_py() if with_body else b""
        request = Request(
            custom_id,
            body,
            prompt_tokens,
            max_tokens,
            batch,
            offset,
            key,
            sample_index,
            attempts,
            counted,
        )
        request.answer_id = answer_id or b""
        if further is not None:
            _restore(request, orjson.loads(further))
        return request, batches


_LISTED = (
    *("key", "source", "row_index", "sample_index", "row_bytes", "prompt_tokens", "max_tokens"),
    *("attempts", "counted", "batches", "answer_id", "further"),
)


def _restore(request: Request, told: dict[str, Any]) -> None:
    request.usage, request.cost = Usage(*told["usage"]), told["cost"]
    request.started_at, request.active_s = told["started_at"], told["active_s"]
    steps = told.get("steps")
    if steps is None:
        return
    body = steps.pop("body").encode()
    request.steps = Steps(body=body, **steps)
    last = told.get("last")
    if last is not None:
        last["usage"] = Usage(*last["usage"])
        last["tool_calls"] = None if last["tool_calls"] is None else tuple(last["tool_calls"])
        request.steps.last = Completion(**last)


def remove_files(folder: Path, name: str) -> None:
    """Remove the files of a chunk; those that are gone already are no error. Raises StorageError."""
    for suffix in (LINES, ROWS):
        with storage_errors(folder / f"{name}{suffix}"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)


def downloads(folder: Path) -> Path:
    """Return the folder for result files while they are read; it is made if it is not there."""
    path = folder / "downloads"
    with storage_errors(path):
        path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    return path


def remove_leftovers(folder: Path, known: set[str]) -> None:
    """Remove the files of chunks that the ledger does not know, drafts and downloads. Raises StorageError."""
    with storage_errors(folder):
        if (folder / "downloads").is_dir():
            shutil.rmtree(folder / "downloads")
        for path in folder.iterdir() if folder.is_dir() else ():
            # The ledger lies in the same folder, and has the same suffix.
            if path.suffix in {LINES, ROWS} and path.stem not in known and path.name != "batches.jsonl":
                path.unlink(missing_ok=True)
