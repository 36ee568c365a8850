"""A pass that did not see its whole input is never taken for a complete one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import batchchat
from batchchat.errors import StorageError
from batchchat.records import RowBatch
from batchchat.runner.preparation import Prepared
from batchchat.store import read_output, read_state
from tests.integration.jobs import make_job
from tests.thorough import one_in

ROWS = 3000


@pytest.mark.parametrize("name", one_in(3, ["rows.parquet", "rows.csv", "rows.jsonl"]))
def test_an_input_that_is_cut_while_it_is_read_archives_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table = pa.table({"id": range(ROWS), "text": [f"row number {n}" for n in range(ROWS)]})

    def write() -> None:
        if name.endswith("parquet"):
            pq.write_table(table, path, row_group_size=200)
        elif name.endswith("csv"):
            pa.csv.write_csv(table, path)
        else:
            path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))

    cut = False

    def provider(_request: httpx.Request) -> httpx.Response:
        nonlocal cut
        if cut:
            cut = False
            os.truncate(path, 4000)
        choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice]})

    def go(prompt: str) -> batchchat.RunSummary:
        job = make_job(tmp_path, None, input={"path": str(path)}, messages=[{"role": "user", "content": prompt}])
        return batchchat.run(job, transport=httpx.MockTransport(provider), environ={})

    write()
    assert go("one {{ text }}").ok == ROWS
    cut = True
    ended = go("two {{ text }}")
    assert ended.exit_code in {2, 74}
    assert ended.reason
    assert read_state(tmp_path / "out").load_index()[0].counts().live >= ROWS
    assert not list((tmp_path / "out" / "_batchchat" / "archive").iterdir())
    write()
    whole = go("two {{ text }}")
    assert (whole.exit_code, whole.ok, whole.kept) == (0, ROWS, 0)


@pytest.mark.parametrize("promised", [20, 40])
def test_an_input_that_gives_other_rows_than_it_promised_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promised: int
) -> None:
    """Whatever the format: what the source says and what came are held against each other."""
    pq.write_table(pa.table({"id": range(30), "text": ["x"] * 30}), tmp_path / "rows.parquet")
    job = make_job(tmp_path, None, input={"path": str(tmp_path / "rows.parquet"), "key": "id"})
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"choices": [choice]}))
    with monkeypatch.context() as patched:
        patched.setattr("batchchat.sources.formats.ParquetSource.known_rows", lambda _: promised)
        ended = batchchat.run(job, transport=transport, environ={})
    assert ended.exit_code == 74
    assert "promised" in (ended.reason or "")
    assert batchchat.run(job, transport=transport, environ={}).exit_code == 0


def test_an_input_that_raises_in_the_middle_archives_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": [f"r{n}" for n in range(30)]}), tmp_path / "rows.parquet")
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"choices": [choice]}))
    fields: dict[str, Any] = {"input": {"path": str(tmp_path / "rows.parquet")}}
    assert batchchat.run(make_job(tmp_path, None, **fields), transport=transport, environ={}).ok == 30

    def broken(prepared: Prepared) -> Iterator[RowBatch]:
        yield from islice(batches(prepared), 1)
        raise StorageError("the input cannot be read on")

    batches = Prepared.batches
    edited = make_job(tmp_path, None, messages=[{"role": "user", "content": "new {{ text }}"}], **fields)
    monkeypatch.setattr(Prepared, "batches", broken)
    ended = batchchat.run(edited, transport=transport, environ={})
    assert (ended.exit_code, ended.reason) == (74, "the input cannot be read on")
    assert not list((tmp_path / "out" / "_batchchat" / "archive").iterdir())
    assert len(read_output(tmp_path / "out")) == 60
