"""Reads everything in an output and says what is not as it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.addresses import is_url
from batchchat.dataclass import dataclass
from batchchat.errors import StorageError
from batchchat.format import plural
from batchchat.lazy_arrow import compute as pc
from batchchat.lazy_arrow import parquet as pq
from batchchat.records import ErrorKind
from batchchat.store.column_types import SCHEMA, read_types
from batchchat.store.index import OK, RecordIndex
from batchchat.store.journal import replay
from batchchat.store.json_files import read_lines
from batchchat.store.ledger import LEDGER, SpendLedger
from batchchat.store.location.port import Location, PartFiles
from batchchat.store.manifest import MANIFEST, RUNS, missing_files
from batchchat.store.output import existing_output
from batchchat.store.parts import DamagedPartError, PartReader, bounded_batches
from batchchat.store.schema import same_types
from batchchat.store.sharding import shard_places
from batchchat.store.state import FORMAT_FILE, LIVE, State

_ANEW = "The next run writes it anew."
_KINDS = pa.array([kind.value for kind in ErrorKind], pa.string())


@dataclass(slots=True)
class VerifyReport:
    """What `verify` read and found. `problems` name files; `notes` are no problems but worth knowing."""

    parts: int = 0
    records: int = 0
    archive_files: int = 0
    archived: int = 0
    journals: int = 0
    unpublished: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True where nothing is wrong."""
        return not self.problems


def verify(directory: Location | Path | str) -> VerifyReport:
    """Read every part, archive file, journal and state file of an output, and check them.

    Raises UsageError where the folder is no output of batchchat.
    """
    location = existing_output(directory)
    count = State(location).shards()
    report = VerifyReport()
    seen = RecordIndex()
    with _FileReading(report) as reading:
        for place in [location] if count is None else shard_places(location, count):
            _check_place(place, report, reading, seen)
    others = location.parts.others()
    report.problems += [f"{location.parts.address(name)}: not written by batchchat" for name in others]
    return report


def _check_place(location: Location, report: VerifyReport, reading: _FileReading, seen: RecordIndex) -> None:
    """Check an output without shards, or one shard. `seen` are the records of all that were checked."""
    holder = location.holder()
    if holder is not None:
        note = f"A run is at work (pid {holder.get('pid')}): files may change while they are read."
        report.notes += [note] if note not in report.notes else []
    schema = _check_state(location, report)
    reading.schema = schema
    _check_parts(location, report, reading, seen)
    _check_archive(location, report, reading)
    _check_journals(location, report, running=holder is not None)


def _check_state(location: Location, report: VerifyReport) -> pa.Schema | None:
    schema, state, files = None, State(location), location.state
    try:
        frozen = read_types(location)
        schema = frozen.output()
        damaged = state.damaged_files()
        if frozen.recovered and SCHEMA not in damaged:
            report.problems.append(f"{files.address(SCHEMA)}: missing, or no schema. {_ANEW}")
        for name in damaged:
            if name == LIVE:  # nobody needs it
                report.notes.append(f"{files.address(name)}: damaged; it tells about the last run's progress only")
            else:
                report.problems.append(f"{files.address(name)}: damaged: it holds no JSON object. {_ANEW}")
        if state.lacks_format:
            report.problems.append(f"{files.address(FORMAT_FILE)}: missing. {_ANEW}")
        if MANIFEST not in damaged:
            report.problems += missing_files(location)
    except StorageError as error:
        report.problems.append(error.message)
    damaged_lines = {LEDGER: SpendLedger(files).read().damaged_lines, RUNS: read_lines(files, RUNS)[1]}
    for name, count in damaged_lines.items():
        if count:
            are = "is" if count == 1 else "are"
            report.problems.append(f"{files.address(name)}: {plural(count, 'line')} {are} damaged")
    return schema


def _check_parts(location: Location, report: VerifyReport, reading: _FileReading, seen: RecordIndex) -> None:
    files = location.parts
    names = files.names()

    def check(name: str, batch: pa.RecordBatch) -> None:
        report.records += batch.num_rows
        problems = _inconsistencies(batch)
        twice = 0
        for custom_id in batch.column("custom_id").to_pylist():
            if _is_identity(custom_id):
                twice += bool(seen.put(custom_id, OK, seen=False))
            else:
                problems["without a proper custom_id"] = problems.get("without a proper custom_id", 0) + 1
        if twice:
            problems["whose custom_id is there already"] = twice
        report.problems += [
            f"{files.address(name)}: {plural(count, 'record')} {text}" for text, count in problems.items() if count
        ]

    for name in names:
        report.parts += reading.check(files, name, check)


def _check_archive(location: Location, report: VerifyReport, reading: _FileReading) -> None:
    files = location.archive

    def check(_: str, batch: pa.RecordBatch) -> None:
        report.archived += batch.num_rows

    for name in files.names():
        report.archive_files += reading.check(files, name, check)


class _FileReading:
    """Reads Parquet files wholly: as batchchat does, with its checksums, and as others do.

    Others check other things: page checksums cover neither headers nor the footer. DuckDB reads only where it is
    installed, with one connection for all files: to open one takes longer than to read a small part (20 to 35 ms,
    measured). `schema` is that of the output or shard that is checked, None if it has none.
    """

    def __init__(self, report: VerifyReport) -> None:
        self.schema: pa.Schema | None = None
        self._report = report
        self._duckdb: Any = None

    def __enter__(self) -> _FileReading:
        return self

    def __exit__(self, *_: object) -> None:
        if self._duckdb is not None:
            self._duckdb.close()

    def check(self, files: PartFiles, name: str, look: Callable[[str, pa.RecordBatch], None]) -> bool:
        """Read one file and let `look` see its batches; False where it is gone, as a run may have replaced it."""
        schema, problems = self.schema, self._report.problems
        try:
            with PartReader(files, name, schema) as reader:
                if schema is None:
                    problems.append(f"{files.address(name)}: there are records, but no frozen schema")
                elif not same_types(reader.schema, schema):
                    problems.append(f"{files.address(name)}: its columns are not those of the output")
                    return True
                for batch in reader.batches():
                    look(name, batch)
            self._read_as_others_do(files, name)
        except FileNotFoundError:
            return False
        except DamagedPartError as error:
            files.report(name)
            problems.append(f"{files.address(name)}: {error}. The next run sets it aside.")
        except StorageError as error:
            problems.append(f"{files.address(name)}: {error}")
        return True

    def _read_as_others_do(self, files: PartFiles, name: str) -> None:
        """Compare how many records each reader finds. Raises DamagedPartError; FileNotFoundError if it is gone."""
        try:
            with files.open(name) as source, pq.ParquetFile(source) as file:

                def read_at(offset: int, size: int) -> bytes:
                    source.seek(offset)
                    return source.read(size)

                rows = file.metadata.num_rows
                found = sum(batch.num_rows for batch in bounded_batches(file, read_at))
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise DamagedPartError(name, f"a plain Parquet reader refuses it: {error}") from error
        if found != rows:
            raise DamagedPartError(
                name, f"it promises {plural(rows, 'record')}, and a plain Parquet reader finds {found}"
            )
        # From a bucket DuckDB reads with an extension and credentials of its own: what fails then is not the part.
        if find_spec("duckdb") is not None and not is_url(files.address(name)):
            self._read_with_duckdb(files, name, rows)

    def _read_with_duckdb(self, files: PartFiles, name: str, rows: int) -> None:
        import duckdb

        try:
            if self._duckdb is None:
                self._duckdb = duckdb.connect()
                # One thread, so that a run at work is not held up.
                self._duckdb.execute("SET threads = 1")
            # A checksum of each column, so that every value is read and none becomes a Python object.
            query = "SELECT count(*), bit_xor(hash(COLUMNS(*))) FROM read_parquet($1)"
            (found, *_), *_ = self._duckdb.execute(query, [files.address(name)]).fetchall()
        except duckdb.Error as error:
            if name not in files.names():  # a run has replaced it meanwhile
                raise FileNotFoundError(files.address(name)) from error
            raise DamagedPartError(name, f"DuckDB refuses it: {error}") from error
        if found != rows:
            raise DamagedPartError(name, f"it promises {plural(rows, 'record')}, and DuckDB finds {found}")


def _inconsistencies(batch: pa.RecordBatch) -> dict[str, int]:
    """Count records whose columns contradict each other, by what is wrong with them."""
    status, kind = batch.column("status"), batch.column("error_kind")
    ok = pc.fill_null(pc.equal(status, "ok"), False)
    failed = pc.fill_null(pc.equal(status, "failed"), False)
    has_kind = pc.is_valid(kind)

    def missing(name: str) -> int:
        return int(batch.column(name).null_count)

    return {
        "with an unknown status": batch.num_rows - ok.true_count - failed.true_count,
        "that are ok and have an error_kind": pc.and_(ok, has_kind).true_count,
        "that failed without an error_kind": pc.and_(failed, pc.invert(has_kind)).true_count,
        "with an unknown error_kind": pc.and_(has_kind, pc.invert(pc.is_in(kind, value_set=_KINDS))).true_count,
        "without row_index, sample_index or run_id": max(
            missing("row_index"), missing("sample_index"), missing("run_id")
        ),
    }


def _is_identity(text: object) -> bool:
    return isinstance(text, str) and len(text) == 32 and not set(text) - set("0123456789abcdef")


def _check_journals(location: Location, report: VerifyReport, *, running: bool) -> None:
    journals = location.journals
    for generation in journals.generations():
        try:
            found = replay(journals, generation)
        except FileNotFoundError:
            continue
        except StorageError as error:
            report.problems.append(error.message)
            continue
        report.journals += 1
        report.unpublished += found.records
        damage = found.damage
        if damage is None:
            continue
        text = f"{journals.address(generation)}: {plural(damage.dropped, 'byte')} after byte {damage.offset}"
        if not damage.torn:
            report.problems.append(f"{text} are damaged")
        elif not running:
            report.notes.append(f"{text} are an unfinished write, as a crash leaves it; they were never counted")
