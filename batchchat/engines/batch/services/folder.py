"""The `files` service: files of requests in a folder, and the results that somebody puts beside them.

Whoever answers them is not our concern: `vllm run-batch`, a provider's console, a colleague. A batch is a file of
requests; it has ended when its results are whole. Results are whole when every request has a line, when a file
`STEM.done` says so, or when they have not changed for a long time.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

import anyio.to_thread

from batchchat.dataclass import dataclass
from batchchat.engines.batch.service import BatchStatus, Gone, RemoteBatch, ResultLine, ServiceLimits, TornLine
from batchchat.engines.batch.services.dialects import CHAT
from batchchat.engines.batch.services.lines import NoResult, encode_line, read_result, read_results
from batchchat.errors import StorageError, UsageError

RESULT_NAMES: Final = (
    *("{}_output.jsonl", "{}.out.jsonl", "{}_error.jsonl", "{}.err.jsonl"),
    *("{}-output.jsonl", "{}.output.jsonl", "{}_results.jsonl", "{}.results.jsonl"),
    *("{}-error.jsonl", "{}.error.jsonl", "{}.errors.jsonl", "{}_errors.jsonl"),
)
"""Names of result files beside `STEM.jsonl`. Each holds answers, errors or both: every line tells which it is."""
STILL_S: Final = 900.0
"""How long results with fewer lines than requests must be unchanged to be taken for all that will come."""
_CANCELLED: Final = ".cancelled"
_DONE: Final = ".done"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the files of a batch held when they were last read, and the sizes and times that tell whether they changed.

    `asked` and `answered` count requests. `torn` says that a last line cannot be read: somebody is writing it.
    """

    files: tuple[tuple[str, int, float], ...]
    asked: int | None
    answered: int
    torn: bool


class FolderService:
    """Hands files of requests over in a folder; see `BatchService` for what the methods promise.

    `still` is how long, in seconds, incomplete results must be unchanged; `wall_clock` gives seconds since the epoch.
    """

    limits = ServiceLimits(window="none", finds_by_labels=False)

    def __init__(self, folder: Path, *, still: float = STILL_S, wall_clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._still = still
        self._wall_clock = wall_clock
        self._seen: dict[str, _Seen] = {}

    def __repr__(self) -> str:
        return f"FolderService({str(self._folder)!r})"

    async def __aenter__(self) -> FolderService:
        return self

    async def __aexit__(self, *args: object) -> None:
        return None

    async def preflight(self) -> None:
        """Make the folder, and see that files can be written there."""
        await anyio.to_thread.run_sync(self._check)

    def _check(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f".batchchat-{os.getpid()}.tmp"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"engine.folder: {self._folder} cannot be written: {error.strerror}",
                remedy="Name a folder that this user may write into.",
            ) from None

    def encode(self, custom_id: str, body: bytes) -> bytes:
        """Return a request as one line, in OpenAI's form, which `vllm run-batch` reads too."""
        return encode_line(custom_id, body, url=CHAT)

    def refuses(self, body: bytes) -> str | None:
        """Return None: whoever answers the requests decides."""
        return None

    async def upload(self, name: str, path: Path) -> str:
        """Copy a file into the folder, whole or not at all, and return its name."""
        target = self._place(name)
        try:
            await anyio.to_thread.run_sync(_copy, path, target)
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error.strerror}") from None
        return name

    async def create(self, input_ref: str, labels: Mapping[str, str]) -> RemoteBatch:
        """Return the batch of a file: it exists because the file does."""
        batch = await anyio.to_thread.run_sync(self._look, input_ref)
        if batch is None:
            raise Gone(f"{self._place(input_ref)} is not there any more")
        return batch

    async def find(self, input_ref: str, labels: Mapping[str, str], since: float) -> list[RemoteBatch]:
        """Return the batch of a file, whenever it was written."""
        batch = await anyio.to_thread.run_sync(self._look, input_ref)
        return [] if batch is None else [batch]

    async def poll(self, ids: Sequence[str]) -> dict[str, RemoteBatch]:
        """Return the batches with these names. One whose files are all gone is left out."""
        looked = [(name, await anyio.to_thread.run_sync(self._look, name)) for name in ids]
        return {name: batch for name, batch in looked if batch is not None}

    async def results(self, batch: RemoteBatch, scratch: Path) -> AsyncIterator[ResultLine]:
        """Iterate over the lines of every result file of a batch; damage is told after the last one."""
        torn: TornLine | None = None
        for path in self._results(batch.id):
            try:
                async with aclosing(read_results(path)) as lines:
                    async for line in lines:
                        yield line
            except TornLine as error:
                torn = TornLine(f"{path}: {error}")
            except OSError:
                continue  # it was there a moment ago; the other files may tell the rest
        if torn is not None:
            raise torn

    async def cancel(self, batch_id: str) -> None:
        """Take a file of requests away from whoever has not begun with it, by giving it another name."""
        path = self._place(batch_id)
        try:
            path.rename(path.with_name(path.name + _CANCELLED))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{path} cannot be renamed: {error.strerror}") from None

    async def delete(self, refs: Sequence[str]) -> None:
        """Delete files of requests or results by name, and the marks that belong to them."""
        for name in refs:
            path = self._place(name)
            for each in (path, path.with_name(path.name + _CANCELLED), path.with_name(path.stem + _DONE)):
                each.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        if Path(name).name != name:
            raise ValueError("the name of a file of requests must hold no path")
        return self._folder / name

    def _results(self, name: str) -> list[Path]:
        stem = self._place(name).stem
        return [path for each in RESULT_NAMES if (path := self._folder / each.format(stem)).is_file()]

    def _look(self, name: str) -> RemoteBatch | None:
        """Return a batch as its files tell it now, None if none of them is there."""
        path = self._place(name)
        cancelled = path.with_name(path.name + _CANCELLED)
        source = path if path.is_file() else cancelled if cancelled.is_file() else None
        results = self._results(name)
        if source is None and not results:
            return None
        seen = self._read(name, source, results)
        whole = not seen.torn and seen.answered == seen.asked
        told = path.with_name(path.stem + _DONE).exists() and not seen.torn
        changed = max((changed for _, _, changed in seen.files), default=0.0)
        still = bool(results) and self._wall_clock() - changed >= self._still
        status = BatchStatus.IN_PROGRESS
        if whole or told or still:
            status = BatchStatus.COMPLETED
        elif source == cancelled:
            status = BatchStatus.CANCELLED
        return RemoteBatch(
            id=name,
            status=status,
            total=seen.asked,
            completed=seen.answered,
            result_refs=tuple(each.name for each in results),
            input_ref=name,
            created_at=source.stat().st_mtime if source is not None else None,
        )

    def _read(self, name: str, source: Path | None, results: Sequence[Path]) -> _Seen:
        """Count what is asked and answered. Files are read only if a result has changed since."""
        told = [(path.name, path.stat()) for path in results]
        files = tuple((each, stat.st_size, stat.st_mtime) for each, stat in told)
        seen = self._seen.get(name)
        if seen is None or seen.files != files:
            asked = _ids(source)[0] if source is not None else None
            answered, torn = set[str](), False
            for path in results:
                ids, damaged = _ids(path)
                answered |= ids if asked is None else ids & asked
                torn = torn or damaged
            seen = self._seen[name] = _Seen(files, None if asked is None else len(asked), len(answered), torn)
        return seen


def _ids(path: Path) -> tuple[set[str], bool]:
    """Return the ids of all lines that can be read, and whether the last line cannot: somebody is writing it."""
    found, torn = set[str](), False
    for line in _lines(path):
        torn = False
        try:
            read = read_result(line)
        except NoResult:
            torn = True
            continue
        if read.custom_id is not None:
            found.add(read.custom_id)
    return found, torn


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            text = line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")
            if text:
                yield text


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that it appears whole under its name, readable for this user alone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out, source.open("rb") as read:
            shutil.copyfileobj(read, out, 2**20)
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
