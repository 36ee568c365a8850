"""An output that a run holds: what the run asks of it, whether it is one store or the shards of one output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from batchchat.addresses import Address
from batchchat.records import Spend
from batchchat.store.index import Counts, KeyIndex, RecordIndex
from batchchat.store.journal import AnswerEntry, Entry
from batchchat.store.known import KnownRows
from batchchat.store.location.port import Location
from batchchat.store.recovery import Recovery
from batchchat.store.run_files import RunNotes
from batchchat.store.store import StoreChange


class HeldOutput(Protocol):
    """What `Store` and `ShardedStore` do alike; `Store` tells what each method means, and who may call it."""

    recovery: Recovery

    def commit(self, entries: Sequence[Entry]) -> StoreChange:
        """Make entries durable. Return the change to apply."""

    def apply(self, change: StoreChange) -> None:
        """Fold a change into the indexes."""

    def open_answers(self) -> dict[str, list[AnswerEntry]]:
        """Return the answers of requests that are not settled."""

    def should_seal(self, now: float) -> bool:
        """Tell whether enough is pending for a seal."""

    @property
    def pending_rows(self) -> int:
        """How many committed records are in no part yet."""

    @property
    def unsealed(self) -> bool:
        """Whether committed records wait."""

    def rotate(self) -> object | None:
        """Close what is open of the journal; return what `seal` takes, None if there is nothing."""

    def seal(self, sealing: Any) -> StoreChange:
        """Publish what `rotate` closed."""

    def finish(self) -> StoreChange:
        """Seal everything that is left."""

    def fetch_archived(self, custom_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return archived completions."""

    def archive_unseen(self) -> StoreChange:
        """Archive what this pass has not met."""

    def archive_surplus(self, samples: int) -> StoreChange:
        """Archive samples that the job asks for no more."""

    def drop_answers(self) -> None:
        """Let go of open answers."""

    @property
    def directory(self) -> Address:
        """The folder of the output, or its URL."""

    @property
    def location(self) -> Location:
        """Where the run is seen: where commands for it are left."""

    @property
    def index(self) -> RecordIndex:
        """What is done."""

    @property
    def keys(self) -> KeyIndex | None:
        """Which keys have a live record."""

    @property
    def known(self) -> KnownRows | None:
        """The rows whose requests an earlier pass noted."""

    def counts(self) -> Counts:
        """Return how many records are live."""

    def stored_rows(self) -> int:
        """Return how many records the dataset holds."""

    def ledger_total(self) -> Spend:
        """Return what all runs have cost."""

    @property
    def runs(self) -> RunNotes:
        """What runs leave for others."""

    @property
    def commit_s(self) -> float:
        """The seconds between the beginnings of two commits."""

    def hurry(self) -> None:
        """End every wait for a place that is away."""

    def close(self) -> None:
        """Let go of the output."""
