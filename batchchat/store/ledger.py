"""The ledger of an output: what each sealed generation of the journal cost, one line a generation, never changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from batchchat.records import Spend
from batchchat.store.json_files import append_json, read_lines
from batchchat.store.location.port import StateFiles

LEDGER = "ledger.jsonl"


class SpendLedger:
    """What the runs into an output have cost: the lines of the file, and what was counted since they were read.

    `keys` are those of costs that count once. `damaged_lines` could not be read.
    Raises StorageError if the disk refuses.
    """

    def __init__(self, files: StateFiles) -> None:
        self._files = files
        self.by_run: dict[str, Spend] = {}
        self.generations: set[int] = set()
        self.keys: set[str] = set()
        self.damaged_lines = 0

    def read(self) -> SpendLedger:
        """Read the file, and return the ledger."""
        lines, self.damaged_lines = read_lines(self._files, LEDGER)
        for line in lines:
            amounts: list[Any] = [line.get(name) for name in Spend._fields]
            generation, run_id = line.get("generation"), line.get("run_id")
            sound = all(type(amount) in {int, float} for amount in amounts)
            if not (sound and type(generation) is int and isinstance(run_id, str)):
                self.damaged_lines += 1
            elif generation not in self.generations:
                # A crash behind the line and before its journal was deleted makes the next run write it again.
                self.generations.add(generation)
                self.count(run_id, Spend(*amounts))
                keys = line.get("keys")
                self.keys.update(keys if isinstance(keys, list) else ())
        return self

    def append(self, generation: int, run_id: str, spend: Spend, keys: Sequence[str] = ()) -> None:
        """Write down what a generation cost, durably; do nothing if the file has it already, or if it cost nothing."""
        if generation not in self.generations and (any(spend) or keys):
            told = {"generation": generation, "run_id": run_id, **spend._asdict()}
            append_json(self._files, LEDGER, told | ({"keys": list(keys)} if keys else {}))

    def count(self, run_id: str, spend: Spend) -> None:
        """Add to what a run has cost, without writing it down: its journal holds it."""
        if any(spend):
            self.by_run[run_id] = self.of(run_id).plus(spend)

    def of(self, run_id: str) -> Spend:
        """Return what one run has cost."""
        return self.by_run.get(run_id, Spend())

    def total(self) -> Spend:
        """Return what all runs have cost."""
        return sum_spends(self.by_run.values())


def sum_spends(spends: Iterable[Spend]) -> Spend:
    """Add up what several entries cost."""
    columns = tuple(zip(*spends, strict=True))
    return Spend(*(sum(column) for column in columns)) if columns else Spend()
