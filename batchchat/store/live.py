"""What is live: the indexes of a run, and what the pass under way knows of its rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from batchchat.store.index import KeyIndex, RecordIndex, is_live, key_digest
from batchchat.store.known import KnownRows


class Superseding(NamedTuple):
    """Whether a live record may have to leave: for one of the same identity, for one of the same key and sample."""

    by_id: bool
    by_key: bool


class LiveRecords:
    """The indexes of one output. They belong to the event loop, save while nothing else is at work.

    `known` are the rows whose requests an earlier pass noted, None if this pass knows none. The indexes are those of
    `beside` if it is given: the shards of an output share them, and each knows what its own records supersede.
    """

    def __init__(self, *, with_keys: bool, known: KnownRows | None, beside: LiveRecords | None = None) -> None:
        self.index: RecordIndex = RecordIndex() if beside is None else beside.index
        self.keys: KeyIndex | None = (KeyIndex() if with_keys else None) if beside is None else beside.keys
        self.known = known
        self._by_id = self._by_key = False

    def put(self, custom_id: str, key: str | None, sample_index: int, state: int, *, seen: bool) -> None:
        """Note a live record, and whether it may supersede another one."""
        before = self.index.put(custom_id, state, seen=seen)
        had_live = is_live(before)
        self._by_id = self._by_id or had_live
        if self.keys is not None and key is not None:
            had_key = self.keys.mark_live(key_digest(key, sample_index))
            # With a live record of the same identity, the key is that record's own: nothing else has to leave.
            self._by_key = self._by_key or (had_key and not had_live)

    def remove(self, removed: Iterable[tuple[str, bool]]) -> None:
        """Note identities that have no live record any more, each with whether the archive holds its completion."""
        for custom_id, archived in removed:
            self.index.remove(custom_id, archived=archived)

    def take_superseding(self) -> Superseding:
        """Return what the records since the last call may supersede."""
        found = Superseding(self._by_id, self._by_key)
        self._by_id = self._by_key = False
        return found
