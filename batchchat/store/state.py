"""The folder of an output: where everything lies, who holds it, and the small files of its state.

DIR/data/part-00000.parquet …          the dataset, and nothing else
DIR/_batchchat/format.json             the version of this layout
DIR/_batchchat/job.json, snapshots/    the job of the last run, and of each run by its run_id
DIR/_batchchat/schema.json             the input columns, frozen at the first run
DIR/_batchchat/state.json              what a run leaves for the next one
DIR/_batchchat/trail.log, .ids, .keys  which requests the rows of the input became; may be deleted at any time
DIR/_batchchat/journal-0000000001.log  one generation of the journal
DIR/_batchchat/ledger.jsonl            what each sealed generation cost
DIR/_batchchat/runs.jsonl              one line a run
DIR/_batchchat/archive/                records that left the dataset; Parquet content in *.arc files
DIR/_batchchat/answers/                answers that equal requests of the pass under way share (`dedupe`)
DIR/_batchchat/batches/                requests in batches of a provider that have not ended, and the log of them
DIR/_batchchat/damaged/                parts and journals that could not be read
DIR/_batchchat/manifest.json           which of these files are there, so that a deleted one is noticed
DIR/_batchchat/lock, live.json, tmp/   who is at work, what it is doing, its drafts
"""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.errors import StorageError, UsageError
from batchchat.records import PARSED, Spend
from batchchat.store.journal import rows_schema
from batchchat.store.location.disk import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    append_line,
    free_name,
    publish_bytes,
    publish_json,
    read_json,
    read_lines,
    storage_errors,
    synchronize_folder,
)
from batchchat.store.location.journals import journals
from batchchat.store.location.local import LocalFiles
from batchchat.store.location.lock import Lock, holder_of, refusal, unusable
from batchchat.store.manifest import NAME as MANIFEST
from batchchat.store.manifest import Contents, losses, read_manifest, size_of
from batchchat.store.parts import DamagedPartError, PartReader
from batchchat.store.schema import FORMAT, Frozen, own_columns

_EFFECTIVE = os.access in os.supports_effective_ids


_CARD = b"""configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
"""

_LOST = {
    "state.json": ": which texts of the job the records are of is not known any more, and nothing is archived for it",
    "manifest.json": ": whether files were deleted before is not known",
}
"""What is lost with a damaged file of the state."""

_LOOKS = 3
"""How often a folder is looked at before it is something else: another run may be creating its output just then."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one output."""

    root: Path

    @property
    def state(self) -> Path:
        """The folder of everything that is not the dataset."""
        return self.root / "_batchchat"

    @property
    def data(self) -> Path:
        """The folder of the parts."""
        return self.root / "data"

    @property
    def temporary(self) -> Path:
        """The folder of drafts."""
        return self.state / "tmp"

    @property
    def damaged(self) -> Path:
        """The folder of files that could not be read."""
        return self.state / "damaged"

    @property
    def card(self) -> Path:
        """The file that tells Hugging Face datasets which of all these files are the data."""
        return self.root / ".huggingface.yaml"

    @property
    def ledger(self) -> Path:
        """The ledger of sealed generations."""
        return self.state / "ledger.jsonl"

    @property
    def runs(self) -> Path:
        """The list of ended runs."""
        return self.state / "runs.jsonl"

    @property
    def batches(self) -> Path:
        """The folder of what is, or was, under way in batches of a provider."""
        return self.state / "batches"

    @property
    def answers(self) -> Path:
        """The cache of a pass that sends equal requests once; gone when the pass is complete."""
        return self.state / "answers"

    def hold(self, run_id: str) -> Lock:
        """Take the exclusive hold on the output. Raises OutputLocked, UsageError, StorageError."""
        return Lock(self.root, self.state, run_id)

    def holder(self) -> dict[str, Any] | None:
        """Return who holds the output now (`pid`, `host`, `run_id`, `started_at`), None if nobody does."""
        return holder_of(self.state)

    def parts(self) -> LocalFiles:
        """Return the dataset's parts."""
        return LocalFiles(
            self.data,
            temporary=self.temporary,
            damaged=self.damaged,
            stem="part",
            suffix=".parquet",
            mode=0o666,  # narrowed by the umask, like any result that a user writes
        )

    def archive(self) -> LocalFiles:
        """Return the archive's files."""
        return LocalFiles(
            self.state / "archive",
            temporary=self.temporary,
            damaged=self.damaged,
            stem="archive",
            suffix=".arc",
            mode=PRIVATE_FILE,
        )

    def read(self, name: str) -> Any:
        """Read a JSON file of the state folder; None where it does not exist."""
        return read_json(self.state / name)

    def object(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the state folder; an empty one where there is none, or where the file is damaged.

        Nothing of it is needed to read the output. `damaged_files` tells which are damaged. Raises StorageError where
        the system refuses.
        """
        try:
            found = self.read(name)
        except StorageError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return {}
        return found if isinstance(found, dict) else {}

    def damaged_files(self) -> list[str]:
        """Return the names of the state's files that are there and hold no JSON object. Raises as `object`."""
        names = ("format.json", "job.json", "schema.json", "state.json", MANIFEST, "live.json")
        found = [name for name in names if (self.state / name).exists() and not self.object(name)]
        if "format.json" not in found and (self.state / "format.json").exists():
            found += ["format.json"] if type(self.object("format.json").get("format")) is not int else []
        if MANIFEST not in found:
            try:
                read_manifest(self.state)
            except StorageError:
                found.append(MANIFEST)
        return found

    def job(self) -> dict[str, Any]:
        """Return the job of the last run as JSON values: that of the newest snapshot where `job.json` is lost."""
        found = self.object("job.json")
        if isinstance(found.get("name"), str):
            return found
        folder = self.state / "snapshots"
        names = sorted(path.name for path in folder.glob("*.json")) if folder.is_dir() else []
        return next((job for name in reversed(names) if (job := self.object(f"snapshots/{name}"))), {})

    def contents(self) -> Contents:
        """Return what the folders hold now, as the manifest names it."""
        return Contents(
            parts=self.parts().names(),
            archive=self.archive().names(),
            journals=[path.name for path in journals(self.state).values()],
            ledger=size_of(self.ledger),
            runs=size_of(self.runs),
        )

    def missing(self) -> list[str]:
        """Say in sentences which files of the output are gone that no run removed. Raises StorageError."""
        known = read_manifest(self.state)
        if known is None:
            return []
        lost = known.lost(self.contents())
        if lost != Contents():  # a run at work may have sealed meanwhile: only what is still named is missing
            again = read_manifest(self.state) or Contents()
            lost = again.common(known).lost(self.contents())
        return losses(lost, self.root)

    def save(self, name: str, value: Any, *, durable: bool = True) -> None:
        """Publish a JSON file of the state folder."""
        publish_json(self.state / name, value, temporary=self.temporary, durable=durable)

    # ---- what a folder is ---------------------------------------------------------------------------------------

    def is_output(self) -> bool:
        """Tell whether the folder is an output of batchchat. Raises UsageError where it is something else.

        False where there is no folder, an empty one, or one whose creation was cut short.
        """
        for _ in range(_LOOKS):
            found = self._looks_like_output()
            if found is not None:
                return found
        raise UsageError(
            f"the output folder {self.root} holds something else, and no output of batchchat",
            remedy="Choose an empty folder, or a path that is free.",
        )

    def _looks_like_output(self) -> bool | None:
        """Tell whether the folder is an output; None for something else, or while another run creates or moves it."""
        try:
            if not self.root.exists():
                return False
            if not self.root.is_dir():
                raise UsageError(f"the output {self.root} is a file", remedy="Choose a folder, or a path that is free.")
            if any(self._marks()):
                return True
            others = [path for path in self.root.iterdir() if path != self.state]
            begun = self.state.is_dir() and any(path.name not in {"tmp", "lock"} for path in self.state.iterdir())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unusable(self.root, error) from error
        return None if others or begun else False

    def _marks(self) -> Iterator[bool]:
        """Tell of each file that only an output has whether it is there: `format.json` alone may be lost."""
        yield (self.state / "format.json").exists()
        if self.state.is_dir():
            yield from ((self.state / name).is_file() for name in ("job.json", "schema.json", "runs.jsonl"))
            yield bool(journals(self.state))

    def check_format(self) -> None:
        """Raise UsageError where the output has a layout that this version does not know.

        Where the file is lost or damaged, it is the first layout: there is no other one, and a later version would
        have left files that this one cannot read, and says so.
        """
        version = self.object("format.json").get("format")
        if type(version) is int and version != FORMAT:
            raise UsageError(
                f"{self.root} has the output format {version}, and this version of batchchat knows {FORMAT} only",
                remedy="Go on with the version that wrote it, or set the output aside with --fresh.",
            )

    def check_name(self, job_name: str) -> None:
        """Raise UsageError where the output belongs to a job of another name."""
        other = self.job().get("name")
        if isinstance(other, str) and other != job_name:
            raise UsageError(
                f"the output {self.root} belongs to the job {other!r}, and this one is {job_name!r}",
                remedy="Choose another output, or set the old one aside with --fresh (renamed, never deleted).",
            )

    def check_currency(self, currency: str | None) -> str | None:
        """Return the currency in which this output's costs are told, None where none is yet.

        Raises UsageError where it is another one than `currency`: sums of two currencies would mean nothing.
        """
        kept = self.object("state.json").get("currency")
        if isinstance(kept, str) and currency is not None and kept != currency:
            raise UsageError(
                f"the costs of the output {self.root} are in {kept}, and the price of this job is in {currency}: "
                "currencies are never added",
                remedy=f"Give `prices` in {kept}, choose another output, or set the old one aside with --fresh.",
            )
        return kept if isinstance(kept, str) else None

    def create_base(self) -> None:
        """Create the folders that a lock needs. Raises UsageError, with nothing created, where that is not allowed."""
        missing = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        existing = missing[-1].parent if missing else self.root
        for folder in (existing, self.state, self.data, self.temporary):
            if folder.exists() and not folder.is_dir():
                raise unusable(folder, refusal(errno.ENOTDIR, folder))
            if folder.exists() and not os.access(folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
                read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
                raise unusable(folder, refusal(errno.EROFS if read_only else errno.EACCES, folder))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self.state, self.temporary):
                folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            for folder in missing:
                synchronize_folder(folder.parent)
        except OSError as error:
            raise unusable(self.root, error) from error

    def create_rest(self) -> None:
        """Make the folder an output by its format file, create the other folders and clear drafts."""
        if not (self.state / "format.json").exists():
            self.save("format.json", {"format": FORMAT})
        with storage_errors(self.state):
            for folder in (self.state / "snapshots", self.state / "archive", self.damaged):
                folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            self.data.mkdir(exist_ok=True)
            if not self.card.exists():
                publish_bytes(self.card, _CARD, temporary=self.temporary)
            for draft in self.temporary.iterdir():
                if not draft.is_dir():
                    draft.unlink()
            for folder in (self.state, self.root):
                synchronize_folder(folder)

    def mend(self) -> list[str]:
        """Set damaged state files aside and write `format.json` where it is lost; say in sentences what was done.

        Only while the output is held. `schema.json` is left to whoever knows the types.
        """
        told = []
        for name in self.damaged_files():
            path = self.state / name
            with storage_errors(path):
                if name == "live.json":  # a loss of power may leave it empty
                    path.unlink()
                    continue
                kept = free_name(self.damaged, name)
                path.rename(kept)
            told.append(f"{path} was damaged, and is written anew{_LOST.get(name, '')}. It is kept as {kept}.")
        if not (self.state / "format.json").exists():
            self.save("format.json", {"format": FORMAT})
        return told

    def set_aside(self) -> Path:
        """Rename the whole output to a free name beside it, and return that name."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        target = self.root.with_name(f"{self.root.name}.old-{stamp}")
        number = 1
        while target.exists():
            target = self.root.with_name(f"{self.root.name}.old-{stamp}.{number}")
            number += 1
        with storage_errors(self.root):
            self.root.rename(target)
            synchronize_folder(self.root.parent)
        return target

    # ---- ledger -------------------------------------------------------------------------------------------------

    def read_ledger(self) -> tuple[dict[str, Spend], set[int], int]:
        """Return what each run cost, the generations counted, and how many lines could not be read."""
        lines, damaged = read_lines(self.ledger)
        by_run: dict[str, Spend] = {}
        generations: set[int] = set()
        for line in lines:
            amounts: list[Any] = [line.get(name) for name in Spend._fields]
            generation, run_id = line.get("generation"), line.get("run_id")
            sound = all(type(amount) in {int, float} for amount in amounts)
            if not (sound and type(generation) is int and isinstance(run_id, str)):
                damaged += 1
                continue
            spend = Spend(*amounts)
            if generation not in generations:
                generations.add(generation)
                by_run[run_id] = by_run.get(run_id, Spend()).plus(spend)
        return by_run, generations, damaged

    def add_to_ledger(self, generation: int, run_id: str, spend: Spend) -> None:
        """Append what a sealed generation cost, durably."""
        append_line(self.ledger, {"generation": generation, "run_id": run_id, **spend._asdict()})

    # ---- frozen schema ------------------------------------------------------------------------------------------

    def read_schema(self) -> Frozen:
        """Read the frozen types; nothing is frozen before the first run."""
        found = self.object("schema.json")
        try:
            schema = _schema_of(found["arrow"])
            parsed = _schema_of(found["parsed"]).field(0) if found.get("parsed") else None
        except (ValueError, KeyError, TypeError, IndexError, pa.ArrowException, OSError):
            return self._recovered_schema()
        # A type that no record has may still be another one.
        return Frozen(schema, parsed if self.holds_records() else None)

    def _recovered_schema(self) -> Frozen:
        """Return the types that the records themselves have, where `schema.json` is lost; nothing where none is there.

        Raises StorageError where there are parts and none of them can be read.
        """
        files = self.parts()
        names = files.names()
        for name in names:
            try:
                with PartReader(files, name) as reader:
                    fields = list(reader.schema)
            except (FileNotFoundError, DamagedPartError):
                continue
            carried = len(fields) - len(own_columns(pa.schema(fields)))
            parsed = next((field for field in fields[carried:] if field.name == PARSED), None)
            return Frozen(pa.schema(fields[:carried]), parsed, recovered=True)
        for path in journals(self.state).values():
            with suppress(FileNotFoundError):
                schema = rows_schema(path)
                if schema is not None:
                    return Frozen(schema, recovered=True)
        if names:
            raise StorageError(
                f"{self.state / 'schema.json'} is missing or damaged, and no part can be read that tells the types",
                remedy="Restore it from a copy, or start anew with --fresh: the old output is renamed, never deleted.",
            )
        return Frozen()

    def save_schema(self, schema: pa.Schema, parsed: pa.Field | None) -> None:
        """Freeze the types of the input's columns, and of `parsed`."""
        value = {"columns": {field.name: str(field.type) for field in schema}, "arrow": _schema_text(schema)}
        if parsed is not None:
            value |= {"parsed_type": str(parsed.type), "parsed": _schema_text(pa.schema([parsed]))}
        self.save("schema.json", value)

    def holds_records(self) -> bool:
        """Tell whether there are, or may be, any records: parts, archive files, journals."""
        return bool(self.parts().names() or self.archive().names() or journals(self.state))


def _schema_text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def _schema_of(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))


def lock_holder(directory: Path | str) -> dict[str, Any] | None:
    """Return who holds an output now (`pid`, `host`, `run_id`, `started_at`), None if nobody does."""
    return Layout(Path(directory)).holder()
