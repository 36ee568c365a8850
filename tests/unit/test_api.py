"""The Python API as scripts and notebooks use it: rows of their own in, tables out, loops, progress, interrupts."""

from __future__ import annotations

import datetime
import json
import os
import signal
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import duckdb
import httpx
import pyarrow as pa
import pytest
from click.testing import CliRunner

import batchchat
from batchchat.api import NotebookProgress
from batchchat.budget import Budget
from batchchat.cli import cli
from batchchat.events import Snapshot
from batchchat.sources import open_rows
from tests.limiters import make_limiter

ROWS = [{"id": f"r{number}", "text": f"text {number}"} for number in range(12)]


def provider(answer: Callable[[httpx.Request], httpx.Response] | None = None) -> httpx.MockTransport:
    def say(_request: httpx.Request) -> httpx.Response:
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": usage, "model": "m"})

    return httpx.MockTransport(answer or say)


def job_for(folder: Path, **fields: Any) -> batchchat.Job:
    return batchchat.Job(
        **{
            "name": "mine",
            "input": {"path": "-", "key": "id"},
            "output": str(folder / "out"),
            "provider": "demo",
            "model": "llama-3.1-8b-instruct",
            "messages": [{"role": "user", "content": "{{ text }}"}],
            **fields,
        }
    )


def run(job: batchchat.Job, rows: Any, **more: Any) -> batchchat.RunResult:
    return batchchat.run(job, rows=rows, **{"transport": provider(), **more})


def tables() -> Iterator[tuple[str, Any]]:
    table = pa.Table.from_pylist(ROWS)
    yield "list", ROWS
    yield "generator", (row for row in ROWS)
    yield "table", table
    yield "reader", table.to_reader(max_chunksize=5)
    yield "record batch", table.to_batches()[0]
    connection = duckdb.connect()
    connection.register("mine", table)
    yield "duckdb", connection.sql("select * from mine order by cast(id[2:] as int)")
    pandas = pytest.importorskip("pandas")
    yield "pandas", pandas.DataFrame(ROWS)
    yield "pandas with an index", pandas.DataFrame(ROWS, index=[f"i{number}" for number in range(12)])
    yield "polars", pytest.importorskip("polars").DataFrame(ROWS)


def test_rows_of_every_kind_are_one_input_and_are_resumed_by_key(tmp_path: Path) -> None:
    job = job_for(tmp_path)
    sent = []
    for name, rows in tables():
        result = run(job, rows)
        assert (result.rows, result.ok, result.exit_code) == (12, 12, 0), name
        sent.append(result.sent)
    assert sent == [12] + [0] * (len(sent) - 1)
    read = result.to_arrow(["id", "text", "completion"])
    assert read.to_pylist() == [{**row, "completion": "yes"} for row in ROWS]
    assert "__index_level_0__" not in result.to_arrow().column_names


def test_more_rows_of_the_same_keys_are_added_in_any_order(tmp_path: Path) -> None:
    job = job_for(tmp_path)
    assert run(job, ROWS[:5]).sent == 5
    assert run(job, pa.Table.from_pylist(ROWS[::-1])).sent == 7


def test_rows_take_the_place_of_a_file_and_ask_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("id;text\n" + "".join(f"{row['id']};{row['text']}\n" for row in ROWS))
    job = job_for(tmp_path, input={"path": str(file), "key": "id", "format": "csv"})
    assert batchchat.run(job, transport=provider()).sent == 12
    assert run(job, ROWS).sent == 0


WRONG = [
    ({"id": [1]}, "one mapping and no list of rows", "pyarrow.table"),
    ("rows.csv", "rows is a str", "leave rows out"),
    (3, "rows is a int", ""),
    ([], "are none", "DataFrame"),
    ([1, 2], "no mapping", "iterable of dicts"),
    (pa.table([[1], [2]], ["text", "text"]), "two columns are called 'text'", "Rename"),
    (pa.table({"other": [1]}), "other", ""),
    (pa.chunked_array([["a"]]), "no stream of tables", "DataFrame"),
]


@pytest.mark.parametrize(("rows", "message", "remedy"), WRONG, ids=[case[1] for case in WRONG])
def test_what_gives_no_rows_is_refused_before_anything_is_sent(
    rows: Any, message: str, remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(batchchat.UsageError) as caught:
        run(job_for(tmp_path, input="-"), rows)
    assert message in str(caught.value)
    assert remedy in (caught.value.remedy or "")
    assert not (tmp_path / "out").exists()


def test_a_row_that_is_no_mapping_fails_alone(tmp_path: Path) -> None:
    result = run(job_for(tmp_path, input="-"), [ROWS[0], 7, {3: "x"}, ROWS[1]])
    assert (result.ok, result.failed, result.exit_code) == (2, 2, 1)
    assert result.failures[0].kind == "input"


def test_rows_that_break_off_leave_the_rest_open_and_can_be_resumed(tmp_path: Path) -> None:
    table = pa.table({"id": [f"n{number}" for number in range(2_000)], "text": ["a"] * 2_000})

    def broken() -> Iterator[pa.RecordBatch]:
        yield from table.to_batches(max_chunksize=500)
        raise ValueError("the cursor is closed")

    job = job_for(tmp_path)
    result = run(job, pa.RecordBatchReader.from_batches(table.schema, broken()))
    assert result.exit_code == 74
    assert "ValueError: the cursor is closed" in (result.reason or "")
    assert run(job, table).sent == 2_000 - result.ok

    def never() -> Iterator[dict[str, str]]:
        yield from ROWS
        raise ValueError("the cursor is closed")

    with pytest.raises(batchchat.BatchchatError, match="the cursor is closed"):
        run(job_for(tmp_path / "b"), never())


def test_values_that_json_does_not_have_keep_their_types() -> None:
    numpy = pytest.importorskip("numpy")
    day, moment = datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)
    row = {
        "d": day, "t": moment, "m": Decimal("1.50"), "b": b"\x00", "i": numpy.int64(3), "f": numpy.float32(0.5),
        "l": (1, 2), "a": numpy.array([1.0, 2.0]), "n": float("nan"), "z": None,
    }  # fmt: skip
    source = open_rows([row, {**row, "extra": 1}])
    batch = next(source.batches())
    assert batch.values[0] == {
        "d": day, "t": moment, "m": Decimal("1.50"), "b": b"\x00", "i": 3, "f": 0.5,
        "l": [1, 2], "a": [1.0, 2.0], "n": None, "z": None,
    }  # fmt: skip
    kinds = {field.name: str(field.type) for field in source.schema}
    assert (kinds["d"], kinds["b"], kinds["i"], kinds["l"]) == ("date32[day]", "binary", "int64", "list<item: int64>")
    assert kinds["t"].startswith("timestamp[us")
    assert batch.columns.to_pylist()[0]["d"] == day


def test_what_can_be_read_again_is_and_what_cannot_says_so() -> None:
    source = open_rows(ROWS)
    assert [len(list(source.batches())), len(list(source.batches())), source.known_rows()] == [1, 1, 12]
    once = open_rows(iter(ROWS))
    assert list(once.batches())
    with pytest.raises(batchchat.UsageError, match="only once"):
        list(once.batches())
    with pytest.raises(batchchat.UsageError, match="counted"):
        once.count_rows()


def test_what_came_from_a_program_is_exported_without_it(tmp_path: Path) -> None:
    run(job_for(tmp_path), ROWS)
    target = tmp_path / "all.jsonl"
    words = ["export", str(tmp_path / "out"), "-o", str(target), "--columns", "id,completion"]
    done = CliRunner().invoke(cli, words, input="")
    assert done.exit_code == 0, done.output
    assert "12 rows written" in done.stderr
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == [row["id"] for row in ROWS]
    for name in ("status", "show", "history", "verify"):
        assert CliRunner().invoke(cli, [name, str(tmp_path / "out")]).exit_code == 0


def test_a_running_loop_is_no_hindrance(tmp_path: Path) -> None:
    async def cell() -> tuple[batchchat.RunResult, batchchat.RunResult]:
        first = run(job_for(tmp_path), ROWS)
        return first, await batchchat.run_job(job_for(tmp_path), rows=ROWS, transport=provider())

    first, second = anyio.run(cell)
    assert (first.sent, second.sent, second.ok) == (12, 0, 12)


def test_an_interrupt_drains_and_the_same_call_goes_on(tmp_path: Path) -> None:
    asked = 0

    def interrupting(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return provider().handle_request(request)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        rows = [{"id": f"n{number}", "text": "a"} for number in range(3_000)]
        with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
            run(job_for(tmp_path), rows, transport=provider(interrupting))
    finally:
        signal.signal(signal.SIGINT, before)
    done = batchchat.read_output(tmp_path / "out").num_rows
    # What was in flight was waited for: no answer that came is lost.
    assert done == asked
    if done < 3_000:
        assert run(job_for(tmp_path), rows).sent == 3_000 - done


def test_a_result_raises_if_a_row_failed_and_says_what_to_do(tmp_path: Path) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        if b"text 3" in request.content:
            return httpx.Response(400, json={"error": {"message": "too long", "type": "invalid_request_error"}})
        return provider().handle_request(request)

    assert run(job_for(tmp_path), ROWS[:2]).raise_for_status().ok == 2
    result = run(job_for(tmp_path), ROWS, transport=provider(refuse))
    with pytest.raises(batchchat.RunFailed, match=r"1 of 12 rows failed.*too long") as caught:
        result.raise_for_status()
    assert (caught.value.exit_code, caught.value.result.failed) == (1, 1)
    assert "--failed" in (caught.value.remedy or "")

    def closed(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": {"message": "bad key"}})

    refused = run(job_for(tmp_path / "b"), ROWS, transport=provider(closed))
    with pytest.raises(batchchat.RunFailed, match="bad key") as again:
        refused.raise_for_status()
    assert again.value.exit_code == 3


def test_answers_come_as_the_tables_of_other_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(job_for(tmp_path), ROWS)
    assert result.to_arrow(["id"]).column_names == ["id"]
    with pytest.raises(batchchat.UsageError, match="nope"):
        result.to_arrow(["nope"])
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    assert list(result.to_pandas(["id", "completion"]).columns) == ["id", "completion"]
    assert result.to_polars(["id"]).columns == ["id"]
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(batchchat.UsageError, match="polars is not installed"):
        result.to_polars()


def test_a_result_is_shown_short_and_printed_whole(tmp_path: Path) -> None:
    result = run(job_for(tmp_path), ROWS)
    assert repr(result).startswith("RunResult('mine': exit_code=0, ok=12, failed=0, open=0, cost=")
    assert len(repr(result)) < 200 + len(result.output)
    assert "all 12 rows have a completion" in str(result)
    assert "\x1b" not in str(result)


class Cell:
    """Stands for a notebook's display: what it was given first, and each change."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def __call__(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Cell:
        assert raw
        assert display_id
        self.shown.append(content["text/plain"])
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(content["text/plain"])


def test_a_notebook_shows_progress_in_place_and_the_end_stays() -> None:
    cell = Cell()
    with NotebookProgress(cell) as shown:
        for tenth in range(12):
            shown.update(Snapshot("r", "mine", "running", elapsed_s=tenth / 10, total=20, total_exact=True, ok=tenth))
        shown.update(Snapshot("r", "mine", "ended", elapsed_s=1.15, total=20, total_exact=True, ok=20))
    assert [text.split("·")[0].split()[-3:] for text in cell.shown] == [[str(ok), "of", "20"] for ok in (0, 5, 10, 20)]
    assert "100%" in cell.shown[-1]
    assert "\x1b" not in "".join(cell.shown)


def test_a_script_is_quiet_unless_it_asks_for_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        return provider().handle_request(request)

    run(job_for(tmp_path), ROWS, transport=provider(slow))
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")
    seen: list[Snapshot] = []
    run(job_for(tmp_path), ROWS, progress=True, on_snapshot=seen.append)
    assert seen[-1].phase == "ended"


def test_runs_may_share_a_limiter_and_a_budget(tmp_path: Path) -> None:
    budget, limiter = Budget(max_requests=5), make_limiter(concurrency=1)
    first = run(job_for(tmp_path / "a"), ROWS[:4], budget=budget, limiter=limiter)
    second = run(job_for(tmp_path / "b"), ROWS[:4], budget=budget, limiter=limiter)
    assert (first.exit_code, first.sent, second.exit_code, second.sent) == (0, 4, 4, 1)
