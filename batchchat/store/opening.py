"""Opening an output for a run: take hold of it, mend it, make its objects, and recover what an earlier run left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError, UsageError
from batchchat.store.bounds import PartBounds
from batchchat.store.column_types import OutputTypes, save_types
from batchchat.store.commit_log import CommitLog
from batchchat.store.components import Components
from batchchat.store.dataset import Dataset, Point
from batchchat.store.known import KnownRows, Pass
from batchchat.store.ledger import SpendLedger
from batchchat.store.live import LiveRecords
from batchchat.store.location.port import Location, OutputHold
from batchchat.store.manifest import Manifest
from batchchat.store.recovery import Recovery, mend_state, recover
from batchchat.store.schema import Frozen, joined_parsed
from batchchat.store.state import State


class OpenedOutput(NamedTuple):
    """The objects of an output that is held, the hold on it, and what opening found."""

    components: Components
    hold: OutputHold
    recovery: Recovery


@dataclass(frozen=True, slots=True)
class Opening:
    """How a run opens an output. The fields mean what the arguments of `Store.open` of the same names do.

    `beside` is the indexes of another shard of the same output that this run holds.
    """

    job_name: str
    snapshot: Mapping[str, Any]
    run_id: str
    input_schema: pa.Schema | None
    parsed: pa.Field | None
    with_keys: bool
    bounds: PartBounds
    currency: str | None
    fresh: bool
    take_over: bool
    following: Pass | None
    beside: LiveRecords | None
    point: Point

    def open(self, location: Location) -> OpenedOutput:
        """Open an output, creating it if there is none. Raises as `Store.open`."""
        try:
            return self._open(location)
        except StorageError as error:
            # Permissions are not a broken disk: a person chooses another folder, and nothing has been written.
            if isinstance(error.__cause__, PermissionError):
                raise UsageError(
                    error.message, remedy="Choose a folder that you may read and write, or change its permissions."
                ) from error
            raise

    def _open(self, location: Location) -> OpenedOutput:
        hold, renamed = self._take_hold(location)
        known: KnownRows | None = None
        try:
            before, mended = mend_state(location, self.input_schema, self.currency)
            frozen = Frozen(before.input, joined_parsed(before.parsed, self.parsed))
            known = self.following.known(location.scratch()) if self.following is not None else None
            held = self._components(location, frozen, known)
            recovery = Recovery(renamed=renamed, messages=mended)
            recover(held, recovery)
            if self.snapshot:
                held.state.save_job(self.run_id, dict(self.snapshot))
            if frozen.input is None and self.input_schema is not None:
                held.types.freeze_input(self.input_schema)
            # A job may ask for `parsed` later than its first run: the type is frozen from then on.
            elif frozen.input is not None and frozen.parsed is not before.parsed:
                save_types(location.state, frozen.input, frozen.parsed)
        except BaseException:
            if known is not None:
                known.trail.close()
            # What was found may be half mended: the next run must look at it as after a crash.
            hold.release(clean=False)
            raise
        return OpenedOutput(held, hold, recovery)

    def _take_hold(self, location: Location) -> tuple[OutputHold, str | None]:
        """Check the output, set it aside if it is to be `fresh`, and hold it. Return also where the old one is now."""
        renamed: str | None = None
        if location.holds_output():
            if self.fresh:
                # Held while it is moved, so that no other run writes into what becomes the old output.
                old = location.hold(self.run_id, take_over=self.take_over)
                try:
                    renamed = location.move_away()
                finally:
                    old.release()
            else:
                self._check_owner(location)
        location.prepare()
        hold = location.hold(self.run_id, take_over=self.take_over)
        try:
            # Again: another run may have made it something else before the hold was ours.
            if location.holds_output():
                self._check_owner(location)
        except BaseException:
            hold.release()
            raise
        return hold, renamed

    def _check_owner(self, location: Location) -> None:
        """Raise UsageError if the output has an unknown format or belongs to another job."""
        state = State(location)
        state.check_format()
        state.check_name(self.job_name)

    def _components(self, location: Location, frozen: Frozen, known: KnownRows | None) -> Components:
        """Make the objects of an output that is held."""
        metadata = {"batchchat.job": self.job_name} | ({"batchchat.currency": self.currency} if self.currency else {})
        types, manifest = OutputTypes(location, frozen, metadata), Manifest(location)
        log = CommitLog(location.journals, types, manifest, run_id=self.run_id, bounds=self.bounds, point=self.point)
        return Components(
            location=location,
            state=State(location),
            types=types,
            manifest=manifest,
            ledger=SpendLedger(location.state),
            live=LiveRecords(with_keys=self.with_keys, known=known, beside=self.beside),
            dataset=Dataset(location, types, bounds=self.bounds, point=self.point, before_removal=manifest.forget),
            log=log,
            point=self.point,
        )
