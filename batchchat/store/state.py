"""The small files of an output's state: its format, its job, and what a run leaves for the next one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from batchchat.errors import StorageError, UsageError
from batchchat.store.column_types import SCHEMA
from batchchat.store.json_files import publish_json, read_object
from batchchat.store.location.choice import location_of
from batchchat.store.location.port import Location
from batchchat.store.manifest import MANIFEST, read_manifest
from batchchat.store.schema import FORMAT, SHARDED_FORMAT

FORMAT_FILE = "format.json"
JOB = "job.json"
STATE = "state.json"
LIVE = "live.json"
SHARDS = "shards.json"
SNAPSHOTS = "snapshots"

_LOST = {
    STATE: ": which texts of the job the records are of is not known any more, and nothing is archived for it",
    MANIFEST: ": whether files were deleted before is not known",
}
"""What is lost with a damaged file of the state."""
SECOND = len("20260101T000000")
"""The part of a run's identity that tells when it began."""


class State:
    """The small files of one output. Every method raises StorageError if the disk refuses."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._files = location.state

    def object(self, name: str) -> dict[str, Any]:
        """Return the JSON object of a file; an empty one if there is none, or if the file is damaged.

        Nothing of it is needed to read the output. `damaged_files` tells which are damaged.
        """
        return read_object(self._files, name)

    def save(self, name: str, value: dict[str, Any], *, durable: bool = True) -> None:
        """Replace a file by a JSON object."""
        publish_json(self._files, name, value, durable=durable)

    def damaged_files(self) -> list[str]:
        """Return the names of the files that are there and hold no JSON object."""
        names = (FORMAT_FILE, JOB, SCHEMA, STATE, MANIFEST, LIVE)
        found = [name for name in names if self._files.has(name) and not self.object(name)]
        if FORMAT_FILE not in found and self._files.has(FORMAT_FILE):
            found += [FORMAT_FILE] if type(self.object(FORMAT_FILE).get("format")) is not int else []
        if MANIFEST not in found:
            try:
                read_manifest(self._files)
            except StorageError:
                found.append(MANIFEST)
        return found

    def mend(self) -> list[str]:
        """Set damaged files aside and write `format.json` if it is lost; say in sentences what was done.

        Only while the output is held. `schema.json` is left to whoever knows the types.
        """
        told = []
        for name in self.damaged_files():
            if name == LIVE:  # a loss of power may leave it empty, and nobody needs it
                self._files.remove(name)
                continue
            kept = self._files.set_aside(name)
            address = self._files.address(name)
            told.append(f"{address} was damaged, and is written anew{_LOST.get(name, '')}. It is kept as {kept}.")
        self.write_format()
        return told

    # ---- the format, the job and its currency -----------------------------------------------------------------------

    @property
    def lacks_format(self) -> bool:
        """Tell whether `format.json` is missing."""
        return not self._files.has(FORMAT_FILE)

    def write_format(self) -> None:
        """Make the location an output, if it is none yet: `format.json` is what tells one."""
        if self.lacks_format:
            shards = self.shards()
            self.save(FORMAT_FILE, {"format": FORMAT} if shards is None else {"format": SHARDED_FORMAT})

    def shards(self) -> int | None:
        """Return how many shards the output has, None if it has none. Raises StorageError if that is not known."""
        count = self.object(SHARDS).get("shards")
        if type(count) is int and count > 1:
            return count
        # The format says that there are some. To take the output for one without shards would ask every row again.
        if self._files.has(SHARDS) or self.object(FORMAT_FILE).get("format") == SHARDED_FORMAT:
            raise StorageError(
                f"{self._files.address(SHARDS)} is missing or damaged: how many shards the output has is not known",
                remedy='Write it again, such as {"shards": 64}: the number stands in the job file, as output.shards.',
            )
        return None

    def set_shards(self, count: int) -> None:
        """Note how many shards a new output has. An earlier version, which knows none, then refuses the output."""
        self.save(SHARDS, {"shards": count})
        self.save(FORMAT_FILE, {"format": SHARDED_FORMAT})

    def check_format(self) -> None:
        """Raise UsageError if the output has a layout that this version does not know.

        If the file is lost or damaged, it is the first layout: there is no other one, and a later version would
        have left files that this one cannot read, and says so.
        """
        version = self.object(FORMAT_FILE).get("format")
        if type(version) is int and version not in (FORMAT, SHARDED_FORMAT):
            raise UsageError(
                f"{self._location.address} has the output format {version}, and this version of batchchat knows "
                f"{FORMAT} only",
                remedy="Go on with the version that wrote it, or set the output aside with --fresh.",
            )

    def check_name(self, job_name: str) -> None:
        """Raise UsageError if the output belongs to a job of another name."""
        other = self.job().get("name")
        if isinstance(other, str) and other != job_name:
            raise UsageError(
                f"the output {self._location.address} belongs to the job {other!r}, and this one is {job_name!r}",
                remedy="Choose another output, or set the old one aside with --fresh (renamed, never deleted).",
            )

    def check_currency(self, currency: str | None) -> str | None:
        """Return the currency of this output's costs, None if there is none yet.

        Raises UsageError if it is another one than `currency`: sums of two currencies would mean nothing.
        """
        kept = self.object(STATE).get("currency")
        if isinstance(kept, str) and currency is not None and kept != currency:
            raise UsageError(
                f"the costs of the output {self._location.address} are in {kept}, and the price of this job is in "
                f"{currency}: currencies are never added",
                remedy=f"Give `prices` in {kept}, choose another output, or set the old one aside with --fresh.",
            )
        return kept if isinstance(kept, str) else None

    def set_currency(self, currency: str | None) -> None:
        """Note the currency of this output's costs, if there is none yet. Raises UsageError as `check_currency`."""
        if self.check_currency(currency) is None and currency is not None:
            self.save(STATE, {**self.object(STATE), "currency": currency})

    def job(self) -> dict[str, Any]:
        """Return the job of the last run as JSON values; that of the newest snapshot if `job.json` is lost."""
        found = self.object(JOB)
        if isinstance(found.get("name"), str):
            return found
        names = sorted((name for name, _ in self._snapshots()), reverse=True)
        return next((job for name in names if (job := self.object(f"{SNAPSHOTS}/{name}"))), {})

    def save_job(self, run_id: str, snapshot: dict[str, Any]) -> None:
        """Write down the job of a run, and make it the last one's."""
        self.save(f"{SNAPSHOTS}/{run_id}.json", snapshot)
        self.save(JOB, snapshot)

    # ---- runs -------------------------------------------------------------------------------------------------------

    def run_ids(self) -> list[str]:
        """Return the identities of all runs that ever held this output, in their order."""
        return in_order((self.run_starts(),))

    def run_starts(self) -> list[tuple[str, int]]:
        """Return the identities of all runs, in no order, each with the time at which its start was written."""
        return [(name.removesuffix(".json"), written) for name, written in self._snapshots()]

    def snapshot(self, run_id: str) -> dict[str, Any] | None:
        """Return the job as a run had it, None if that run left none."""
        return self.object(f"{SNAPSHOTS}/{run_id}.json") or None

    def _snapshots(self) -> list[tuple[str, int]]:
        return [each for each in self._location.state.written(SNAPSHOTS) if each[0].endswith(".json")]


def in_order(starts: Iterable[Sequence[tuple[str, int]]]) -> list[str]:
    """Return the identities of runs in the order of their starts, each once.

    `starts` are what `State.run_starts` returns, of one place or of several that the same runs held.
    """
    first: dict[str, int] = {}
    for run_id, written in (each for place in starts for each in place):
        first[run_id] = min(written, first.get(run_id, written))
    # An identity tells the second of its run's start; the files themselves tell those of one second apart.
    return sorted(first, key=lambda run_id: (run_id[:SECOND], first[run_id]))


def check_currency(directory: Path | str, currency: str | None) -> None:
    """Raise UsageError if the costs of an output are in another currency than this one."""
    State(location_of(directory)).check_currency(currency)


def batches_folder(directory: Path | str) -> Path:
    """Return the folder on this machine for requests in batches of a provider. It need not be there."""
    return location_of(directory).batches()
