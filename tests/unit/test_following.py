"""The tail of an output: each record of a run once, whatever is sealed between two looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from batchchat.choosing import RecordFilter
from batchchat.errors import UsageError
from batchchat.events import Snapshot
from batchchat.following import follow_records
from batchchat.store import OutputTail, lock_holder
from tests.thorough import one_in
from tests.unit.test_run_clock import Provider, answer, row_of, simulate


async def quick(request: httpx.Request) -> httpx.Response:
    await anyio.sleep(0.1 + row_of(request) % 7 / 10)
    return answer("no" if row_of(request) % 3 else "yes")


def rows_of(tail: OutputTail, *, last: bool = False) -> list[int]:
    return [row for batch in tail.read(last=last) for row in batch.column("row_index").to_pylist()]


@pytest.mark.parametrize("part_rows", [5, 50_000])
@pytest.mark.parametrize("every", one_in(2, [1, 20]))
def test_each_record_is_told_once_though_journals_come_and_go(tmp_path: Path, part_rows: int, every: int) -> None:
    out = tmp_path / "out"
    told: list[int] = []
    tails: list[OutputTail] = []
    there: list[int] = []
    looks = 0

    def on_snapshot(snapshot: Snapshot) -> None:
        nonlocal looks
        looks += 1
        # The first run is over: its records are no news.
        if not tails and snapshot.ok + snapshot.failed >= 15:
            there.append(snapshot.ok + snapshot.failed)
            tails.append(OutputTail(out, snapshot.run_id))
        elif tails and looks % every == 0:
            told.extend(rows_of(tails[0]))

    output = {"path": str(out), "part_rows": part_rows}
    simulate(tmp_path, Provider(quick), 10, output=output, limits={"concurrency": 8})
    summary, _, _ = simulate(
        tmp_path, Provider(quick), 70, output=output, limits={"concurrency": 8}, on_snapshot=on_snapshot
    )
    told.extend(rows_of(tails[0], last=True))
    tails[0].close()
    assert summary.new_ok == 60
    assert len(told) == len(set(told)) >= 60 - there[0] - 8
    assert len(told) <= 60 - 15
    assert set(told) <= set(range(10, 70))


def test_what_is_followed_is_chosen_and_ends_with_the_run(tmp_path: Path) -> None:
    """The reader takes its steps on the clock of the run: each look is a snapshot."""
    out = tmp_path / "out"
    found: dict[str, list[Any]] = {"all": [], "yes": [], "row": []}
    filters = {"all": RecordFilter(), "yes": RecordFilter(where="completion == 'yes'"), "row": RecordFilter(row=50)}
    readers: dict[str, Any] = {}

    def on_snapshot(snapshot: Snapshot) -> None:
        if snapshot.phase != "running" or lock_holder(out) is None:
            return
        for name, by in filters.items():
            reader = readers.setdefault(name, follow_records(out, by, sleep=lambda _seconds: None))
            while (view := next(reader)) is not None:
                found[name].append(view)

    simulate(tmp_path, Provider(quick), 60, limits={"concurrency": 4}, on_snapshot=on_snapshot)
    for name, reader in readers.items():
        found[name] += [view for view in reader if view is not None]
    rows = {name: [view.record["row_index"] for view in views] for name, views in found.items()}
    assert sorted(rows["all"]) == list(range(60))
    assert sorted(rows["yes"]) == list(range(0, 60, 3))
    assert rows["row"] == [50]
    view = found["row"][0]
    assert (view.input["text"], view.record["completion"]) == ("row number 50", "no")
    assert view.messages[-1]["content"].endswith("row number 50")
    with pytest.raises(UsageError, match="no run is going on"):
        next(follow_records(out, RecordFilter()))


def test_an_expression_that_names_no_column_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told: list[str] = []

    def on_snapshot(snapshot: Snapshot) -> None:
        if snapshot.ok > 3 and not told:
            reader = follow_records(out, RecordFilter(where="nothing > 1"), sleep=lambda _seconds: None)
            try:
                next(reader)
            except UsageError as error:
                told.append(error.message)

    simulate(tmp_path, Provider(quick), 10, limits={"concurrency": 1}, on_snapshot=on_snapshot)
    assert "there is no column 'nothing'" in told[0]
