"""The answer cache: a folder of answers that jobs share, so that an equal request is paid for once.

    cache = AnswerCache.open(folder)
    cache.fetch(ids)        # blocking: the answers that are there, by id
    cache.add(answers)      # blocking, may run beside `fetch`: one transaction; the first answer to a request stays
    cache.close()

An answer's id is a digest of provider, request and sample index (`Identity.answer_id`), so that two jobs that would
send the same request share it whatever their rows and keys are. What is no whole completion is never put in: the caller
sees to that.

It is one SQLite file in WAL mode: any number of processes of one machine read while one writes, a writer waits for
another one, and what `add` has put in stays: a process that is killed, or a loss of power, costs nothing of it. WAL
needs shared memory: the folder must not lie on a network file system. Each answer carries a checksum over its id and
content; one that does not fit is treated as absent, and replaced by the next answer. File and folder are for their
owner alone: they hold what the models were told to say.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from batchchat.errors import StorageError, UsageError
from batchchat.reasoning import is_blank, split
from batchchat.records import Completion, Usage

MAX_ANSWER_BYTES = 64 * 2**20
"""The longest answer that is kept: what the client reads of one."""
_FILE = "answers.sqlite3"
_APPLICATION = 0x62_63_61_63  # "bcac"
_VERSION = 1
_WAIT_S = 30.0
"""How long one process waits for another one's write. Chosen: a write takes milliseconds, on a slow disk a second."""
_AT_ONCE = 500
"""Ids in one query. SQLite took 999 parameters at most before version 3.32."""
_ANOTHER = "Choose another folder for the cache, or leave `cache` out."
_REBUILD = "Move the folder away: a new cache fills as answers come. Everything in the output is safe."
# Places only are put in. What is longer than an answer may be (64 MiB) is not read into memory.
_SELECT = "SELECT id, CASE WHEN length(value) <= 67108864 THEN value END, sum FROM answers WHERE id IN ({})"
_SELECT_ID = "SELECT id FROM answers WHERE id IN ({})"
_TABLE = "CREATE TABLE answers (id BLOB PRIMARY KEY, value BLOB NOT NULL, sum BLOB NOT NULL)"


class AnswerCache:
    """An open cache. Made by `AnswerCache.open`; `fetch` and `add` are each called by one thread at a time."""

    def __init__(self, path: Path, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        self.path = path
        self.damaged = 0
        self._reader = reader
        self._writer = writer
        self._bad: set[bytes] = set()

    @classmethod
    def open(cls, folder: Path | str) -> AnswerCache:
        """Open a cache, creating it if there is none.

        Raises UsageError if the folder cannot be one, StorageError if the disk refuses.
        """
        path = Path(folder) / _FILE
        try:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its other files the permissions of this one.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise UsageError(
                f"the cache {folder} cannot be written: {error.strerror}",
                remedy="Choose a folder that you may write to, or leave `cache` out.",
            ) from error
        with _errors(path):
            writer = _connect(path)
            try:
                _prepare(writer, path)
                return cls(path, _connect(path), writer)
            except BaseException:
                writer.close()
                raise

    @classmethod
    def existing(cls, folder: Path | str) -> AnswerCache | None:
        """Open a cache to look at it; None if there is none. Nothing is created or changed.

        Raises UsageError if the folder is something else, StorageError if the disk refuses.
        """
        path = Path(folder) / _FILE
        if not path.exists():
            return None
        with _errors(path):
            reader = _connect(path)
            try:
                _check_marks(_marks(reader), path)
            except BaseException:
                reader.close()
                raise
            return cls(path, reader, reader)

    def known(self, ids: Sequence[bytes]) -> set[bytes]:
        """Return those of the ids that there is an answer for, without reading the answers. Raises StorageError."""
        found: set[bytes] = set()
        for some in _groups(dict.fromkeys(ids)):
            with _errors(self.path):
                found.update(key for (key,) in self._reader.execute(_SELECT_ID.format(_places(some)), some))
        return found

    def fetch(self, ids: Sequence[bytes]) -> dict[bytes, Completion]:
        """Return the answers that are there, by id. Raises StorageError if the cache cannot be read."""
        found: dict[bytes, Completion] = {}
        for some in _groups(dict.fromkeys(ids)):
            with _errors(self.path):
                for key, value, checksum in self._reader.execute(_SELECT.format(_places(some)), some):
                    sound = type(value) is bytes and checksum == _sum(key, value)
                    # Not merely an error: a damaged answer is replaced by the next one to the same request.
                    completion = _decode(value) if sound else None
                    if completion is None:
                        self.damaged += key not in self._bad
                        self._bad.add(key)
                    elif _is_empty(completion):
                        self._bad.add(key)  # an earlier version kept these: the next answer takes its place
                    else:
                        found[key] = completion
        return found

    def add(self, answers: Iterable[tuple[bytes, Completion]]) -> None:
        """Put answers in, in one transaction. One that is there already stays. Raises StorageError."""
        rows = []
        for key, completion in answers:
            value = _encode(completion)
            if value is not None and len(value) <= MAX_ANSWER_BYTES:
                rows.append((key, value, _sum(key, value)))
        with _errors(self.path), _transaction(self._writer):
            bad, self._bad = self._bad, set()
            self._writer.executemany("DELETE FROM answers WHERE id = ?", [(key,) for key in bad])
            self._writer.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Let go of the cache. What was added stays."""
        for connection in (self._reader, self._writer):
            with suppress(sqlite3.Error):
                connection.close()


def remove_cache(folder: Path | str) -> None:
    """Delete a cache that nobody uses any more; nothing if there is none."""
    for ending in ("-wal", "-shm", ""):
        with suppress(OSError):
            (Path(folder) / f"{_FILE}{ending}").unlink()
    with suppress(OSError):
        Path(folder).rmdir()


# --- SQLite


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def _groups(ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    left = iter(ids)
    while some := list(islice(left, _AT_ONCE)):
        yield some


def _places(some: Sequence[bytes]) -> str:
    return ",".join("?" * len(some))


def _marks(connection: sqlite3.Connection) -> tuple[int, int]:
    # The four bytes that SQLite keeps in a file's head for its application.
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make a new file a cache, or check that an old one is one."""
    _begin_wal(connection)
    # An answer must be as durable here as in the journal, which counts it: each `add` synchronizes.
    connection.execute("PRAGMA synchronous = FULL")
    # Ids are spread evenly, so that each answer touches a page of the index of its own: let them come together.
    connection.execute("PRAGMA cache_size = -65536")
    connection.execute("PRAGMA wal_autocheckpoint = 16384")
    with _transaction(connection):
        marks = _marks(connection)
        # A new file. Somebody else's database has tables, and must not get ours.
        if marks == (0, 0) and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        else:
            _check_marks(marks, path)


def _check_marks(marks: tuple[int, int], path: Path) -> None:
    if marks[0] != _APPLICATION:
        raise UsageError(f"{path} is no cache of batchchat", remedy=_ANOTHER)
    if marks[1] != _VERSION:
        raise UsageError(f"{path} was made by another version of batchchat", remedy=_ANOTHER)


def _begin_wal(connection: sqlite3.Connection) -> None:
    """Switch a file to WAL. SQLite does not wait here for another process that does the same."""
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Tell what SQLite complains about in the words of this program."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith("SQLITE_NOTADB"):
            raise UsageError(f"{path} is no cache of batchchat", remedy=_ANOTHER) from error
        if code.startswith("SQLITE_BUSY"):
            remedy = "Another process has held it for too long. Run the same command again: it goes on."
        # A full disk damages nothing: what was put in stays.
        elif code.startswith("SQLITE_FULL"):
            remedy = "Free some space, then run the same command again: it goes on where it stopped."
        else:
            remedy = _REBUILD
        raise StorageError(f"the cache {path}: {error}", remedy=remedy) from error


# --- answers as bytes


def _sum(key: bytes, value: bytes) -> bytes:
    return blake2b(key + value, digest_size=8).digest()


_TEXTS = ("text", "finish_reason", "model", "request_id", "reasoning", "system_fingerprint", "service_tier")


def _encode(answer: Completion) -> bytes | None:
    """Return an answer as JSON; None if JSON has no form for it."""
    value = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "model": answer.model,
        "usage": tuple(answer.usage),
        "request_id": answer.request_id,
        "reasoning": answer.reasoning,
        "tool_calls": answer.tool_calls,
        "logprobs": answer.logprobs,
        "system_fingerprint": answer.system_fingerprint,
        "service_tier": answer.service_tier,
    }
    try:
        return orjson.dumps({name: item for name, item in value.items() if item is not None})
    except TypeError:
        return None


def _decode(value: bytes) -> Completion | None:
    """Read an answer; None if it has not the form of one."""
    try:
        data = orjson.loads(value)
        texts = {name: data.get(name) for name in _TEXTS}
        usage = Usage._make(data["usage"])
        calls, logprobs = data.get("tool_calls"), data.get("logprobs")
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return None
    whole = (
        all(text is None or isinstance(text, str) for text in texts.values())
        # Above, a number would not be the same again in other readers of JSON.
        and all(count is None or (type(count) is int and 0 <= count < 2**53) for count in usage)
        and (texts["text"] is not None or calls is not None)
    )
    if not (whole and _are_calls(calls) and _are_logprobs(logprobs)):
        return None
    return Completion(
        **texts,
        usage=usage,
        tool_calls=tuple(calls) if calls is not None else None,
        logprobs=tuple(logprobs) if logprobs is not None else None,
    )


def _is_empty(answer: Completion) -> bool:
    """Return true if an answer says nothing: neither text, beside reasoning that never ends, nor a tool call."""
    return not answer.tool_calls and (is_blank(answer.text) or is_blank(split(answer.text or "")[1]))


def _are_calls(calls: Any) -> bool:
    names = {"id", "type", "name", "arguments"}
    return calls is None or (
        isinstance(calls, list)
        and all(
            isinstance(call, dict)
            and call.keys() == names
            and all(value is None or isinstance(value, str) for value in call.values())
            for call in calls
        )
    )


def _are_logprobs(logprobs: Any) -> bool:
    return logprobs is None or (
        isinstance(logprobs, list)
        and all(_is_token(entry) for entry in logprobs)
        and all(
            entry.get("top") is None or (isinstance(entry["top"], list) and all(map(_is_token, entry["top"])))
            for entry in logprobs
        )
    )


def _is_token(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("token"), str | None)
        and isinstance(entry.get("logprob"), int | float | None)
    )
